"""Slot 6, sampler: draw a code for every hidden cell, keep some of them, hide the others again.

Noise comes from outside, as Gumbel numbers. How a model's hidden states become drawn codes is the head's part
(`model.heads`); `choose` says what is drawn from logits, a `Sampler` what is kept. Other members: `orders` (Halton, entropy).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.generation import plan
from lumos.slots import Slot


class Noise(NamedTuple):
    """Gumbel noise of one pass. draw(first cell, cells, codes, factor) -> [B, cells, codes]; keep() -> [B, J]."""

    draw: Callable[..., jax.Array]
    keep: Callable[[], jax.Array]


def row_keys(seed: int, num_rows: int) -> jax.Array:
    """Return the random key of each clip of a batch, [B]: row i is the clip of seed + i."""
    return jnp.stack([jax.random.key(seed + i) for i in range(num_rows)])


def keys_of_rows(keys_B: jax.Array, num_rows: int) -> jax.Array:
    """Return the random key of each row; where one key is given instead of [B], that of row i is folded with i."""
    return keys_B if keys_B.ndim else jax.vmap(jax.random.fold_in, (None, 0))(keys_B, jnp.arange(num_rows))


def seeded(keys_BW: jax.Array, num_cells: int) -> Noise:
    """Return the noise of a random key for each row and each group in flight, whose cells lie behind each other.

    Every row and every cell draws for itself: a clip is the same in any batch, and however many cells are drawn at a time.
    """
    draw_BW, keep_BW = jnp.moveaxis(jax.vmap(jax.vmap(jax.random.split))(keys_BW), 2, 0)

    def draw(start, cells, codes, factor=0):
        group_J, cell_J = jnp.divmod(start + jnp.arange(cells), num_cells)
        of_cells = jax.vmap(jax.vmap(jax.random.fold_in), (0, None))
        keys_BJ = of_cells(draw_BW[:, jnp.minimum(group_J, keys_BW.shape[1] - 1)], cell_J)
        if factor:
            keys_BJ = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, factor)))(keys_BJ)
        return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (codes,))))(keys_BJ)

    gumbel = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (num_cells,))))
    return Noise(draw, lambda: gumbel(keep_BW).reshape(len(keys_BW), -1))


def choose(logits_V: jax.Array, gumbel_V: jax.Array, top_k: int = 0, top_p: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Draw a code from logits [..., V] and return (code, its log-probability), [...] each.

    top_k: only the most likely codes; top_p: only the most likely ones that together have this probability.
    """
    # Codes are left out by their index: XLA may compute the logits once more for a comparison, and round them in another way.
    if top_k:
        _, index = jax.lax.top_k(logits_V, min(top_k, logits_V.shape[-1]))
        logits_V = _only(logits_V, index, True)
    if isinstance(top_p, jax.Array) or top_p < 1:
        code_V = jnp.broadcast_to(jnp.arange(logits_V.shape[-1]), logits_V.shape)
        rising, index = jax.lax.sort((-logits_V, code_V), num_keys=1)
        p = jax.nn.softmax(-rising, axis=-1)
        # A code stays if those before it have less than top_p; the first one always does.
        logits_V = _only(logits_V, index, (jnp.cumsum(p, axis=-1) - p < top_p).at[..., 0].set(True))
    codes = argmax(logits_V + gumbel_V)
    return codes, at(logits_V, codes) - jax.nn.logsumexp(logits_V, axis=-1)


def _only(logits_V: jax.Array, index: jax.Array, kept: jax.Array | bool) -> jax.Array:
    """Return the logits of the codes at those places of `index` that are kept, and -inf for all others."""
    kept_V = jnp.put_along_axis(jnp.zeros(logits_V.shape, bool), index, kept, axis=-1, inplace=False)
    return jnp.where(kept_V, logits_V, -jnp.inf)


def argmax(x_V: jax.Array) -> jax.Array:
    """As jnp.argmax of finite numbers, in two passes: a CPU does not vectorise one that carries the index along.

    The barrier keeps both from making the noise again, where the compiler heeds it: on CPUs XLA drops it before it fuses loops.
    """
    x_V = jax.lax.optimization_barrier(x_V)
    peak = x_V.max(axis=-1, keepdims=True)
    return jnp.where(x_V == peak, jnp.arange(x_V.shape[-1]), x_V.shape[-1]).min(axis=-1)


def uniform_of(gumbel: jax.Array) -> jax.Array:
    """Return the uniform numbers that Gumbel numbers are in disguise."""
    return jnp.exp(-jnp.exp(-gumbel))


