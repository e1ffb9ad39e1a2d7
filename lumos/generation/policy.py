"""Slot 7, the cache policy: which finished frames are seen, and so must stay in the cache.

A policy says which frames the generation of a frame sees. The cache keeps what coming frames see, and drops the rest when
room is needed: `keep_index` turns that into indices, `Cache.gather` applies them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.generation.cache import Cache
    from lumos.generation.view import View

EMPTY = 2**30


class CachePolicy(Slot):
    """Which finished frames are seen."""

    bounded = False  # whether the cache keeps its size however long the video is
    num_sink = 0  # how many of the first frames are always seen
    is_shared = True  # whether all rows and layers keep and see the same slots
    shot_offset = None  # latent frames that a shot stands later than it follows, where the policy says it
    num_gaps = 0  # runs of cached frames that are not seen, between those that are

    def num_frames(self, clip_frames: int) -> int:
        """Return how many frames are seen at most, in clips of so many latent frames."""
        return clip_frames

    def sees(self, frame_S: jax.Array, now: jax.Array, cut_S: jax.Array | int = 0) -> jax.Array:
        """Return which slots the generation of frame `now` sees, bool [S]. NumPy arrays in, NumPy arrays out.

        frame_S: frame number of each slot, -1 for the text and markers before the video, `EMPTY` for empty slots.
        cut_S: how many frames each slot stands later by cuts: the frames of a shot have one value.
        """
        return frame_S < EMPTY

    # Policies that choose, for each row or layer ----------------------------------------------------------------------

    measure = None  # how a written group scores the cached keys (`model.salience`), None = it does not
    num_writes = 0  # how many frames' scores are kept

    def num_slots(self, view: View) -> int:
        """Return how many slots a bounded cache has."""
        return view.sizes[0] + view.history_frames * view.sizes[1]

    def begin(self, cache: Cache, view: View) -> Cache:
        """Return the cache as it is kept behind the first tokens; it may have more slots before."""
        return cache

    def settle(self, cache: Cache, view: View) -> Cache:
        """Return the cache as it is kept after a write."""
        return cache

    def recall(self, cache: Cache, view: View) -> tuple[Cache, jax.Array | None]:
        """Return what of the cache a frame is generated from, and what is added to the logits of its slots, [R, S] or None."""
        return cache, None

    def check(self, view: View) -> None:
        """Raise ValueError if the policy does not go with a layout, a rule or `undo`."""


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

    def sees(self, frame_S, now, cut_S=0):
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

    def sees(self, frame_S, now, cut_S=0):
        return (frame_S < EMPTY) & ((frame_S < 0) | (frame_S >= now - self.width))


def keep_index(keep_S: jax.Array) -> jax.Array:
    """Return the index of each kept slot, in order, then -1, int32 [S]."""
    order_S = jnp.argsort(~keep_S, stable=True)
    return jnp.where(jnp.arange(len(keep_S)) < keep_S.sum(), order_S, -1).astype(jnp.int32)
