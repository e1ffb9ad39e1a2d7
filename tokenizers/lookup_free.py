"""Quantisers whose codebook is the corners of a cube: one bit for each channel, nothing to look up.

Both take the entropy loss E_x[H(p(.|x))] - H(E_x[p(.|x)]) over the codes: each position sure of its code, all codes used
alike (`digit_entropies`: exact, for the bits are independent given the position). Under a mesh the means run over the batch
of all devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import TokenizerConfig
from lumos.tokenizers.quantizers import (
    Quantized,
    Quantizer,
    digit_entropies,
    join_digits,
    split_digits,
    straight_through,
)


class LFQ(Quantizer):
    """Lookup-free quantisation (MAGVIT-v2, arXiv 2310.05737, section 3.1): codes are +-1, bit i of the index is z_i > 0."""

    def __init__(self, config: TokenizerConfig):
        self.levels, self.dim, self._scale = config.levels, len(config.levels), 1.0
        self._config = config

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        z, c = self._prepare(z.astype(jnp.float32)), self._config
        codes = straight_through(z, self._nearest)
        commitment = self._commitment_scale * jnp.square(z - jax.lax.stop_gradient(codes)).mean()
        # Distances to the two values of a bit differ by 4 z scale: the logit of softmax(2 z . code / temperature).
        per_position, of_mean = bit_entropies(4 * self._scale * z / c.entropy_temperature)
        losses = {
            "commitment": c.commitment_weight * commitment,
            "entropy": c.entropy_weight * self._entropy_scale * (per_position - of_mean),
        }
        return Quantized(codes, self.codes_to_indices(codes), losses, {})

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        return join_digits(codes > 0, self.levels)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        return self._nearest(split_digits(indices, self.levels) - 0.5)

    def _prepare(self, z: jax.Array) -> jax.Array:
        return z

    def _nearest(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, self._scale, -self._scale).astype(jnp.float32)

    _entropy_scale = _commitment_scale = 1.0


class BSQ(LFQ):
    """Binary spherical quantisation (arXiv 2406.07548): latents and codes lie on the unit sphere, codes are +-1/sqrt(dim).

    The entropies are weighed by the temperature (equation 9 with 1 / temperature = their inverse temperature); the
    commitment is the squared distance, where LFQ takes its mean over channels.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__(config)
        self._scale = float(self.dim**-0.5)
        self._entropy_scale, self._commitment_scale = config.entropy_temperature, float(self.dim)

    def _prepare(self, z: jax.Array) -> jax.Array:
        return z * jax.lax.rsqrt(jnp.square(z).sum(axis=-1, keepdims=True) + 1e-12)


def bit_entropies(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean entropy of the positions' codes and the entropy of the mean code distribution, in nats.

    `logits [..., bits]` are those of each bit being 1; at most about 20 bits.
    """
    bits = logits.reshape(-1, logits.shape[-1]).T
    return digit_entropies([jnp.stack([jnp.zeros_like(bit), bit], axis=1) for bit in bits])


def annealed(step: jax.Array, boost_steps: int) -> jax.Array:
    """Return the factor of the entropy loss at a step: 3 at the start, 1 after `boost_steps` (MAGVIT-v2)."""
    if not boost_steps:
        return jnp.float32(1)
    return 1 + 2 * jnp.maximum(1 - step / np.float32(boost_steps), 0)
