"""Training on one GPU: MFU of the released sizes, the fused loss and attention against their naive forms.

    python benchmarks/gpu_training.py --out=gpu                       # H100/H200: about ten minutes
    python benchmarks/gpu_training.py --out=gpu --variant=smoke       # the same path on a CPU, in a minute

Every case runs in a process of its own, so that one that runs out of memory takes no other along. Batches grow until one
does not fit; the best MFU counts. MFU counts visible (query, key) pairs and nothing recomputed (docs/method.md). `peak_gib` is
what the device reports, `estimated_gib` what `lumos plan` would say. Profiles of the best batch of each size go to OUT/SIZE (open
them with TensorBoard or xprof). Writes OUT/gpu.json and prints it.
"""

import argparse
import dataclasses
import json
import math
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
from lumos.runtime.speed import peak_flops_per_device
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import StageCausal, layout_ranges
from lumos.training.optimizer import make_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective

SIZES = {"500m": (1, 2, 4, 8), "1b": (1, 2, 4)}


def seconds(function, *arguments, rounds=10):
    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    for _ in range(rounds):
        out = function(*arguments)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / rounds


def load(size, variant, batch_size):
    config = config_loading.load(f"configs/lumos_{size}.py:{variant}", {"data.batch_size": str(batch_size)})
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=1))


def train(size, variant, batch_size, out):
    config = load(size, variant, batch_size)
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
        with jax.profiler.trace(str(out / size)):
            state, metrics = step(state, batch)
            jax.block_until_ready(state)
    memory = jax.devices()[0].memory_stats() or {}
    guess = estimate.estimate_train(config, parse_topology("h100:1"))
    return {
        "case": f"train {size}", "batch_size": batch_size, "tokens": make_layout(config).length, "step_s": took,
        "mfu": objective.flops_per_step() / took / (peak_flops_per_device() or math.nan), "loss": float(metrics["loss"]),
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30, "estimated_gib": guess.memory.total / 2**30,
    }  # fmt: skip


def compare_attention(size, variant, _, out):
    """Forward and backward of one layer's attention over two latent frames: the fast path and the full mask."""
    config = load(size, variant, 1)
    grid = (min(2, config.sequence.grid[0]), *config.sequence.grid[1:])
    config = dataclasses.replace(config, sequence=dataclasses.replace(config.sequence, grid=grid))
    layout, model = make_layout(config), config.model
    keys = KeyRanges.of(layout_ranges(layout, StageCausal()), jnp.zeros((1,), jnp.int32))
    make = lambda heads, seed: jax.random.normal(
        jax.random.key(seed), (1, layout.length, heads, model.head_dim), model.dtype
    )
    q, k, v = make(model.num_heads, 0), make(model.num_kv_heads, 1), make(model.num_kv_heads, 2)

    def gradient(kernel):
        total = lambda q, k, v: attention.attend(q, k, v, keys, kernel).astype(jnp.float32).sum()
        return jax.jit(jax.grad(total, (0, 1, 2)))

    fast, naive = (seconds(gradient(kernel), q, k, v) for kernel in ("auto", "dense"))
    return {
        "case": f"attention {size}",
        "tokens": layout.length,
        "fast_s": fast,
        "naive_s": naive,
        "ratio": naive / fast,
    }


def compare_loss(size, variant, _, out):
    """Loss and gradients of half the positions masked: chunks with a recomputing gradient, and all logits at once."""
    config = load(size, variant, 1)
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
        "case": f"loss {size}", "positions": positions, "fast_s": times[0], "naive_s": times[1], "ratio": times[1] / times[0],
        "fast_gib": bytes_of(fast) / 2**30, "naive_gib": bytes_of(slow) / 2**30,
    }  # fmt: skip


CASES = {"train": train, "attention": compare_attention, "loss": compare_loss}


def run(case, size, batch_size, options):
    """Run one case in a process of its own; return its result, or what it said last."""
    command = [
        sys.executable,
        __file__,
        f"--out={options.out}",
        f"--variant={options.variant}",
        f"--case={case},{size},{batch_size}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"case": f"{case} {size}", "batch_size": batch_size, "error": done.stderr.strip().splitlines()[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", default="", help="of configs/lumos_*.py: '', lumos1 or smoke")
    parser.add_argument("--case", help="one case alone: train|attention|loss,SIZE,BATCH")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.case:
        case, size, batch_size = options.case.split(",")
        print(json.dumps(CASES[case](size, options.variant, int(batch_size), options.out)))
        return
    results = []
    for size, batch_sizes in SIZES.items():
        for batch_size in batch_sizes:
            results.append(run("train", size, batch_size, options))
            if "error" in results[-1]:
                break
        results += [run(case, size, 1, options) for case in ("attention", "loss")]
    text = json.dumps({"results": results, "versions": versions()}, indent=1)
    (options.out / "gpu.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
