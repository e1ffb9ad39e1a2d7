"""Slot 7, positions: where cached frames stand, chosen when they are read.

The cache keeps keys before rotation, so a rule may place its frames anew for every frame that is generated. Rules change
the time of frames alone; text keeps its place. Positions that stay bounded serve endless videos.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lumos.slots import Slot


class PositionRule(Slot):
    """Places tokens in time.

    Called with the times t of tokens, the time `now` of the frame that is generated, which tokens are of the sink, how many
    frames of the sink are cached, and the oldest time of another cached frame; returns the times at which they stand.
    """

    moves_all = False  # whether frames keep their distances

    def __call__(
        self, t: jax.Array, now: jax.Array, in_sink: jax.Array, num_sink: jax.Array, oldest: jax.Array
    ) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absolute(PositionRule, name="absolute"):
    """Frames stand where they were generated."""

    moves_all = True

    def __call__(self, t, now, in_sink, num_sink, oldest):
        return t


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relative(PositionRule, name="relative"):
    """The generated frame stands at most at `horizon`, earlier ones before it, none before 0 (Infinity-RoPE, arXiv
    2511.20649 section 3.2: frames beyond the horizon share the first place, where the sink stands)."""

    horizon: int = 21  # latent frames
    moves_all = True  # within the horizon

    def __post_init__(self):
        if self.horizon < 1:
            raise ValueError(f"horizon={self.horizon} must be at least 1")

    def __call__(self, t, now, in_sink, num_sink, oldest):
        return jnp.maximum(t - jnp.maximum(now - self.horizon, 0), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cyclic(PositionRule, name="cyclic"):
    """Frame t stands at t mod `period` (Ca2-VDM's cyclic temporal positions, arXiv 2411.16375 section 3.3)."""

    period: int = 33  # latent frames

    def __post_init__(self):
        if self.period < 1:
            raise ValueError(f"period={self.period} must be at least 1")

    def __call__(self, t, now, in_sink, num_sink, oldest):
        return t % self.period


@dataclasses.dataclass(frozen=True, kw_only=True)
class Realigned(PositionRule, name="realigned"):
    """The sink stands directly before the other cached frames (Deep Forcing, Rolling Forcing), and all of them at the
    beginning of time."""

    def __call__(self, t, now, in_sink, num_sink, oldest):
        return jnp.where(in_sink, t, t - oldest + num_sink)
