"""Trains the arms of a finding: the project's objective, optimizer, step and data, without what a long run needs around them.

A run of a few hundred steps has no checkpoints: killed, it begins again. Runs that differ in the seed alone share one program.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading, sharding
from lumos.config import Config
from lumos.data.text import TextTokenizer
from lumos.findings.finding import Arm, Finding
from lumos.findings.worlds import World
from lumos.slots import slot
from lumos.training.batches import open_split
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.state import new_state
from lumos.training.step import make_update

SMOKE_STEPS = 2
# What all arms of all findings share; a finding's `base` and an arm's changes come on top.
_BASE = {
    "task": "transformer", "data.source": "tokens", "data.batch_size": 8, "data.num_threads": 1, "sequence.text_length": 8,
    "model.num_layers": 3, "model.model_dim": 64, "model.mlp_dim": 176, "model.num_heads": 2, "model.num_kv_heads": 2,
    "model.head_dim": 32, "model.scan_layers": False, "model.remat": "none", "optimizer.name": "muon", "optimizer.learning_rate": 5e-3,
    "optimizer.warmup_steps": 20, "optimizer.final_fraction": 0.02, "optimizer.ema_decay": 0.0, "train.num_samples": 0,
    "generate.steps": 6, "generate.fps": 8.0, "generate.guidance": slot("none"), "generate.top_p": 1.0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained arm: its config, the world that it knows, and what it was trained to."""

    config: Config
    world: World
    params: Any
    num_clips: int  # that are measured
    mesh: Any = dataclasses.field(repr=False)

    def batch(self, num_frames: int = 0) -> dict[str, Any]:
        """Return the clips that are measured as a batch: tokens, text and text_length, with `clips` beside them."""
        clips = self.world.clips("test", self.num_clips, num_frames)
        text = TextTokenizer(self.config.text.model)
        encoded = [text.encode(caption, self.config.sequence.text_length) for caption in clips.captions]
        ids, lengths = zip(*encoded)
        return {
            "tokens": jnp.asarray(self.world.tokens_of(clips.codes, self._data)),
            "text": jnp.stack([jnp.asarray(row) for row in ids]),
            "text_length": jnp.asarray(lengths, jnp.int32),
        }

    def clips(self, num_frames: int = 0):
        """Return the same clips with what is known of them."""
        return self.world.clips("test", self.num_clips, num_frames)

    def cells(self, tokens: np.ndarray) -> np.ndarray:
        """Return the cells [N, T, H, W] that tokens show."""
        return self.world.cells_of(tokens, self._data)

    @property
    def _data(self) -> Path:
        return Path(self.config.data.path)


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """Set fields of a ConfigDict by their dotted names."""
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        functools.reduce(getattr, path, config)[last] = value
    return config


def config_of(finding: Finding, arm: Arm, data: Path, smoke: bool = False, *, stage: str = "") -> Config:
    """Return the config of an arm, of its run or of the stage "before" it."""
    recipe = importlib.import_module(f"lumos.configs.recipes.{arm.recipe}")
    config = recipe.get_config("5m")
    config.name = f"{finding.name} {stage}"
    world = arm.world or finding.world
    changed(
        config, _BASE | {"data.path": str(data), "sequence.grid": world.grid, "model.visual_vocab": world.num_codes}
    )
    config.train.num_steps = finding.steps
    changed(changed(config, finding.base), arm.train)
    if stage:
        changed(config, arm.before)
    for name, value in arm.generate.items():
        config.generate[name] = value
    if smoke:
        config.train.num_steps, config.data.batch_size = SMOKE_STEPS, 4
        config.generate.steps = min(config.generate.steps, 2)
    return config_loading.parse(config)


class Training:
    """The training runs of one arm, one after another with other seeds; its program is compiled for the first.

    config: as `match_data` returns it, or complete without data where `run` is given batches.
    """

    def __init__(self, config: Config):
        self.config = config
        self.objective = make_objective(self.config)
        self.optimizer = make_objective_optimizer(self.objective, self.config)
        self.mesh = sharding.make_mesh(self.config.mesh, jax.local_devices()[:1])
        self._update = jax.jit(make_update(self.objective, self.optimizer, self.config), donate_argnums=0)
        new = functools.partial(
            new_state, self.objective.definition, self.optimizer, ema=self.config.optimizer.ema_decay > 0
        )
        self._new = jax.jit(new, donate_argnums=1)

    def run(self, seed: int, params: Any = None, batches: Iterable | None = None) -> tuple[Any, list[float]]:
        """Train from random weights, or from `params`; return the weights and the loss of every step. batches: by default those of the
        config's data."""
        config = dataclasses.replace(self.config, seed=seed)
        extra, losses = self.objective.extra_state(), []
        split = (
            open_split(config, self.mesh, config.data.split, {"data_step": 0})
            if batches is None
            else nullcontext(batches)
        )
        with jax.set_mesh(self.mesh):
            state = self._new(jnp.uint32(seed), params)
            if extra:
                places = sharding.param_shardings(self.mesh, extra.axes, extra.abstract)
                state = dataclasses.replace(state, extra=extra.start(places))
            with split as batches:
                for _, rows in zip(range(config.train.num_steps), batches):
                    batch = sharding.put_batch(self.mesh, rows)
                    state, metrics = self._update(state, batch, jnp.uint32(seed))
                    losses.append(metrics["loss"])
            return state.eval_params, [float(x) for x in jax.device_get(losses)]
