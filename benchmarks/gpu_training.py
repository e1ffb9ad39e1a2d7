"""One GPU: MFU of training at the released sizes, generation, the tokenizer, loss and attention beside their naive forms.

    python benchmarks/gpu_training.py --out=gpu                       # H100/H200: about nine minutes
    python benchmarks/gpu_training.py --out=gpu --variant=smoke       # the same path on a CPU, in a minute
    python benchmarks/gpu_training.py --out=gpu --only=train,1b       # some cases alone

Every case runs in a process of its own, so that one that runs out of memory takes no other along. MFU counts visible (query, key)
pairs and nothing recomputed (docs/method.md). `peak_gib` is what the device reports, `estimated_gib` what `lumos plan` would say;
`costs` are the kernels that took longest in a profiled step, with their share of the device's time. Adds a line a case to OUT/gpu.jsonl
and prints it.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading, sharding
from lumos.chips import parse_topology
from lumos.evaluation.evaluate import versions
from lumos.layouts import make_layout
from lumos.model import attention
from lumos.model.cross_entropy import linear_cross_entropy
from lumos.planning import estimate
from lumos.runtime.device_memory import use_device_memory
from lumos.runtime.speed import peak_flops_per_device
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import StageCausal, layout_ranges
from lumos.tokenizers.causal_vae import make_definition as make_tokenizer
from lumos.training.optimizer import make_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

KEPT = "model.remat=save:query,key,value,attention,out,gate,up"
CASES = [
    *(
        "attention 1b",
        f"train 1b 2 {KEPT}",
        f"train 1b 3 {KEPT}",
        f"train 1b 4 {KEPT}",
        "train 1b 4 model.remat=minimal",
    ),
    *(f"train 1b:released 2 {KEPT}", f"train 1b:released 1 {KEPT} model.attention=flash", f"train 500m 8 {KEPT}"),
    *("generate 500m 1", "generate 500m 4", "tokenizer 1", "tokenizer 8", "loss 1b", "attention 500m", "loss 500m"),
]


def seconds(function, *arguments, rounds=10):
    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    for _ in range(rounds):
        out = function(*arguments)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / rounds


def in_words(case):
    """Return the name of a case as that of a file."""
    return re.sub(r"\W+", "-", case)[:60]


def load(size, variant, batch_size=1, **changes):
    size, _, more = size.partition(":")
    changes = {"data.batch_size": str(batch_size), **changes}
    config = config_loading.load(f"configs/lumos_{size}.py:{','.join(filter(None, (more, variant)))}", changes)
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=1))


def costs(folder, top=12):
    """Return what the device's time of a profile went into: kernel -> share, the longest first."""
    took = collections.Counter()
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines if plane.name.startswith("/device:GPU") else ():
                if line.name.startswith("Stream"):
                    for event in line.events:
                        took[re.sub(r"[.\d]+$", "", event.name)[:90]] += event.duration_ns
    return {name: round(ns / took.total(), 4) for name, ns in took.most_common(top)}


def train(options, size, batch_size, *changes):
    """`changes`: fields of the config with values, model.remat=minimal."""
    batch_size, out = int(batch_size), options.out / in_words(f"train {size} {batch_size}")
    config = load(size, options.variant, batch_size, **dict(change.split("=") for change in changes))
    objective, mesh, rng = (
        TransformerObjective(config),
        sharding.make_mesh(config.mesh, jax.devices()[:1]),
        np.random.default_rng(0),
    )
    optimizer, text = make_optimizer(config.optimizer, 100), config.sequence.text_length
    batch = {
        "tokens": rng.integers(0, config.model.visual_vocab, (batch_size, *config.sequence.grid)).astype(np.int32),
        "text": rng.integers(1, 100, (batch_size, text)).astype(np.int32),
        "text_length": np.full(batch_size, text, np.int32),
    }
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=0, ema=False)
        step, batch = make_train_step(objective, optimizer, config, mesh), sharding.put_batch(mesh, batch)
        for i in range(8):
            if i == 3:
                jax.block_until_ready(state)
                start = time.perf_counter()
            state, metrics = step(state, batch)
        jax.block_until_ready(state)
        took = (time.perf_counter() - start) / 5
        with jax.profiler.trace(str(out)):
            state, metrics = step(state, batch)
            jax.block_until_ready(state)
    memory = jax.devices()[0].memory_stats() or {}
    guess = estimate.estimate_train(config, parse_topology("h100:1"))
    return {
        "tokens": make_layout(config).length, "step_s": took, "mfu": objective.flops_per_step() / took / (peak_flops_per_device() or math.nan), "loss": float(metrics["loss"]),
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30, "estimated_gib": guess.memory.total / 2**30,
        "costs": costs(out),
    }  # fmt: skip


