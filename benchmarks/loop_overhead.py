"""What does the training loop cost a step beyond the device? A model so small that the host would show.

    python benchmarks/loop_overhead.py

Trains a tiny transformer on tokens in a temporary folder through `lumos train`'s loop, then times the same jitted step on
one resident batch without any loop. The difference per step is the host overhead: fetching the batch, placing it,
dispatching, counting, logging. Dispatch alone is the time of a step over the same arrays that computes nothing.
"""

import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading, sharding
from lumos.data.records import RecordWriter
from lumos.evaluation.evaluate import versions
from lumos.runtime import metrics_writer
from lumos.training.loop import train
from lumos.training.optimizer import make_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective

STEPS = 600


def milliseconds(step, state, batch):
    """Return the best mean time of 100 steps of six hundred, and the state after them."""
    windows = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(100):
            state, out = step(state, batch)
        jax.block_until_ready((state, out))
        windows.append(10 * (time.perf_counter() - start))
    return min(windows[1:]), state


def main():
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        for split in ("train", "validation"):
            with RecordWriter(tokens / f"{split}-00000-of-00001.array_record") as writer:
                for i in range(64):
                    grid = rng.integers(0, 1000, (2, 4, 4)).astype(np.uint32)
                    writer.write({"tokens": grid, "caption": "a red circle moves left", "id": str(i)})
        (tokens / "manifest.json").write_text(json.dumps({"grid": [2, 4, 4], "codebook_size": 1000}))
        config = config_loading.load(
            "configs/demo.py:transformer,smoke",
            {
                "data.path": str(tokens), "tokenizer_workdir": "", "train.num_steps": STEPS, "train.log_every": 100,
                "train.eval_every": 10**6, "train.checkpoint_every": 10**6, "train.num_samples": 0,
                "model.text_vocab": 512, "model.visual_vocab": 1000, "sequence.grid": "(2, 4, 4)",
            },
        )  # fmt: skip
        train(config, Path(folder) / "run")
        in_loop = [line["step_time_ms"] for line in metrics_writer.read(Path(folder) / "run", "train")]
        wait = [line["data_wait_ms"] for line in metrics_writer.read(Path(folder) / "run", "train")]

    mesh = sharding.make_mesh(config.mesh)
    objective, optimizer = TransformerObjective(config), make_optimizer(config.optimizer, STEPS)
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=0, ema=True)
        step = make_train_step(objective, optimizer, config, mesh)
        size, length = config.data.batch_size, config.sequence.text_length
        batch = {
            "tokens": np.zeros((size, 2, 4, 4), np.int32), "text": np.ones((size, length), np.int32),
            "text_length": np.full(size, length, np.int32),
        }  # fmt: skip
        batch = sharding.put_batch(mesh, batch)
        alone, state = milliseconds(step, state, batch)
        _, shapes = jax.eval_shape(step, state, batch)
        nothing = lambda state, batch: (state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        dispatch, _ = milliseconds(jax.jit(nothing, donate_argnums=0), state, batch)
    result = {
        "step_ms_in_the_loop": round(min(in_loop[1:]), 3),
        "step_ms_alone": round(alone, 3),
        "overhead_ms": round(min(in_loop[1:]) - alone, 3),
        "dispatch_ms": round(dispatch, 3),
        "of_which_waiting_for_data_ms": round(min(wait[1:]), 3),
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
