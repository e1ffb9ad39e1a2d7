"""A world of learned tokens: clips in pixels, and a tokenizer that every run trains on them first, with its own seed."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lumos import config_loading, geometry
from lumos.config import Config
from lumos.findings.training import SMOKE_STEPS, Training, changed
from lumos.findings.worlds import PixelWorld
from lumos.tokenizers import pretrained
from lumos.weights import release, safetensors_files

_BATCH = 64  # clips that are encoded or decoded at once
# What all tokenizers of findings share; those of a world come on top. One token a cell and a frame.
_BASE = {
    "task": "tokenizer", "data.batch_size": 8, "tokenizer.spatial_compression": 8, "tokenizer.temporal_compression": 1,
    "tokenizer.l1_weight": 0.2, "tokenizer.l2_weight": 1.0, "optimizer.name": "muon", "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_steps": 20, "optimizer.final_fraction": 0.02, "optimizer.ema_decay": 0.0, "train.num_steps": 200,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedWorld(PixelWorld):
    """Clips in pixels, as tokens of a tokenizer that was trained on the training clips.

    Tokenizers have a latent frame for each frame, or ("holistic") one row of tokens for a clip, behind which no frames can be given. What
    one (world, seed) trains, all arms of this world use; it lies as a release in the folder of the tokens.
    """

    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # config fields by their dotted names
    seed: int = 0  # of the tokenizer: that of the run

    def __post_init__(self):
        super().__post_init__()
        made = self._config.tokenizer
        if made.body == "causal" and made.temporal_compression != 1:
            raise ValueError(
                f"temporal_compression={made.temporal_compression}; allowed: 1, as frames are given and measured one by one"
            )

    @property
    def grid(self):
        return geometry.token_shape(self._config.tokenizer, *self._shape)

    @property
    def num_codes(self):
        return int(np.prod(self._config.tokenizer.levels))

    def for_run(self, seed, smoke):
        world = dataclasses.replace(super().for_run(seed, smoke), seed=seed)
        few = {"train.num_steps": SMOKE_STEPS} if smoke else {}
        return dataclasses.replace(world, tokenizer={**self.tokenizer, **few})

    def prepare(self, folder):
        training = _training(self._config)
        params, _ = training.run(self.seed, batches=self._batches())
        _save(folder / release.TOKENIZER, training, params["vae"])

    def tokens_of(self, codes, folder):
        encode = pretrained.load(folder / release.TOKENIZER).encode
        return np.concatenate([encode(self.video(part)) for part in _parts(codes)])

    def cells_of(self, tokens, folder):
        decode = pretrained.load(folder / release.TOKENIZER).decode
        return np.concatenate([self.read(decode(part)) for part in _parts(tokens)])

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip in pixels."""
        return self.frames, self.side * self.pixels, self.side * self.pixels

    @property
    def _config(self) -> Config:
        shapes = {"data.buckets": (self._shape,)} | ({"tokenizer.clip": self._shape} if self._is_holistic else {})
        return config_loading.parse(changed(config_loading.default(), _BASE | shapes | self.tokenizer))

    @property
    def _is_holistic(self) -> bool:
        return self.tokenizer.get("tokenizer.body") == "holistic"

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches of training clips in pixels, in an order of the seed's."""
        codes, rng = self.clips("train", self.num_train).codes, np.random.default_rng(self.seed)
        while True:
            yield {"video": self.video(codes[rng.integers(0, len(codes), self._config.data.batch_size)])}


_training = functools.lru_cache(maxsize=1)(Training)  # runs that differ in the seed alone share a program


def _parts(array: np.ndarray) -> list[np.ndarray]:
    return np.split(array, range(_BATCH, len(array), _BATCH))


def _save(folder: Path, training: Training, params: Any) -> None:
    """Write a trained tokenizer as a release."""
    tensors = release.tensors_of("tokenizer", training.objective.vae, params)
    safetensors_files.write(folder, tensors)
    (folder / "config.json").write_text(json.dumps(training.config.to_dict()))
    facts = {"format": release.FORMAT, "task": "tokenizer", "step": training.config.train.num_steps}
    facts["files"] = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / release.NAME).write_text(json.dumps(facts))
