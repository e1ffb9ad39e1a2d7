"""Quantisers with a table of codes: VQ learnt by running averages, SimVQ, SVQ and IBQ learnt by gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lumos.config import TokenizerConfig
from lumos.model.definition import param, statistic
from lumos.tokenizers.quantizers import Quantized, Quantizer, straight_through


class _Table(Quantizer):
    """A quantiser whose codes are the rows of `table()`, float32 [codebook_size, dim]."""

    def __init__(self, config: TokenizerConfig):
        self.levels, self.dim, self._config = config.levels, config.code_dim, config

    def table(self) -> jax.Array:
        raise NotImplementedError

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        return nearest(codes.astype(jnp.float32), self.table())

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        return self.table()[indices]

    def _commitment(self, z: jax.Array, codes: jax.Array) -> jax.Array:
        return self._config.commitment_weight * jnp.square(z - jax.lax.stop_gradient(codes)).mean()


class VQ(_Table):
    """Vector quantisation with a codebook of running means (VQ-VAE, arXiv 1711.00937, appendix A.1) and dead-code reset.

    A code is the running mean of the latents nearest to it. A code whose running count falls to `codebook_reset` of the
    mean count moves to a random latent of the batch and starts again with the mean count. All counts start at zero, so
    the first batch initialises the codebook.
    """

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        super().__init__(config)
        shape = (self.codebook_size, self.dim)
        self.codebook = statistic(jax.random.normal(rngs.params(), shape) * self.dim**-0.5, (None, None))
        self.counts = statistic(jnp.zeros(shape[0]), (None,))
        self.sums = statistic(jnp.zeros(shape), (None, None))

    def table(self) -> jax.Array:
        return jax.lax.stop_gradient(self.codebook[...])

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        z = z.astype(jnp.float32)
        indices = nearest(z, self.table())
        codes = self.table()[indices]
        statistics = {} if key is None else self._statistics(z, indices, key)
        losses = {"commitment": self._commitment(z, codes)}
        return Quantized(straight_through(z, lambda _: codes), indices, losses, statistics)

    def _statistics(self, z: jax.Array, indices: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        z, indices = jax.lax.stop_gradient(z.reshape(-1, self.dim)), indices.reshape(-1)
        drawn = jax.random.randint(key, (self.codebook_size,), 0, len(z))
        return {
            "counts": jnp.zeros(self.codebook_size).at[indices].add(1),
            "sums": jnp.zeros((self.codebook_size, self.dim)).at[indices].add(z),
            "drawn": z[drawn],
            "draws": jnp.float32(1),
        }

    def update_statistics(self, statistics: dict[str, Any]) -> None:
        rate, size = 1 - self._config.codebook_decay, self.codebook_size
        counts = self.counts[...] + rate * (statistics["counts"] - self.counts[...])
        sums = self.sums[...] + rate * (statistics["sums"] - self.sums[...])
        total = counts.sum()
        smoothed = (counts + 1e-7) / (total + size * 1e-7) * total
        codebook = sums / jnp.maximum(smoothed, 1e-12)[:, None]
        codebook = jnp.where((counts > 0)[:, None], codebook, self.codebook[...])  # never used: stays where it is
        if self._config.codebook_reset:
            # One latent for each code; after several microbatches, their sum brought back to the spread of one latent.
            centre = statistics["sums"].sum(axis=0) / statistics["counts"].sum()
            draws = statistics["draws"]
            random = centre + (statistics["drawn"] - draws * centre) * jax.lax.rsqrt(draws)
            dead = (counts <= self._config.codebook_reset * total / size)[:, None]
            codebook = jnp.where(dead, random, codebook)
            counts = jnp.where(dead[:, 0], total / size, counts)
            sums = jnp.where(dead, random * total / size, sums)
        self.codebook[...], self.counts[...], self.sums[...] = codebook, counts, sums


class SimVQ(_Table):
    """A frozen random table times one learnt matrix (SimVQ, arXiv 2411.02038): every code moves at every step."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        super().__init__(config)
        shape = (self.codebook_size, self.dim)
        self.frozen = statistic(jax.random.normal(rngs.params(), shape) * self.dim**-0.5, (None, None))
        self.kernel = param(jnp.eye(self.dim), (None, None))

    def table(self) -> jax.Array:
        return jax.lax.stop_gradient(self.frozen[...]) @ self.kernel[...]

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        z, table = z.astype(jnp.float32), self.table()
        indices = nearest(z, table)
        codes = table[indices]
        codebook = jnp.square(jax.lax.stop_gradient(z) - codes).mean()
        losses = {"commitment": self._commitment(z, codes), "codebook": codebook}
        return Quantized(straight_through(z, lambda _: codes), indices, losses, {})


