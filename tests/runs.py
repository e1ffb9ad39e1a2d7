"""A tokenizer run and a transformer run with random weights, for tests that generate and evaluate: nothing is trained."""

import dataclasses
import json

import jax
import numpy as np
from tokens import run_config, write_tokens

from lumos import sharding
from lumos.checkpoint import Checkpointer
from lumos.data import moving_shapes
from lumos.tokenizers import pretrained
from lumos.training.from_config import make_objective
from lumos.training.match_data import match_data
from lumos.training.optimizer import make_optimizer
from lumos.training.state import create_state

_SHAPES = {
    "data__source": "moving_shapes", "shapes__num_train": 8, "shapes__num_validation": 16, "shapes__num_test": 16, "task": "tokenizer",
    "tokenizer__levels": (5, 6), "tokenizer__channels": 8, "tokenizer__channel_mult": (1, 1), "tokenizer__num_res_blocks": 0,
    "tokenizer__mid_attention": False, "data__buckets": ((9, 32, 32),),
}  # fmt: skip


def save(folder, config, steps=(1,), mesh=None):
    """Write the workdir of a run whose weights at each step have noise of that seed."""
    mesh = mesh or sharding.make_mesh(config.mesh, jax.devices()[:1])
    update, objective = make_optimizer(config.optimizer, 1), make_objective(config)
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.json")
    state = create_state(objective.definition, update, mesh, seed=0, ema=True)
    for step in steps:
        ema = _noisy(state.params, step)
        raw = jax.tree.map(lambda x: 2 * x, ema)  # raw weights that the EMA is not
        checkpointer = Checkpointer(folder, keep=len(steps))
        checkpointer.save(step, dataclasses.replace(state, params=raw, ema=ema), {})
        checkpointer.close()


def _noisy(params, seed):
    rng = np.random.default_rng(seed)
    noise = lambda x: 0.05 * rng.standard_normal(x.shape, np.float32)
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x) + noise(x), x.sharding), params)


def write_runs(folder, steps=(1, 2, 3), **changes):
    """Write folder/tokenizer and folder/transformer (and their data); return the latter. Step 2 was the best in training."""
    tokenizer = run_config(folder / "shapes", **({"data__path": str(folder / "shapes")} | _SHAPES))
    moving_shapes.prepare(tokenizer.data.path, tokenizer.shapes, tokenizer.data.buckets[0], tokenizer.seed)
    save(folder / "tokenizer", tokenizer)
    maker = pretrained.load(str(folder / "tokenizer")).fingerprint
    tokens = write_tokens(folder / "tokens", tokenizer={"fingerprint": maker})
    settings = {
        "tokenizer_workdir": str(folder / "tokenizer"), "train__num_samples": 1, "generate__fps": 8.0, "evaluate__num_prompts": 8,
        "evaluate__num_clips": 8, "evaluate__batch_size": 8,
    }  # fmt: skip
    config = match_data(run_config(tokens, **(settings | changes)))
    save(folder / "transformer", config, steps)
    lines = [json.dumps({"step": step, "kind": "eval", "nll": abs(step - 2.0)}) for step in steps]
    (folder / "transformer" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "transformer"
