"""Slot 4, errors: wrong codes in the place of visible ones, so that training sees a history as generation writes it.

Targets are the true codes, so a model learns to go on from a history with errors in it. Each code of a clip is wrong with
a rate that is drawn for the clip; some clips stay clean. Codes do not add up as the residuals of continuous latents do: an
error is a wrong code in the place of one true code, and a prediction of another clip's code is no error of this one. So
a bank keeps what was predicted for each true code, and `own` predicts the same clip.

Which codes have a loss is the choice of `loss.weights`. With "masked" these are the hidden codes alone (1X, Epona), and those of
a bank's errors (Stable Video Infinity); with "all" every code (DrivingWorld).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from lumos.slots import Slot

State = dict[str, jax.Array]
# (key, codes [B, J] that are visible) -> codes drawn in one pass without gradients under masks of its own, and which of
# them the pass predicted, bool [B, J]; the others it saw.
Predict = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Errors(Slot):
    """What stands in the place of visible codes. Codes [B, J] are those of all cells in raster order."""

    in_loss: ClassVar[bool] = False  # whether wrong codes have a loss beside the hidden ones
    learns: ClassVar[bool] = False  # whether `learn` wants the predictions of every step

    @property
    def passes(self) -> float:
        """Forward passes that a step takes for them, on average."""
        return 0.0

    def state(self, num_codes: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return what the training state carries for them; it begins as zeros."""
        return {}

    def __call__(
        self, key: jax.Array, codes_BJ: jax.Array, num_codes: int, step: jax.Array, state: State, predict: Predict
    ) -> jax.Array:
        """Return the codes that stand where codes are visible, [B, J]; `step`: finished updates."""
        raise NotImplementedError

    def learn(
        self, state: State, codes_BJ: jax.Array, drawn_BJ: jax.Array, hidden_BJ: jax.Array, ratio_BJ: jax.Array
    ) -> State:
        """Return the state after a pass that drew codes where `hidden_BJ`, in frames of which `ratio_BJ` was hidden."""
        return state


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoErrors(Errors, name="none"):
    """Visible codes are the true ones."""

    def __call__(self, key, codes_BJ, num_codes, step, state, predict):
        return codes_BJ


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatedErrors(Errors):
    """Errors at a rate that is drawn for every clip."""

    clean: float = 0.5  # probability that a clip has none
    least: float = 0.0  # lowest rate of the other clips
    most: float = 0.2  # highest rate of the other clips

    def __post_init__(self):
        if not 0 <= self.clean <= 1 or not 0 <= self.least <= self.most <= 1:
            raise ValueError(
                f"clean={self.clean}, least={self.least} and most={self.most} must lie in [0, 1], and least be at most most"
            )

    def chosen(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Draw which codes get an error, bool [B, J]."""
        rate_key, clip_key, code_key = jax.random.split(key, 3)
        rate_B1 = self.least + (self.most - self.least) * jax.random.uniform(rate_key, (shape[0], 1))
        has_errors_B1 = jax.random.uniform(clip_key, (shape[0], 1)) >= self.clean
        return has_errors_B1 & (jax.random.uniform(code_key, shape) < rate_B1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCodes(RatedErrors, name="uniform"):
    """Any code, each as likely (the 1X world model's rates of U(0, 0.2); DrivingWorld's token dropout, arXiv 2412.19505:
    least = most = 0.3)."""

    def __call__(self, key, codes_BJ, num_codes, step, state, predict):
        any_BJ = jax.random.randint(jax.random.fold_in(key, 1), codes_BJ.shape, 0, num_codes)
        return jnp.where(self.chosen(key, codes_BJ.shape), any_BJ, codes_BJ)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bank(RatedErrors, name="bank"):
    """Wrong predictions of the same true code, collected in earlier steps (error recycling of Stable Video Infinity, arXiv
    2510.09212, for codes).

    For each bin of the ratio that was hidden and each true code, a ring keeps the newest `size` wrong codes that the
    training passes drew. Errors of a finished history come from all passes over it, so every bin is as likely. The loss is
    on hidden and on wrong codes. Codes that nothing is known of stay true. Memory: 4 * bins * size bytes a code.
    """

    bins: int = 10  # of the ratio that was hidden
    size: int = 16  # wrong codes that are kept for a true code in a bin
    in_loss: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.bins < 1 or self.size < 1:
            raise ValueError(f"bins={self.bins} and size={self.size} must be at least 1")

    def state(self, num_codes):
        # How many were written: exact up to `size`, then modulo it, so that it never overflows.
        shapes = {"codes": (self.bins, num_codes, self.size), "count": (self.bins, num_codes)}
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}

    def __call__(self, key, codes_BJ, num_codes, step, state, predict):
        bin_key, slot_key = jax.random.split(jax.random.fold_in(key, 1))
        kept_NBJ = jnp.minimum(state["count"][:, codes_BJ], self.size)
        num_bins_BJ = (kept_NBJ > 0).sum(0)
        below = lambda key, num_BJ: jnp.floor(jax.random.uniform(key, num_BJ.shape) * num_BJ).astype(jnp.int32)
        # The drawn one of the bins that know the code.
        bin_BJ = jnp.argmax(jnp.cumsum(kept_NBJ > 0, axis=0) > below(bin_key, num_bins_BJ), axis=0)
        kept_BJ = jnp.take_along_axis(kept_NBJ, bin_BJ[None], axis=0)[0]
        wrong_BJ = state["codes"][bin_BJ, codes_BJ, below(slot_key, kept_BJ)]
        return jnp.where(self.chosen(key, codes_BJ.shape) & (num_bins_BJ > 0), wrong_BJ, codes_BJ)

    def learn(self, state, codes_BJ, drawn_BJ, hidden_BJ, ratio_BJ):
        num_rings = state["count"].size
        bin_BJ = jnp.clip((ratio_BJ * self.bins).astype(jnp.int32), 0, self.bins - 1)
        ring_BJ = bin_BJ * state["count"].shape[1] + codes_BJ
        ring_E = jnp.where(hidden_BJ & (drawn_BJ != codes_BJ), ring_BJ, num_rings).reshape(-1)
        # In the order of the batch, ring by ring: every slot is written once at most, whatever the order of the writes.
        order_E = jnp.argsort(ring_E, stable=True)
        ring_E, drawn_E = ring_E[order_E], drawn_BJ.reshape(-1)[order_E]
        rank_E = jnp.arange(ring_E.size) - jnp.searchsorted(ring_E, ring_E)
        new_R = jnp.zeros(num_rings, jnp.int32).at[ring_E].add(1, mode="drop")
        is_kept_E = rank_E >= new_R.at[ring_E].get(mode="fill", fill_value=0) - self.size
        slot_E = (state["count"].reshape(-1)[ring_E] + rank_E) % self.size
        codes_RS = state["codes"].reshape(num_rings, self.size)
        codes_RS = codes_RS.at[jnp.where(is_kept_E, ring_E, num_rings), slot_E].set(drawn_E, mode="drop")
        count_R = state["count"].reshape(-1) + new_R
        count_R = jnp.where(count_R < self.size, count_R, self.size + count_R % self.size)
        return {"codes": codes_RS.reshape(state["codes"].shape), "count": count_R.reshape(state["count"].shape)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPredictions(RatedErrors, name="own"):
    """The model's own predictions of the same clip, drawn in one pass without gradients, wherever they are wrong.

    A pass hides codes of its own choice (`corruption`), so it says something of codes that are visible now. With `links`
    above 2 the passes are chained: each sees what the one before predicted (Epona's chain of forward, arXiv 2506.24113:
    links=3, every=10, clean=0, least=1, most=1). The last link is the training pass, and has the loss.
    """

    most: float = 0.6  # highest rate of the other clips, where the prediction is wrong
    links: int = 2  # passes of a chain, the training pass included
    every: int = 1  # steps between chains; steps in between see true codes

    def __post_init__(self):
        super().__post_init__()
        if self.links < 1 or self.every < 1:
            raise ValueError(f"links={self.links} and every={self.every} must be at least 1")

    @property
    def passes(self):
        return (self.links - 1) / self.every

    def __call__(self, key, codes_BJ, num_codes, step, state, predict):
        chosen_BJ = self.chosen(key, codes_BJ.shape)

        def link(seen_BJ, key):
            drawn_BJ, hidden_BJ = predict(key, seen_BJ)
            return jnp.where(hidden_BJ & chosen_BJ, drawn_BJ, seen_BJ), None

        keys = jax.random.split(jax.random.fold_in(key, 1), self.links - 1)
        chain = lambda: jax.lax.scan(link, codes_BJ, keys)[0]
        return chain() if self.every == 1 else jax.lax.cond(step % self.every == 0, chain, lambda: codes_BJ)
