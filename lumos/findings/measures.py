"""What is measured of a trained arm: functions that return metrics by name, numbers or lists over frames.

Each is a frozen dataclass, so that what was measured, and how, is written into the rows.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lumos.config import Config
from lumos.findings.training import Trained
from lumos.generation import numbers
from lumos.generation.sampler import Confidence, row_keys
from lumos.generation.session import Session
from lumos.sequence.corruption import CorruptionConfig
from lumos.training.from_config import make_objective
from lumos.typed_values import from_dict
from lumos.videos.generator import decode_program, make_engine


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Nats a code, under one evaluation mask for all arms: NAME (mean), NAME/first, NAME/late (second half of the frames), NAME/imbalance
    (last frame over the first), NAME/frames (list).

    corruption: fields of the section `corruption`, none for its defaults (the tubes of Lumos-1); None: as the arm was trained. For targets that
    are not in place all codes count, whatever it is.
    """

    name: str
    corruption: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    draws: int = 4  # masks for every clip

    def __call__(self, trained: Trained) -> dict[str, Any]:
        config = dataclasses.replace(trained.config, seed=0)
        if self.corruption is not None:
            made = from_dict(CorruptionConfig, dict(self.corruption), "corruption")
            config = (
                dataclasses.replace(config, corruption=made) if config.sequence.targets.name == "in_place" else config
            )
        batch = trained.batch()
        sums = [_sums(config)(trained.params, batch, jax.random.key(i)) for i in range(self.draws)]
        nll, count = (sum(np.asarray(x[name], np.float64).sum(0) for x in sums) for name in ("nll", "count"))
        frames = np.where(count > 0, nll / np.maximum(count, 1), np.nan)
        late = slice(len(frames) // 2, None)
        found = {"": nll.sum() / count.sum(), "/first": frames[0], "/late": nll[late].sum() / count[late].sum()}
        found |= {"/imbalance": frames[-1] / frames[0], "/frames": frames.tolist()}
        return {self.name + end: value if isinstance(value, list) else float(value) for end, value in found.items()}


@functools.lru_cache(maxsize=8)
def _sums(config: Config):
    objective = make_objective(config)

    def sums(params, batch, key):
        batch_size, num_frames = batch["tokens"].shape[:2]
        drawn = config.corruption.draw(key, batch_size, num_frames, objective.layout.content_index.shape[1])
        return objective.evaluate_drawn(params, batch, drawn)

    return jax.jit(sums)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The training loss on clips that were not trained on, the mean over several draws: with weights "bound" a bound on the negative
    log-likelihood in nats a code, with next-token targets the negative log-likelihood itself."""

    name: str = "nll"
    draws: int = 16

    def __call__(self, trained: Trained) -> dict[str, Any]:
        c = dataclasses.replace(trained.config.corruption, text_drop=0.0)
        loss = _loss(dataclasses.replace(trained.config, corruption=c, seed=0))
        batch = trained.batch()
        values = [loss(trained.params, batch, jax.random.key(i)) for i in range(self.draws)]
        return {self.name: float(np.mean(values))}


@functools.lru_cache(maxsize=8)
def _loss(config: Config):
    objective = make_objective(config)

    def loss(params, batch, key):
        found = objective.loss(params, batch, key)
        return found.sum / found.weight

    return jax.jit(loss)


@dataclasses.dataclass(frozen=True)
class RollOut:
    """Videos that go on from given frames, with the true captions, against what the world does.

    Shares over generated frames. NAME/whole: frames with one whole block of the right colour and nothing else of a block. NAME/place: frames
    whose block stands where that of the first frame goes to. NAME/legal: frames whose block is one step from where it was. NAME/background:
    background cells that are as in the world, and NAME/codes: all cells (both where frames are given). NAME/stripes: cells that fit one
    pattern of stripes. Each also in the last frame, .../late, the first generated frame less the last one, .../drop, and over frames,
    .../frames. The first videos are in "clips". frames: length of the videos, by default as trained.
    """

    name: str = "videos"
    given: int = 1
    frames: int = 0

    def __call__(self, trained: Trained) -> dict[str, Any]:
        made, world, clips = generate(trained, self.given, self.frames), trained.world, trained.clips(self.frames)
        found_NT2, size = world.find(made, clips.colour), made.shape[:2]
        whole_NT = (found_NT2 >= 0).all(-1)
        stays_NT = np.abs(np.diff(found_NT2, axis=1, prepend=found_NT2[:, :1])).sum(-1)
        shares = {"whole": whole_NT, "legal": whole_NT & np.roll(whole_NT, 1, axis=1) & (stays_NT == 1)}
        if world.motion != "turning":
            shares["place"] = whole_NT & (found_NT2 == world.path(found_NT2[:, 0], clips.step, size[1])).all(-1)
        if world.background == "stripes":
            shares["stripes"] = world.in_stripes(made)
        if self.given:
            right = made == clips.codes
            shares["codes"] = right
            shares["background"] = np.where(clips.codes < world.textures, right, np.nan)
        metrics: dict[str, Any] = {"clips": made[:2].tolist()}
        for name, share in shares.items():
            over_frames = np.nanmean(share.reshape(*size, -1), axis=(0, 2))[self.given :]
            ends = {"": over_frames.mean(), "/late": over_frames[-1], "/drop": over_frames[0] - over_frames[-1]}
            metrics |= {f"{self.name}/{name}{end}": float(value) for end, value in ends.items()}
            metrics[f"{self.name}/{name}/frames"] = over_frames.tolist()
        return metrics


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What the tokens of clips that were not trained on keep of them: NAME, the share of cells that are read back as they were."""

    name: str = "kept"

    def __call__(self, trained: Trained) -> dict[str, Any]:
        cells = trained.cells(np.asarray(trained.batch()["tokens"]))
        return {self.name: float((cells == trained.clips().codes).mean())}


@dataclasses.dataclass(frozen=True)
class Diversity:
    """How much videos differ that go on from the same frame with the same caption: NAME, the share of cells in which two of them differ."""

    name: str = "diversity"
    given: int = 1
    prompts: int = 8
    samples: int = 8

    def __call__(self, trained: Trained) -> dict[str, Any]:
        rows = np.repeat(np.arange(min(self.prompts, trained.num_clips)), self.samples)
        made = generate(trained, self.given, rows=rows)[:, self.given :]
        made = made.reshape(-1, self.samples, *made.shape[1:])
        differ = (made[:, :, None] != made[:, None]).mean((0, 3, 4, 5))
        return {self.name: float(differ.sum() / (self.samples * (self.samples - 1)))}


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds of some videos of the trained length that are made together, the least of several times: NAME.

    NAME/whole: of as many passes over as many codes without a cache, where every pass computes all frames so far again; for codes that
    predict themselves.
    """

    name: str = "seconds"
    videos: int = 16
    times: int = 3
    whole: bool = False

    def __call__(self, trained: Trained) -> dict[str, Any]:
        rows = np.arange(min(self.videos, trained.num_clips))
        found = {self.name: self._least(lambda: generate(trained, 0, rows=rows))}
        if self.whole and trained.config.sequence.targets.name == "in_place":
            batch = jax.tree.map(lambda x: x[rows], trained.batch())
            passes, run = trained.config.generate.steps, _sums(dataclasses.replace(trained.config, seed=0))
            of = lambda n: batch | {"tokens": batch["tokens"][:, :n]}
            one = lambda n: self._least(lambda: jax.block_until_ready(run(trained.params, of(n), jax.random.key(0))))
            found[f"{self.name}/whole"] = passes * sum(one(n) for n in range(1, trained.config.sequence.grid[0] + 1))
        return found

    def _least(self, work) -> float:
        work()  # compiles
        seconds = []
        for _ in range(self.times):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)


@dataclasses.dataclass(frozen=True)
class Solved:
    """What Jacobi iteration does: NAME/passes (of the model, for each code) and NAME/same (share of codes that are those of generation one
    by one with the same random numbers)."""

    name: str = "solved"
    given: int = 1
    videos: int = 8

    def __call__(self, trained: Trained) -> dict[str, Any]:
        rows = np.arange(min(self.videos, trained.num_clips))
        one_by_one = dataclasses.replace(
            trained.config, generate=dataclasses.replace(trained.config.generate, sampler=Confidence())
        )
        (made, passes), (want, _) = (
            self._clip(dataclasses.replace(trained, config=c), rows) for c in (trained.config, one_by_one)
        )
        num = made[0, self.given :].size
        return {f"{self.name}/passes": passes / num, f"{self.name}/same": float((made == want).mean())}

    def _clip(self, trained: Trained, rows):
        config, batch = trained.config, jax.tree.map(lambda x: x[rows], trained.batch())
        engine = make_engine(config, make_objective(config).definition)
        with jax.set_mesh(trained.mesh):
            state, codes = jax.jit(engine.clip, static_argnums=5)(
                trained.params,
                batch["text"],
                batch["text_length"],
                batch["tokens"],
                row_keys(config.seed, len(rows)),
                self.given,
            )
        return np.asarray(codes), int(state.forwards)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """How many parameters the model has: NAME."""

    name: str = "parameters"

    def __call__(self, trained: Trained) -> dict[str, Any]:
        return {self.name: sum(x.size for x in jax.tree.leaves(trained.params))}


def generate(trained: Trained, given: int, frames: int = 0, rows: np.ndarray | None = None) -> np.ndarray:
    """Return the cells int32 [N, T, H, W] of videos that begin with `given` true frames; of some rows of the clips, by default all."""
    config, batch = trained.config, trained.batch(frames)
    batch = batch if rows is None else jax.tree.map(lambda x: x[rows], batch)
    grid, tokens = (frames or config.sequence.grid[0], *config.sequence.grid[1:]), np.asarray(batch["tokens"])
    keys = row_keys(config.seed, len(tokens))
    with jax.set_mesh(trained.mesh):
        if config.generate.cache.bounded:
            session = Session(make_engine(config, make_objective(config).definition), trained.params)
            session.prefill(batch["text"], batch["text_length"], keys, tokens[:, :given])
            made = np.stack(list(session.frames(grid[0] - given)), 1)
            return trained.cells(np.concatenate([tokens[:, :given], made], axis=1))
        structure, values = numbers.split(config.generate)
        program = _program(dataclasses.replace(config, seed=0), grid, structure, given)
        shown = tokens * (np.arange(grid[0]) < given)[:, None, None]
        made = program(trained.params, batch["text"], batch["text_length"], shown, jax.random.key_data(keys), values)
    return trained.cells(np.asarray(made))


@functools.lru_cache(maxsize=8)
def _program(config: Config, grid, structure, given: int):
    return decode_program(config, make_objective(config).definition, grid, structure, given)