def at(values_V: jax.Array, codes: jax.Array) -> jax.Array:
    """Return the value of each code."""
    return jnp.take_along_axis(values_V, codes[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(Slot):
    """Decides after each pass which codes are kept.

    Called with the noise of the pass, the log-probability of each cell's code [B, J] (of known cells, when they were drawn),
    which cells were known before it [B, J], how many cells shall stay hidden, the temperature of the pass, and the cells'
    places in `order`, if there is one; returns the new known mask. Cells that become hidden again are drawn anew in the next pass.
    """

    # Share of the known cells that compete again in every pass: 0 = what is kept stays (MaskGIT), 1 = everything is chosen
    # anew, the discrete counterpart of predicting x0 and adding noise again.
    eta: float = 0.0

    NUMBERS: ClassVar[dict[str, float | None]] = {}  # see `lumos.generation.numbers`
    masks_given: ClassVar[bool] = True  # whether the history mask hides parts of given frames too
    single_pass: ClassVar[bool] = False  # whether a group takes one pass: `generate.steps` is 1 then
    keeps_drawn: ClassVar[bool] = False  # whether what is known stays known, and was drawn in the pass that kept it
    kernels: ClassVar[tuple[str, ...]] = ("mask",)  # training kernels that it goes with
    reads_log_p: ClassVar[bool] = False  # whether cells are ranked by the probability of their codes
    always_masks: ClassVar[bool] = False  # whether a history ratio of 0 hides a cell all the same
    masks: ClassVar[bool] = (
        True  # whether hidden cells show [MASK]; else the code that stands there, a random one at first
    )

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must lie in [0, 1]")

    def score(self, noise_BJ: jax.Array, log_p_BJ: jax.Array, temperature: jax.Array, order_J) -> jax.Array:
        """Return how much each cell deserves to be kept, [B, J]."""
        raise NotImplementedError

    def begin(self, keys_BW: jax.Array, num_codes: int, coarse_BWC: jax.Array) -> jax.Array:
        """Return the codes that cells of new groups show at first, int32 [B, W, C], -1 = [MASK]; read where `masks` is false.

        coarse_BWC: the newest codes in the places of their parents (`Arrangement.parents`), -1 where there is none.
        """
        return jnp.zeros_like(coarse_BWC)

    def order(self, t_J: np.ndarray, y_J: np.ndarray, x_J: np.ndarray) -> np.ndarray | None:
        """Return the place of each cell of a group in an order that does not depend on codes, int [J], where `score` reads one."""
        return None

    def __call__(self, noise: Noise, log_p_BJ, known_BJ, num_hidden, temperature, order_J=None):
        noise_BJ = noise.keep()
        score_BJ = self.score(noise_BJ, log_p_BJ, temperature, order_J)
        safe_BJ = known_BJ
        if self.eta:
            # The neighbour's number decides, as the own one decides the rank. Fixed cells are certain, so they stay.
            safe_BJ &= (uniform_of(jnp.roll(noise_BJ, 1, axis=-1)) >= self.eta) | jnp.isposinf(log_p_BJ)
        score_BJ = jnp.where(safe_BJ, jnp.inf, score_BJ)
        rank = jnp.argsort(jnp.argsort(score_BJ, axis=-1), axis=-1)
        return rank >= num_hidden if self.eta else known_BJ | (rank >= num_hidden)

    def taken(self, noise: jax.Array, known: jax.Array, temperature: jax.Array) -> jax.Array:
        """Return which cells take the code that was drawn for them."""
        return ~known

    def level(self, known_BWC: jax.Array, step_W: jax.Array, steps: int) -> jax.Array:
        """Return the share of each group that is hidden before a pass, [B, W]."""
        return (~known_BWC).sum(-1) / known_BWC.shape[-1]

    def at_once(self, view, in_place: bool) -> int:
        """Return how many groups are finished at a time. Raises ValueError where that does not go with the rest."""
        return 1

    def look_ahead(self, step, now, cells, new, pass_W, steps: int):
        """Return the cells behind a pass, and how many passes more were run to find them: see `TimeTravel`."""
        return new, 0

    def choose(self, logits_V, gumbel_V, top_k, top_p):
        """Draw a code from logits; see the function of this name. A member may return another number in the place of the
        log-probability, to rank cells by; of codes with several factors it is the sum."""
        return choose(logits_V, gumbel_V, top_k, top_p)

    def counts(self, num_cells: int, steps: int) -> np.ndarray:
        """Return how many cells stay hidden after each pass, int32 [steps]."""
        return plan.cosine(num_cells, steps)

    def temperatures(self, steps: int, is_first: jax.Array) -> jax.Array:
        """Return the temperature of each pass over a group, float32 [steps], or what a member calls by that name; `is_first`: the
        group is the first generated one."""
        return jnp.zeros(steps, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confidence(Sampler, name="confidence"):
    """The most probable codes are kept: log p + temperature * Gumbel, annealed to 0 within a group (MaskGIT, Lumos-1)."""

    temperature: float = 1.0  # of the Gumbel noise in the first pass
    reads_log_p, keeps_drawn, NUMBERS = True, True, {"temperature": None}

    def __post_init__(self):
        super().__post_init__()
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must be at least 0")

    def score(self, noise_BJ, log_p_BJ, temperature, order_J):
        return log_p_BJ + temperature * noise_BJ

    def temperatures(self, steps, is_first):
        return jnp.asarray(self.temperature * (1.0 - np.arange(1, steps + 1) / steps), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomOrder(Sampler, name="random"):
    """Cells are kept in random order, whatever their probability (MAR, NOVA)."""

    keeps_drawn = True

    def score(self, noise_BJ, log_p_BJ, temperature, order_J):
        return noise_BJ


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShot(Sampler, name="one_shot"):
    """All cells are drawn in the first pass; `generate.steps` is 1."""

    single_pass, keeps_drawn = True, True

    def score(self, noise_BJ, log_p_BJ, temperature, order_J):
        return log_p_BJ

    def counts(self, num_cells, steps):
        return np.zeros(steps, np.int32)
