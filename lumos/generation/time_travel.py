"""Slot 6, a sampler that looks some passes ahead before it decides (predictor and corrector)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lumos.generation.sampler import Confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeTravel(Confidence, name="time_travel"):
    """Some passes are done ahead; what they find for hidden cells is ranked, the best of it kept, and the rest hidden again.

    The discrete counterpart of Yume's TTS-SDE (arXiv 2507.17744), which takes the velocity that it finds some steps ahead.
    Passes ahead have the noise of the passes that they stand for.
    """

    keeps_drawn = False
    ahead: int = 1  # passes that are looked ahead; 0 = confidence
    every: int = 1  # only each so many passes

    def __post_init__(self):
        super().__post_init__()
        if self.ahead < 0 or self.every < 1:
            raise ValueError(f"ahead={self.ahead} must be at least 0 and every={self.every} at least 1")

    def look_ahead(self, step, now, cells, new, pass_W, steps):
        if not self.ahead:
            return new, 0
        looks_W = (pass_W >= 0) & (pass_W % self.every == 0)
        num = jnp.where(looks_W, jnp.minimum(self.ahead, steps - 1 - pass_W), 0).max()

        def one(i, ahead):
            works_W = looks_W & (pass_W + i < steps)
            return step(ahead, pass_W + i)[0].where(works_W[:, None], ahead)

        ahead = jax.lax.fori_loop(1, num + 1, one, new)
        found = now.keep(ahead._replace(known=cells.known).where(~cells.known, cells))
        return found.where(looks_W[:, None], new), num
