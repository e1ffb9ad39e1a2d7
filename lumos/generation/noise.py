"""Slot 6, noise: which groups draw with the same random numbers."""

from __future__ import annotations

import dataclasses

import jax

from lumos.slots import Slot


class NoiseRule(Slot):
    """Called with the numbers of groups and how many groups a latent frame has; returns the numbers that their noise goes by."""

    def __call__(self, groups: jax.Array, per_frame: int) -> jax.Array:
        raise NotImplementedError

    def check(self, per_frame: int) -> None:
        """Raise ValueError where groups are no parts of frames (`per_frame` is 0), if that is needed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(NoiseRule, name="own"):
    """Every group has noise of its own."""

    def __call__(self, groups, per_frame):
        return groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeated(NoiseRule, name="repeated"):
    """The clips of a long video have the same noise (unified noise of LongVie, arXiv 2508.03694): in equal contexts they are
    equal."""

    frames: int = 8  # latent frames of a clip

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"frames={self.frames} must be at least 1")

    def __call__(self, groups, per_frame):
        return groups % (self.frames * per_frame)

    def check(self, per_frame):
        if not per_frame:
            raise ValueError("noise 'repeated' counts frames, so groups must be parts of single frames in order")
