"""Quantisers: from continuous latents to codes and integer tokens.

A quantiser maps `z [..., d]` to codes of the same shape and to one integer per position. FSQ has no parameters; a
quantiser with a learned codebook declares it as parameters of its module and adds its losses to `Quantized.losses`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumos.config import TokenizerConfig


class Quantized(NamedTuple):
    """Codes [..., d] (float32, straight-through gradient), indices [...] (int32) and named auxiliary losses."""

    codes: jax.Array
    indices: jax.Array
    losses: dict[str, jax.Array]


class Quantizer(nnx.Module):
    """What the tokenizer needs of a quantiser."""

    dim: int  # latent channels
    codebook_size: int

    def __call__(self, z: jax.Array) -> Quantized:
        raise NotImplementedError

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        """Map codes [..., dim] to int32 indices [...] in [0, codebook_size)."""
        raise NotImplementedError

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Map indices [...] to float32 codes [..., dim]."""
        raise NotImplementedError


class FSQ(Quantizer):
    """Finite scalar quantisation (Mentzer et al., arXiv 2309.15505), in the variant of the Cosmos tokenizer.

    Channel i is squashed to an interval that holds `levels[i]` integers and rounded; a code is that integer divided
    by `levels[i] // 2`, so codes lie in [-1, 1]. Even levels are asymmetric: 8 levels give -1 ... 0.75. The index is
    little-endian: the first channel is the least significant digit. All arithmetic is float32, because a position
    near a decision edge would otherwise change its token with the compute dtype.
    """

    def __init__(self, levels: tuple[int, ...]):
        self.levels = tuple(levels)
        self.dim = len(self.levels)
        self.codebook_size = math.prod(self.levels)

    def bound(self, z: jax.Array) -> jax.Array:
        """Squash z to the open interval whose integers are the digits (before the shift to 0 ... L - 1)."""
        levels = np.asarray(self.levels, np.float32)
        half = (levels - 1) * np.float32(1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, np.float32(0.5), np.float32(0))
        return jnp.tanh(z.astype(jnp.float32) + np.arctanh(offset / half)) * half - offset

    def __call__(self, z: jax.Array) -> Quantized:
        bounded = self.bound(z)
        rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
        codes = rounded / self._half_width
        return Quantized(codes, self.codes_to_indices(codes), {})

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        digits = jnp.round(codes * self._half_width).astype(jnp.int32) + self._half_width
        return jnp.sum(digits * self._basis, axis=-1, dtype=jnp.int32)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        digits = indices[..., None] // self._basis % np.asarray(self.levels, np.int32)
        return (digits - self._half_width) / self._half_width.astype(np.float32)

    @property
    def _half_width(self) -> np.ndarray:
        return np.asarray(self.levels, np.int32) // 2

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]], dtype=np.int32)


_QUANTIZERS = {
    "fsq": lambda config: FSQ(config.levels),
}


def make_quantizer(config: TokenizerConfig) -> Quantizer:
    """Build the quantiser that `config.quantizer` names."""
    return _QUANTIZERS[config.quantizer](config)


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