def compare_attention(options, size):
    """Forward and backward of one layer's attention over two latent frames: the fast path, and the full mask; and how far
    they are apart, in float32 and in the model's precision."""
    config = load(size, options.variant)
    grid = (min(2, config.sequence.grid[0]), *config.sequence.grid[1:])
    config = dataclasses.replace(config, sequence=dataclasses.replace(config.sequence, grid=grid))
    layout, model = make_layout(config), config.model
    keys = KeyRanges.of(layout_ranges(layout, StageCausal()), jnp.zeros((1,), jnp.int32))
    make = lambda heads, seed: jax.random.normal(
        jax.random.key(seed), (1, layout.length, heads, model.head_dim), model.dtype
    )
    q, k, v = make(model.num_heads, 0), make(model.num_kv_heads, 1), make(model.num_kv_heads, 2)

    def gradient(kernel):
        total = lambda q, k, v: jnp.square(attention.attend(q, k, v, keys, kernel).astype(jnp.float32)).sum()
        return jax.jit(jax.grad(total, (0, 1, 2)))

    exact = gradient("dense")(*(x.astype(jnp.float32) for x in (q, k, v)))
    far = lambda got, exact: [float(jnp.linalg.norm(g - e) / jnp.linalg.norm(e)) for g, e in zip(got, exact)]
    times = {kernel: seconds(gradient(kernel), q, k, v) for kernel in ("auto", "flash", "dense")}
    of_parts = {kernel: compare_parts(q, k, v, kernel, grid[1] * grid[2]) for kernel in ("auto", "flash")}
    return {
        "tokens": layout.length,
        "seconds": times,
        "ratio": times["dense"] / times["auto"],
        "off": {kernel: far(gradient(kernel)(q, k, v), exact) for kernel in times},
        "parts_s": {kernel: took for kernel, (took, _) in of_parts.items()},
        "parts_off": far(*([parts] for _, parts in of_parts.values())),
    }


def compare_parts(q, k, v, kernel, size):
    """One frame over a cache of which some is seen, and itself: seconds and result."""
    past_k, past_v, own_k, own_v = (x[:, part] for part in (slice(-size), slice(-size, None)) for x in (k, v))
    q = q[:, -size:]
    keys = lambda start, end: KeyRanges(*(jnp.full((1, 1, size), x) for x in (start, end)), alike=True)
    parts = [(past_k, past_v, keys(17, past_k.shape[1] - 5)), (own_k, own_v, keys(0, size))]
    run = jax.jit(lambda q: attention.attend_parts(q, parts, kernel))
    return seconds(run, q), run(q).astype(jnp.float32)


def compare_loss(options, size):
    """Loss and gradients of half the positions masked: chunks with a recomputing gradient, and all logits at once."""
    config = load(size, options.variant)
    layout, model, positions = make_layout(config), config.model, int(np.prod(config.sequence.grid))
    hidden = jax.random.normal(jax.random.key(0), (positions, model.model_dim), model.dtype)
    head = 0.02 * jax.random.normal(jax.random.key(1), (model.model_dim, layout.vocabulary.visual_size), model.dtype)
    labels, weights = jnp.arange(positions) % 1000, (jnp.arange(positions) % 2).astype(jnp.float32)

    def fused(hidden, head):
        return linear_cross_entropy(hidden, head, labels, weights, chunk=config.loss.chunk).loss.sum()

    def naive(hidden, head):
        log_p = jax.nn.log_softmax((hidden @ head).astype(jnp.float32))
        return -(jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0] * weights).sum()

    fast, slow = (jax.jit(jax.grad(f, (0, 1))) for f in (fused, naive))
    bytes_of = lambda f: f.lower(hidden, head).compile().memory_analysis().temp_size_in_bytes
    times = seconds(fast, hidden, head), seconds(slow, hidden, head)
    return {
        "positions": positions, "fast_s": times[0], "naive_s": times[1], "ratio": times[1] / times[0],
        "fast_gib": bytes_of(fast) / 2**30, "naive_gib": bytes_of(slow) / 2**30,
    }  # fmt: skip


