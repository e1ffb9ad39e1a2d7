"""Heads that predict numbers: a code is a point in space, as FSQ's codes are, and a head gives a density there.

A code has a digit for each level of `levels`, the fastest first; digit i of n stands at (2 i + 1) / n - 1, in the middle of
its share of [-1, 1]. With fine levels that is a continuous token. What is predicted is therefore a code again, and layouts,
caches and token folders need not know.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumos.model.cross_entropy import CrossEntropy
from lumos.model.definition import stack
from lumos.model.heads import Head, in_chunks, refuse
from lumos.model.layers import MLP, Linear, RMSNorm


def digits(codes: jax.Array, levels: tuple[int, ...]) -> list[jax.Array]:
    """Return the digit of codes for each level."""
    strides = np.cumprod([1, *levels[:-1]])
    return [codes // int(stride) % n for n, stride in zip(levels, strides)]


def points(codes: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Return where codes stand, float32 [..., len(levels)] in (-1, 1)."""
    return jnp.stack([(2 * d + 1) / n - 1 for d, n in zip(digits(codes, levels), levels)], axis=-1).astype(jnp.float32)


def nearest(z: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Return the code whose point is nearest to each z [..., len(levels)], int32."""
    sizes, strides = np.array(levels), np.cumprod([1, *levels[:-1]])
    digit = jnp.clip(jnp.floor((z + 1) / 2 * sizes), 0, sizes - 1).astype(jnp.int32)
    return (digit * strides).sum(-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Points(Head):
    """Codes as points."""

    levels: tuple[int, ...] = (8, 5, 5, 5)  # values of each digit, the fastest first; their product is the codebook

    def __post_init__(self):
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels={self.levels}: every digit needs at least 2 values")

    def check(self, num_codes):
        if math.prod(self.levels) != num_codes:
            raise ValueError(
                f"head.levels={self.levels} make {math.prod(self.levels)} codes, but there are {num_codes}; give the tokenizer's levels"
            )

    def _check_draw(self, num_codes):
        if num_codes and num_codes < math.prod(self.levels):
            raise ValueError(
                f"head {self.name!r} draws any of {math.prod(self.levels)} codes, but the codebook has {num_codes}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(_Points, name="mixture"):
    """A mixture of normal distributions with diagonal covariance (DiCoDe, arXiv 2412.04446).

    The probability of a code is that of its cell, so the loss is a likelihood in nats, comparable with that of other heads
    (PixelCNN++, arXiv 1701.05517 section 2.1, with normal distributions). Codes are drawn with these probabilities, so
    samplers, guidance and top-k mean what they mean elsewhere.
    """

    components: int = 8  # normal distributions

    def __post_init__(self):
        super().__post_init__()
        if self.components < 1:
            raise ValueError(f"components={self.components} must be at least 1")

    def build(self, config, vocab_size, num_codes, rngs):
        return _MixtureHead(rngs, config, self.components, len(self.levels))

    def flops(self, config, num_codes):
        return 2.0 * config.model_dim * self.components * (1 + 2 * len(self.levels))

    def loss(self, model, features_BJF, codes_BJ, weights_BJ, context=None, *, chunk, **options):
        refuse("mixture", **options)
        log_BJK, tables = self._log_masses(model.lm_head, features_BJF)
        likely_BJ11, of_code = log_BJK.argmax(-1)[..., None, None], digits(codes_BJ, self.levels)
        right_BJ = 1.0  # where the likeliest component is likeliest
        for table_BJKn, digit_BJ in zip(tables, of_code):
            log_BJK += jnp.take_along_axis(table_BJKn, digit_BJ[..., None, None], axis=-1)[..., 0]
            likely_BJn = jnp.take_along_axis(table_BJKn, likely_BJ11, axis=-2)[..., 0, :]
            right_BJ *= likely_BJn.argmax(-1) == digit_BJ
        nll_BJ = -jax.nn.logsumexp(log_BJK, axis=-1) * weights_BJ
        return CrossEntropy(nll_BJ, nll_BJ, right_BJ * weights_BJ)

    def draw(self, model, features_RJF, noise, combine, choose, chunk, num_codes=0, context=None):
        self._check_draw(num_codes)

        def one(start, features):
            logits = combine(self.log_probabilities(model, features))
            return choose(logits, noise(start, *logits.shape[1:], 0))

        return in_chunks(one, chunk, features_RJF)

    def log_probabilities(self, model, features_BJF) -> jax.Array:
        """Return the logarithm of the probability of every code, float32 [B, J, V]."""
        log_BJKV, tables = self._log_masses(model.lm_head, features_BJF)
        log_BJKV = log_BJKV[..., None]
        for table_BJKn in tables:  # slower digits come later
            log_BJKV = (table_BJKn[..., :, None] + log_BJKV[..., None, :]).reshape(*log_BJKV.shape[:-1], -1)
        return jax.nn.logsumexp(log_BJKV, axis=-2)

    def _log_masses(self, lm_head, features_BJF):
        """Return log weights [B, J, K], and of every digit the log probability of its values [B, J, K, n]."""
        weights, mean, log_scale = lm_head.parameters_of(features_BJF)
        tables = []
        for i, n in enumerate(self.levels):
            edge_n = jnp.linspace(-1, 1, n + 1)[1:-1]  # the outermost cells reach to infinity
            at = (edge_n - mean[..., i, None]) * jnp.exp(-log_scale[..., i, None])
            tables.append(_log_mass(at))
        return jax.nn.log_softmax(weights, axis=-1), tables


def _log_mass(edges: jax.Array) -> jax.Array:
    """Return log(Phi(b) - Phi(a)) of the n + 1 intervals between n edges on the last axis and infinity.

    In the upper half both ends are mirrored, where their difference keeps its digits.
    """
    infinite = jnp.full((*edges.shape[:-1], 1), jnp.inf, edges.dtype)
    low, high = jnp.concatenate([-infinite, edges], axis=-1), jnp.concatenate([edges, infinite], axis=-1)
    mirrored = low > 0
    a, b = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    open_a, open_b = jnp.isneginf(a), jnp.isposinf(b)
    log_a = jax.scipy.special.log_ndtr(jnp.where(open_a, 0.0, a))
    log_b = jnp.where(open_b, 0.0, jax.scipy.special.log_ndtr(jnp.where(open_b, 0.0, b)))
    # The inner where keeps what is not used, and so its gradient, finite.
    ratio = jnp.where(open_a, -1.0, jnp.minimum(log_a - log_b, -jnp.finfo(a.dtype).tiny))
    return log_b + jnp.where(open_a, 0.0, jnp.log(-jnp.expm1(ratio)))


# Log standard deviations lie within +- this: from far below a cell of any codebook to far beyond [-1, 1]; exp stays finite.
_LOG_SCALE = 7.0


class _MixtureHead(nnx.Module):
    def __init__(self, rngs, config, components: int, num_digits: int):
        self._shape = (components, num_digits)
        self.weights = Linear(rngs, (config.model_dim, components), ("embed", None), config)
        # Means spread over [-1, 1] at the start, or all components would stay alike.
        self.means = Linear(rngs, (config.model_dim, components * num_digits), ("embed", None), config, bias=True)
        spread = jax.random.uniform(rngs.params(), (components * num_digits,), minval=-1.0, maxval=1.0)
        self.means.bias[...] = spread.astype(self.means.bias[...].dtype)
        self.scales = Linear(rngs, (config.model_dim, components * num_digits), ("embed", None), config)

    def parameters_of(self, x_BJD):
        """Return logits of the components [B, J, K], their means and log standard deviations [B, J, K, digits], float32."""
        shape = (*x_BJD.shape[:-1], *self._shape)
        mean, scale = (layer(x_BJD).astype(jnp.float32).reshape(shape) for layer in (self.means, self.scales))
        return self.weights(x_BJD).astype(jnp.float32), mean, _LOG_SCALE * jnp.tanh(scale / _LOG_SCALE)


_TIME_FEATURES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(_Points, name="flow"):
    """A small network that carries noise to points, given the hidden state: the diffusion head of MAR and NOVA (arXiv
    2406.11838 section 3.2), trained by flow matching (Show-o2): squares of its error in z_1 - z_0 at a time t between them.

    That is no likelihood: "nll" is the squared error, and samplers that rank by confidence are refused.
    """

    depth: int = 3  # residual layers
    steps: int = 16  # Euler steps from noise to a code
    in_raster, has_log_p = True, False

    def __post_init__(self):
        super().__post_init__()
        if self.depth < 1 or self.steps < 1:
            raise ValueError(f"depth={self.depth} and steps={self.steps} must be at least 1")

    def build(self, config, vocab_size, num_codes, rngs):
        return _FlowHead(rngs, config, len(self.levels), self.depth)

    def flops(self, config, num_codes):
        block = 3 * config.model_dim * config.mlp_dim + config.model_dim * config.model_dim
        return 2.0 * (self.depth * block + config.model_dim**2)

    def loss(self, model, features_BJF, codes_BJ, weights_BJ, context=None, *, chunk, **options):
        refuse("flow", **options)
        noise_key, time_key = jax.random.split(context.key)
        data_BJC = points(codes_BJ, self.levels)
        noise_BJC = jax.random.normal(noise_key, data_BJC.shape)
        t_BJ1 = jax.random.uniform(time_key, (*codes_BJ.shape, 1))
        velocity_BJC = model.lm_head(features_BJF, (1 - t_BJ1) * noise_BJC + t_BJ1 * data_BJC, t_BJ1)
        error_BJ = jnp.square(velocity_BJC - (data_BJC - noise_BJC)).mean(-1) * weights_BJ
        end_BJC = noise_BJC + velocity_BJC  # where a straight line leads
        right_BJ = (nearest(end_BJC, self.levels) == codes_BJ).astype(jnp.float32)
        return CrossEntropy(error_BJ, error_BJ, right_BJ * weights_BJ)

    def draw(self, model, features_RJF, noise, combine, choose, chunk, num_codes=0, context=None):
        self._check_draw(num_codes)

        def one(start, features):
            gumbel = noise(start, features.shape[1], len(self.levels), 0)
            # A Gumbel number is a uniform one in disguise, exp(-exp(-g)), and so is a normal one.
            z = jax.scipy.special.ndtri(jnp.exp(-jnp.exp(-gumbel)))

            def step(i, z):
                t = jnp.full((*features.shape[:2], 1), i / self.steps)
                every_branch = jnp.tile(z, (len(features) // len(z), 1, 1))
                return z + combine(model.lm_head(features, every_branch, t)) / self.steps

            z = jax.lax.fori_loop(0, self.steps, step, z)
            return nearest(z, self.levels), jnp.zeros(z.shape[:-1])

        return in_chunks(one, chunk, features_RJF)


class _FlowHead(nnx.Module):
    def __init__(self, rngs, config, num_digits: int, depth: int):
        dim = config.model_dim
        self._dtype = jnp.dtype(config.dtype)
        self.point = Linear(rngs, (num_digits, dim), (None, "embed"), config, std=num_digits**-0.5)
        self.time = Linear(rngs, (_TIME_FEATURES, dim), (None, "embed"), config, std=_TIME_FEATURES**-0.5)
        self.condition = Linear(rngs, (dim, dim), ("embed", None), config, std=dim**-0.5)
        self.blocks = stack(lambda r: _Residual(config, r), depth, rngs)
        self.out = Linear(rngs, (dim, num_digits), ("embed", None), config)

    def __call__(self, features_BJD, z_BJC, t_BJ1):
        """Return the velocity at points z and times t in [0, 1], float32 [B, J, C]."""
        angle = t_BJ1 * jnp.pi * 2.0 ** jnp.arange(_TIME_FEATURES // 2)
        time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).astype(self._dtype)
        condition = self.condition(features_BJD) + self.time(time)
        x = self.point(z_BJC.astype(self._dtype)) + condition
        graph, params = nnx.split(self.blocks)
        x, _ = jax.lax.scan(lambda x, p: (nnx.merge(graph, p)(x, condition), None), x, params)
        return self.out(x).astype(jnp.float32)


class _Residual(nnx.Module):
    def __init__(self, config, rngs):
        self.norm = RMSNorm(config.model_dim, "embed", config)
        self.scale = Linear(rngs, (config.model_dim, config.model_dim), ("embed", None), config)
        self.mlp = MLP(config, rngs)

    def __call__(self, x, condition):
        return x + self.mlp(self.norm(x) * (1 + self.scale(jax.nn.silu(condition))))
