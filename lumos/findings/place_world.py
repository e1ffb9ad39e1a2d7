"""A world with a long tail: many places behind the block, a few of them shown often and most of them rarely."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from lumos.findings.worlds import BLOCK, World


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaceWorld(World):
    """The background is one of `places` fixed pictures of random codes, the k-th shown in proportion to 1 / k.

    No few cells tell a picture's others: a model has to have seen the place, and to have kept it.
    """

    textures: int = 16
    places: int = 1024

    def __post_init__(self):
        super().__post_init__()
        if (self.motion, self.captions, self.exemplar, self.pan) != ("straight", "full", "", False):
            raise ValueError(f"{self}: a world of places has straight motion, full captions, no exemplar and no pan")

    @property
    def entropy(self) -> float:
        """The least loss that any model can have, in nats a code: the place and the first corner of the block, which no caption tells."""
        corners = (self.side - BLOCK + 1) ** 2
        return float(np.log(corners) - (self._shares * np.log(self._shares)).sum()) / int(np.prod(self.grid))

    def _background(self, rng, num_frames, colour, heading):
        picture = self._pictures[rng.choice(self.places, p=self._shares)]
        return np.broadcast_to(picture, (num_frames, *picture.shape))

    @functools.cached_property
    def _shares(self) -> np.ndarray:
        shares = 1 / np.arange(1, self.places + 1)
        return shares / shares.sum()

    @functools.cached_property
    def _pictures(self) -> np.ndarray:
        return np.random.default_rng(21).integers(0, self.textures, (self.places, self.side, self.side), np.int32)
