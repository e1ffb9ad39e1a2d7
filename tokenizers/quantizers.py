"""Quantisers: from continuous latents to codes and integer tokens. The interface, FSQ, and the measures of usage.

A quantiser maps latents `z [B, T, H, W, dim]` to codes of the same shape and to integer tokens: one for each cell, or
several (`composed_quantizers`). A quantiser with a codebook declares it as parameters of its module and adds its losses
to `Quantized.losses`; what it learns without gradients it collects in `Quantized.statistics`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Quantized(NamedTuple):
    """What a quantiser makes of latents [..., dim].

    Attributes:
      codes: float32 [..., dim], with a straight-through gradient.
      indices: int32 [...] in [0, codebook_size).
      losses: named and weighted, to be added to the reconstruction loss.
      statistics: sums over the cells of the batch, for `Quantizer.update_statistics`.
    """

    codes: jax.Array
    indices: jax.Array
    losses: dict[str, jax.Array]
    statistics: dict[str, Any]


class Quantizer(nnx.Module):
    """What the tokenizer needs of a quantiser.

    Attributes:
      dim: channels of the latents.
      levels: sizes of the factors of an index, the least significant first.
      codebook_size: their product.
    """

    dim: int
    levels: tuple[int, ...]

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        """Quantise. In training `key` is given: it drives what is random, and asks for statistics."""
        raise NotImplementedError

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        """Map codes [..., dim] to int32 indices [...] in [0, codebook_size)."""
        raise NotImplementedError

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Map indices [...] to float32 codes [..., dim]."""
        raise NotImplementedError

    def update_statistics(self, statistics: dict[str, Any]) -> None:
        """Take the statistics of a step, summed over the whole batch, into the module's own averages."""

    def by_part(self, indices: jax.Array) -> list[jax.Array]:
        """Return the indices of each part of a composed quantiser, flat."""
        return [indices.reshape(-1)]


class FSQ(Quantizer):
    """Finite scalar quantisation (Mentzer et al., arXiv 2309.15505), in the variant of the Cosmos tokenizer.

    Channel i is squashed to an interval that holds `levels[i]` integers and rounded; a code is that integer divided
    by `levels[i] // 2`, so codes lie in [-1, 1]. Even levels are asymmetric: 8 levels give -1 ... 0.75. The index is
    little-endian: the first channel is the least significant digit. All arithmetic is float32, because a position
    near a decision edge would otherwise change its token with the compute dtype.

    With `entropy_weight` the entropy loss of LFQ (as in VidTok, arXiv 2412.13061, section 3.2) spreads latents over the
    codes: in short runs they stay in the middle of the cube. There the probabilities of a digit fall with the square of the
    distance to its level. With `latent_weight` a loss on the squared argument of the tanh keeps it where it has a gradient.
    """

    def __init__(self, levels: tuple[int, ...], entropy_weight: float = 0.0, latent_weight: float = 0.0):
        self.levels = tuple(levels)
        self.dim = len(self.levels)
        self._entropy_weight, self._latent_weight = entropy_weight, latent_weight

    def bound(self, z: jax.Array) -> jax.Array:
        """Squash z to the open interval whose integers are the digits (before the shift to 0 ... L - 1)."""
        half, offset = self._half_and_offset
        return jnp.tanh(self._centred(z)) * half - offset

    def _centred(self, z: jax.Array) -> jax.Array:
        """Return the argument of the tanh: 0 in the middle of the interval."""
        half, offset = self._half_and_offset
        return z.astype(jnp.float32) + np.arctanh(offset / half)

    @property
    def _half_and_offset(self) -> tuple[np.ndarray, np.ndarray]:
        levels = np.asarray(self.levels, np.float32)
        return (levels - 1) * np.float32(1 + 1e-3) / 2, np.where(levels % 2 == 0, np.float32(0.5), np.float32(0))

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        bounded = self.bound(z)
        codes = straight_through(bounded, jnp.round) / self._half_width
        losses = {}
        if self._latent_weight:
            losses["latent"] = self._latent_weight * jnp.square(self._centred(z)).mean()
        if self._entropy_weight:
            per_position, of_mean = digit_entropies(self._digit_logits(bounded))
            losses["entropy"] = self._entropy_weight * (per_position - of_mean)
        return Quantized(codes, self.codes_to_indices(codes), losses, {})

    def _digit_logits(self, bounded: jax.Array) -> list[jax.Array]:
        """Return for each channel the logits [N, level] of its digits: a Gaussian of half a step around the value."""
        values = (bounded + self._half_width).reshape(-1, self.dim)
        return [-2 * jnp.square(values[:, i, None] - np.arange(level)) for i, level in enumerate(self.levels)]

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        return join_digits(jnp.round(codes * self._half_width).astype(jnp.int32) + self._half_width, self.levels)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        return (split_digits(indices, self.levels) - self._half_width) / self._half_width.astype(np.float32)

    @property
    def _half_width(self) -> np.ndarray:
        return np.asarray(self.levels, np.int32) // 2


