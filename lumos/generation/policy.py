"""Slot 7, the cache policy: which finished frames are seen, and so must stay in the cache.

A policy says which frames the generation of a frame sees. The cache keeps what coming frames see, and drops the rest when
room is needed: `keep_index` turns that into indices, `Cache.gather` applies them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lumos.slots import Slot

EMPTY = 2**30


class CachePolicy(Slot):
    """Which finished frames are seen."""

    bounded = False  # whether the cache keeps its size however long the video is
    num_sink = 0  # how many of the first frames are always seen

    def num_frames(self, clip_frames: int) -> int:
        """Return how many frames are seen at most, in clips of so many latent frames."""
        return clip_frames

    def sees(self, frame_S: jax.Array, now: jax.Array) -> jax.Array:
        """Return which slots the generation of frame `now` sees, bool [S].

        frame_S: frame number of each slot, -1 for the text and markers before the video, `EMPTY` for empty slots.
        """
        return frame_S < EMPTY


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullCache(CachePolicy, name="full"):
    """All frames of the clip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window(CachePolicy, name="window"):
    """The first `sink` frames, and the newest ones, `width` in all (LongLive; Infinity-RoPE with a sink of 1)."""

    width: int = 8  # latent frames that are seen, the sink included
    sink: int = 1  # first frames that are always seen
    bounded = True

    def __post_init__(self):
        if not 0 <= self.sink < self.width:
            raise ValueError(f"sink={self.sink} must lie in [0, width - 1], and width={self.width} be at least 1")

    @property
    def num_sink(self):
        return self.sink

    def num_frames(self, clip_frames):
        return self.width

    def sees(self, frame_S, now):
        return (frame_S < EMPTY) & ((frame_S < self.sink) | (frame_S >= now - (self.width - self.sink)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fifo(CachePolicy, name="fifo"):
    """The newest frames (ViD-GPT, Ca2-VDM)."""

    width: int = 8  # latent frames that are seen
    bounded = True

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1")

    def num_frames(self, clip_frames):
        return self.width

    def sees(self, frame_S, now):
        return (frame_S < EMPTY) & ((frame_S < 0) | (frame_S >= now - self.width))


def keep_index(keep_S: jax.Array) -> jax.Array:
    """Return the index of each kept slot, in order, then -1, int32 [S]."""
    order_S = jnp.argsort(~keep_S, stable=True)
    return jnp.where(jnp.arange(len(keep_S)) < keep_S.sum(), order_S, -1).astype(jnp.int32)
