"""Slot 6, samplers that keep cells by something else than the probability of their codes: their place, their entropy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lumos.generation.sampler import Confidence, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halton(Sampler, name="halton"):
    """Cells are kept in the order in which a Halton sequence visits them (Halton-MaskGIT, arXiv 2503.17076 section 3.2).

    What is kept in one pass lies far apart, so its cells tell little about each other. With `eta` the order begins at another
    cell in every pass: it would choose the same cells again.
    """

    keeps_drawn = True

    def order(self, t_J, y_J, x_J):
        # Bases 2 and 3 for rows and columns, 5 for the frames of a group that has several.
        axes = [axis_J - axis_J.min() for axis_J in (y_J, x_J, t_J)]
        sizes, num = [int(axis_J.max()) + 1 for axis_J in axes], len(y_J)
        cell_of = np.full(sizes, -1)
        cell_of[tuple(axes)] = np.arange(num)
        visited, points = np.array([], int), 4 * num
        while len(visited) < num:
            place = [np.minimum(_halton(points, base) * size, size - 1) for base, size in zip((2, 3, 5), sizes)]
            cell = cell_of[tuple(axis.astype(int) for axis in place)]
            cell = cell[cell >= 0]
            visited, points = cell[np.sort(np.unique(cell, return_index=True)[1])], 2 * points
        return np.argsort(visited)

    def score(self, noise_BJ, log_p_BJ, temperature, order_J):
        first_B1 = jnp.argmax(noise_BJ, axis=-1, keepdims=True) if self.eta else 0
        return -jnp.mod(order_J - first_B1, noise_BJ.shape[-1]).astype(jnp.float32) + 0 * noise_BJ


def _halton(num: int, base: int) -> np.ndarray:
    """Return the first points of the van der Corput sequence of a base: digits of 1, 2, ... behind the point, reversed."""
    index, point, share = np.arange(1, num + 1), np.zeros(num), 1.0
    while index.any():
        share /= base
        point += share * (index % base)
        index //= base
    return point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entropy(Confidence, name="entropy"):
    """Cells of the least entropy are kept first, whatever code was drawn: temperature * Gumbel - entropy in nats."""

    def choose(self, logits_V, gumbel_V, top_k, top_p):
        codes, _ = super().choose(logits_V, gumbel_V, top_k, top_p)
        log_p_V = jax.nn.log_softmax(logits_V, axis=-1)
        return codes, jnp.sum(jnp.exp(log_p_V) * log_p_V, axis=-1)
