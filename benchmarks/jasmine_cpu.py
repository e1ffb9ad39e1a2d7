"""Training and sampling at the sizes of the comparison with Jasmine: batch 4, 16 frames of 8x8 codes, 1,024 codes, float32.

    python benchmarks/jasmine_cpu.py                                # everything, as JSON
    python benchmarks/jasmine_cpu.py --only=train_1m --rounds=3
    python benchmarks/jasmine_cpu.py --beside=jasmine.json          # {"train_1m": tokens/s, ...} of other code, measured on this machine just now

Transformers of 1.2, 5.3 and 25 M parameters (configs/transformer_small.py, the largest with 14 layers), random weights. `train_*` is a step of `lumos
train` with attention in space and time in turns, as Jasmine has it, in two microbatches; `joint_*` with full attention to frames so far. `sample_*` makes 16 frames
from nothing in 16 passes a frame over the KV cache, one clip and sixteen at once, with unrolled layers. tokens/s count the codes. With JAX_NUM_CPU_DEVICES=2
two CPU devices share the rows of a batch. Compilation is not counted.
Run it on an idle machine. Figures of other code age with the machine, so the file holds none; measure both in turns.
"""

import dataclasses
import math
from functools import partial

import compared
import jax
import jax.numpy as jnp
import numpy as np
from compared import measure

from lumos import config_loading, sharding
from lumos.configs.transformer_small import get_config
from lumos.generation.sampler import row_keys
from lumos.runtime.huge_pages import use_huge_pages
from lumos.slots import slot
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.videos.generator import make_engine

GRID, BATCH, CODES = (16, 8, 8), 4, 1024


def make_config(size, attention):
    config = get_config("20m" if size == "26m" else size)
    if size == "26m":
        config.model.num_layers = 14
    config.sequence.grid, config.sequence.text_length, config.data.batch_size = GRID, 8, BATCH
    config.sequence.attention = slot(attention)
    config.model.text_vocab, config.model.visual_vocab = 512, CODES
    config.generate.steps, config.generate.guidance = 16, slot("none")
    config.mesh.replica, config.mesh.fsdp = -1, 1
    return config_loading.parse(config)


def rows(batch):
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, CODES, (batch, *GRID)).astype(np.int32),
        "text": rng.integers(4, 512, (batch, 8)).astype(np.int32),
        "text_length": np.full(batch, 8, np.int32),
    }


def train(size, attention, rounds):
    config = make_config(size, attention)
    # What half a batch computes is nearer to the size of a CPU's caches; the gradients of both add up to the same.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=2))
    objective, mesh = make_objective(config), sharding.make_mesh(config.mesh)
    optimizer = make_objective_optimizer(objective, config)
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=0, ema=True)
        step, batch = make_train_step(objective, optimizer, config, mesh), sharding.put_batch(mesh, rows(BATCH))

        def run():
            nonlocal state
            state, metrics = step(state, batch)
            metrics["loss"].block_until_ready()

        found = measure(run, BATCH * int(np.prod(GRID)), rounds)
    return found | {"parameters": objective.definition.num_params}


def sample(size, batch, rounds):
    config = make_config(size, "causal")
    model, generation = config.model, config.generate
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(model, scan_layers=False),
        generate=dataclasses.replace(generation, history_ratio=0.0),
    )
    definition = make_objective(config).definition
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: math.gcd(batch, jax.device_count())])
    decode = jax.jit(make_engine(config, definition).decode, static_argnums=5)
    params = jax.device_put(definition.init(jax.random.key(0)), sharding.replicated(mesh))
    given = sharding.put_rows(mesh, rows(batch))
    run = partial(
        decode, params, given["text"], given["text_length"], jnp.zeros_like(given["tokens"]), row_keys(0, batch), 0
    )
    with jax.set_mesh(mesh):
        return measure(lambda: run().block_until_ready(), batch * int(np.prod(GRID)), rounds)


WORK = {f"train_{size}": (train, size, "space_time") for size in ("1m", "5m", "26m")}
WORK |= {f"joint_{size}": (train, size, "causal") for size in ("1m", "5m", "26m")}
WORK |= {f"sample_1m_{batch}": (sample, "1m", batch) for batch in (1, 16)}


def main():
    use_huge_pages()
    arguments = compared.parser(WORK).parse_args()
    compared.report(arguments, {name: partial(run, *of, arguments.rounds or 5) for name, (run, *of) in WORK.items()})


if __name__ == "__main__":
    main()
