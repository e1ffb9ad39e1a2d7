"""The codebook of latent actions: vector quantisation of latents whose mean and spread are taken out.

What the inverse model says of all pairs is nearly the same at first, and a codebook that follows it would have codes which are all alike:
the forward model could not tell them apart, so nothing would ever drive them apart. The
mean and the spread are running ones.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lumos.config import TokenizerConfig
from lumos.model.definition import statistic
from lumos.sequence.streams import ActionsConfig
from lumos.tokenizers.quantizers import Quantized
from lumos.tokenizers.vector_quantizers import VQ

_DECAY = 0.9  # of the running sums: the latents move faster than their codes


class Codebook(nnx.Module):
    """VQ with resets (`tokenizers.vector_quantizers`) over standardised latents [P, code_dim]."""

    def __init__(self, config: ActionsConfig, rngs: nnx.Rngs):
        dim = config.code_dim
        settings = TokenizerConfig(
            quantizer="vq", levels=(config.codes,), code_dim=dim, commitment_weight=config.commitment_weight,
            codebook_decay=config.codebook_decay, codebook_reset=config.codebook_reset,
        )  # fmt: skip
        self.codes = VQ(settings, rngs)
        self.number = statistic(jnp.zeros(()), ())
        self.total = statistic(jnp.zeros(dim), (None,))
        self.squares = statistic(jnp.zeros(dim), (None,))  # of what is left without the mean of a batch

    @property
    def size(self) -> int:
        return self.codes.codebook_size

    def __call__(self, z_PC: jax.Array, key: jax.Array | None = None) -> Quantized:
        """Quantise. In training `key` is given: the batch is standardised by itself, and its sums are among the statistics."""
        z_PC = z_PC.astype(jnp.float32)
        if key is None:
            number = jnp.maximum(self.number[...], 1e-9)
            return self.codes(_standard(z_PC, self.total[...] / number, self.squares[...] / number))
        mean_C, square_C = z_PC.mean(0), z_PC.var(0)
        found = self.codes(_standard(z_PC, mean_C, square_C), key)
        number = jnp.float32(len(z_PC))
        sums = {
            "number": number,
            "total": jax.lax.stop_gradient(mean_C) * number,
            "squares": jax.lax.stop_gradient(square_C) * number,
        }
        return found._replace(statistics={"codes": found.statistics, "sums": sums})

    def update_statistics(self, statistics: dict[str, Any]) -> None:
        """Take the statistics of a step, summed over its batch, into the running ones."""
        self.codes.update_statistics(statistics["codes"])
        for name, value in statistics["sums"].items():
            running = getattr(self, name)
            running[...] = _DECAY * running[...] + (1 - _DECAY) * value


def _standard(z_PC: jax.Array, mean_C: jax.Array, square_C: jax.Array) -> jax.Array:
    return (z_PC - mean_C) * jax.lax.rsqrt(square_C + 1e-12)