def digit_entropies(logits: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the mean entropy of the positions' codes and the entropy of the mean code distribution, in nats.

    `logits` are those of the digits, [N, level] for each: given the position they are independent, so the first is a sum
    over digits and the mean over all codes is one product of two halves of them. Nothing of size [N, codes] exists.
    """
    log_p = [jax.nn.log_softmax(x) for x in logits]
    per_position = -sum((jnp.exp(x) * x).sum(axis=-1) for x in log_p).mean()
    half = len(log_p) // 2
    low, high = (_joint([jnp.exp(x) for x in part]) for part in (log_p[:half], log_p[half:]))
    mean = jnp.einsum("nl,nh->hl", low, high, precision="highest") / len(high)
    return per_position, -(mean * jnp.log(jnp.maximum(mean, 1e-20))).sum()


def _joint(digits: list[jax.Array]) -> jax.Array:
    """Return the probabilities [N, codes] of all values of independent digits [N, level], the first least significant."""
    joint = jnp.ones((1, 1))
    for digit in digits:
        joint = (digit[:, :, None] * joint[:, None]).reshape(len(digit), -1)
    return joint


def straight_through(z: jax.Array, function) -> jax.Array:
    """Return function(z), with the gradient of z."""
    return z + jax.lax.stop_gradient(function(z) - z)


def join_digits(digits: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Map digits [..., len(levels)], the least significant first, to int32 indices [...]."""
    basis = np.cumprod([1, *levels[:-1]], dtype=np.int32)
    return jnp.sum(digits.astype(jnp.int32) * basis, axis=-1, dtype=jnp.int32)


def split_digits(indices: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Map indices [...] to int32 digits [..., len(levels)], the least significant first."""
    basis = np.cumprod([1, *levels[:-1]], dtype=np.int32)
    return indices[..., None] // basis % np.asarray(levels, np.int32)


def code_histogram(indices: jax.Array, codebook_size: int) -> jax.Array:
    """Count how often each code occurs: int32 [codebook_size]."""
    return jnp.bincount(indices.reshape(-1), length=codebook_size)


def codebook_usage(histogram: np.ndarray) -> float:
    """Return the share of codes that occur at least once."""
    return float(np.mean(np.asarray(histogram) > 0))


def perplexity(histogram: np.ndarray) -> float:
    """Return exp(entropy in nats) of the code distribution: the number of equally used codes."""
    counts = np.asarray(histogram, np.float64)
    probabilities = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(probabilities * np.log(probabilities))))


def factor_histograms(histogram: np.ndarray, levels: tuple[int, ...]) -> list[np.ndarray]:
    """Return how often each value of each factor of the code occurs, the least significant factor first."""
    table = np.asarray(histogram).reshape(levels[::-1])  # the last axis is the least significant
    axes = range(len(levels))
    return [table.sum(axis=tuple(a for a in axes if a != len(levels) - 1 - i)) for i in axes]