class SVQ(_Table):
    """Stochastic quantisation on the unit sphere (LARP, arXiv 2410.21264, section 3.2).

    In training a code is drawn from softmax(cosine / 0.03), afterwards it is the nearest. The loss is 0.1 times the usual
    one of a codebook learnt by gradients, and an entropy loss over the same softmax, which LARP does not have: without it
    all latents take one code within ten steps of a high learning rate, as the first thing to learn is the mean of all pixels.
    """

    TEMPERATURE, WEIGHT = 0.03, 0.1

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        super().__init__(config)
        self.codebook = param(jax.random.normal(rngs.params(), (self.codebook_size, self.dim)), (None, None))

    def table(self) -> jax.Array:
        return _unit(self.codebook[...])

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        z, table = _unit(z.astype(jnp.float32)), self.table()
        cosines = jnp.einsum("...d,kd->...k", z, table, precision="highest")
        if key is None:
            indices = jnp.argmax(cosines, axis=-1).astype(jnp.int32)
        else:
            indices = jax.random.categorical(key, cosines / self.TEMPERATURE).astype(jnp.int32)
        codes = table[indices]
        codebook = jnp.square(jax.lax.stop_gradient(z) - codes).mean()
        per_position, of_mean = entropies(cosines / self.TEMPERATURE)
        losses = {
            "commitment": self.WEIGHT * self._commitment(z, codes),
            "codebook": self.WEIGHT * codebook,
            "entropy": self._config.entropy_weight * (per_position - of_mean),
        }
        return Quantized(straight_through(z, lambda _: codes), indices, losses, {})


class IBQ(_Table):
    """Index backpropagation (IBQ, arXiv 2412.02692): the gradient of a soft assignment reaches every code.

    The nearest code is the one of the largest inner product. Needs memory for [positions, codes].
    """

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        super().__init__(config)
        table = jax.random.normal(rngs.params(), (self.codebook_size, self.dim)) * self.dim**-0.5
        self.codebook = param(table, (None, None))

    def table(self) -> jax.Array:
        return self.codebook[...]

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        z, table, c = z.astype(jnp.float32), self.table(), self._config
        logits = jnp.einsum("...d,kd->...k", z, table, precision="highest")
        indices = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        probabilities = jax.nn.softmax(logits)
        hard = jax.nn.one_hot(indices, self.codebook_size)
        soft = (probabilities + jax.lax.stop_gradient(hard - probabilities)) @ table
        codes = table[indices]
        stop = jax.lax.stop_gradient
        per_position, of_mean = entropies(logits / c.entropy_temperature)
        losses = {
            "commitment": c.commitment_weight * jnp.square(codes - stop(z)).mean(),
            "codebook": jnp.square(soft - z).mean() + jnp.square(stop(codes) - z).mean(),
            "entropy": c.entropy_weight * (per_position - of_mean),
        }
        return Quantized(soft + stop(codes - soft), indices, losses, {})


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


def nearest(z: jax.Array, table: jax.Array) -> jax.Array:
    """Return the index of the nearest row (Euclidean) for each z [..., d], int32 [...]; the first of equals."""
    distance = jnp.square(table).sum(axis=1) - 2 * jnp.einsum("...d,kd->...k", z, table, precision="highest")
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def entropies(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean entropy of the positions' codes and the entropy of the mean code distribution, in nats."""
    log_p = jax.nn.log_softmax(logits.reshape(-1, logits.shape[-1]))
    p = jnp.exp(log_p)
    mean = p.mean(axis=0)
    return -(p * log_p).sum(axis=-1).mean(), -(mean * jnp.log(jnp.maximum(mean, 1e-20))).sum()