def generate(options, size, batch_size):
    """A clip of the released length with guidance: `config.generate.steps` passes a latent frame, twice the rows."""
    config, batch_size = load(size, options.variant, **{"model.param_dtype": "bfloat16"}), int(batch_size)
    definition = TransformerObjective(config).definition
    engine, grid, text = make_engine(config, definition), config.sequence.grid, config.sequence.text_length
    decode = jax.jit(engine.decode, static_argnums=5)
    inputs = np.ones((batch_size, text), np.int32), np.full(batch_size, text), np.zeros((batch_size, *grid), np.int32)
    run = functools.partial(decode, jax.jit(definition.init)(jax.random.key(0)), *inputs, jax.random.key(1), 0)
    run().block_until_ready()
    start = time.perf_counter()
    run().block_until_ready()
    took, frames = time.perf_counter() - start, 1 + 4 * (grid[0] - 1)
    with jax.profiler.trace(str(options.out / f"generate-{size}-{batch_size}")):
        run().block_until_ready()
    return {
        "seconds": took, "frames_per_s": batch_size * frames / took, "steps": config.generate.steps,
        "latent_frame_s": took / grid[0], "costs": costs(options.out / f"generate-{size}-{batch_size}"),
    }  # fmt: skip


def tokenizer(options, batch_size):
    """Encoding and decoding with the released tokenizer's shape, 25 frames of 448 x 256."""
    clip, batch_size = ((9, 32, 32) if options.variant else (25, 256, 448)), int(batch_size)
    config = config_loading.load("configs/tokenizer_dv4x8x8.py", {"tokenizer.dtype": "bfloat16"}).tokenizer
    definition = make_tokenizer(config)
    params = jax.jit(definition.init)(jax.random.key(0))
    encode = jax.jit(lambda params, video: definition.bind(params).encode(video))
    decode = jax.jit(lambda params, tokens: definition.bind(params).decode(tokens))
    video = np.random.default_rng(0).uniform(-1, 1, (batch_size, *clip, 3)).astype(np.float32)
    tokens = encode(params, video)
    rates = {
        name: batch_size * clip[0] / seconds(run, params, given, rounds=5)
        for name, run, given in (("encode", encode, video), ("decode", decode, tokens))
    }
    folder = options.out / f"tokenizer-{batch_size}"
    with jax.profiler.trace(str(folder)):
        decode(params, encode(params, video)).block_until_ready()
    return {"clip": clip, "frames_per_s": rates, "costs": costs(folder)}


KINDS = {
    "train": train,
    "attention": compare_attention,
    "loss": compare_loss,
    "generate": generate,
    "tokenizer": tokenizer,
}


def run(case, options):
    """Run one case in a process of its own; return its result, or what it said last."""
    command = [sys.executable, __file__, f"--out={options.out}", f"--variant={options.variant}", f"--case={case}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {options.seconds} s (--seconds)"}
    if done.returncode:
        (options.out / f"{in_words(case)}.err").write_text(done.stderr[-20_000:])
        return {"error": next(line for line in reversed(done.stderr.splitlines()) if "Error" in line)[:300]}
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", default="", help="of configs/lumos_*.py: '', lumos1 or smoke")
    parser.add_argument("--only", default="", help="cases that contain one of these texts: train,1b 4")
    parser.add_argument("--seconds", type=float, default=180, help="after which a case is given up")
    parser.add_argument("--case", help="run one case in this process")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    use_device_memory()
    if options.case:
        kind, *arguments = options.case.split()
        print(json.dumps(KINDS[kind](options, *arguments)))
        return
    for case in CASES:
        if any(text in case for text in options.only.split(",")):
            start = time.perf_counter()
            result = run(case, options)
            line = json.dumps({"case": case, **result, "wall_s": time.perf_counter() - start, "versions": versions()})
            print(line, flush=True)
            with (options.out / "gpu.jsonl").open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
