"""Slot 8, heads: from hidden states to a loss on codes, and to drawn codes.

A head predicts a code in one or several factors, each a softmax over the columns of a matrix: one factor for the whole
code, or one for each of its digits. `loss` and `draw` need no more; heads of other kinds override both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumos.model.cross_entropy import CrossEntropy, linear_cross_entropy
from lumos.model.definition import param, stack
from lumos.model.layers import MLP, Linear, RMSNorm
from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.config import ModelConfig


class Factor(NamedTuple):
    """Part of a code: code // stride % size is drawn from softmax(features @ matrix_FV)."""

    matrix_FV: jax.Array
    stride: int
    size: int


class Head(Slot):
    """How codes are predicted. `num_arms` > 1: a code is predicted from that many positions, with weights of each."""

    num_arms = 1

    def check(self, num_codes: int) -> None:
        """Raise ValueError if there are not so many codes."""

    def build(self, config: ModelConfig, vocab_size: int, num_codes: int, rngs: nnx.Rngs) -> nnx.Module:
        """Return the module that becomes `lm_head` of the transformer."""
        raise NotImplementedError

    def factors(self, model: nnx.Module, num_codes: int = 0) -> tuple[Factor, ...]:
        """Return the factors of a code; with `num_codes`, only so many of the codes can be drawn (a codebook that is smaller
        than the vocabulary)."""
        raise NotImplementedError

    def flops(self, config: ModelConfig, num_codes: int) -> float:
        """Return the FLOPs of the head for one code in a forward pass."""
        return 2.0 * config.model_dim * num_codes

    def arms(self, model: nnx.Module, hidden_BQD: jax.Array) -> jax.Array:
        """Return the features of every position for every arm, [B, Q, arms, D]."""
        return hidden_BQD[:, :, None]

    def loss(self, model: nnx.Module, features_BJF, codes_BJ, weights_BJ, **options) -> CrossEntropy:
        """Return the weighted losses of positions, [B, J]; see `linear_cross_entropy` for the options.

        A code's likelihood is the product over its factors, and it is right when all of them are.
        """
        factors = self.factors(model)
        if len(factors) == 1:
            return linear_cross_entropy(features_BJF, factors[0].matrix_FV, codes_BJ, weights_BJ, **options)
        digits = [codes_BJ // f.stride % f.size for f in factors]
        parts = [
            linear_cross_entropy(features_BJF, f.matrix_FV, digit_BJ, weights_BJ, **options)
            for f, digit_BJ in zip(factors, digits)
        ]
        all_right_BJ = math.prod((part.correct != 0).astype(jnp.float32) for part in parts)
        return CrossEntropy(sum(p.loss for p in parts), sum(p.nll for p in parts), all_right_BJ * weights_BJ)

    def draw(
        self,
        model: nnx.Module,
        features_RJF,
        noise: Callable,
        combine: Callable,
        choose: Callable,
        chunk: int,
        num_codes: int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """Draw a code for each position; return codes int32 [B, J] and their log-probabilities [B, J].

        Args:
          features_RJF: of all branches, B rows each.
          noise: (first position, positions, codes, factor) -> Gumbel numbers [B, positions, codes].
          combine: logits of all branches [R, j, V] -> logits [B, j, V].
          choose: (logits, gumbel) -> (code, log-probability).
          chunk: positions whose logits exist at a time.
        """
        codes, log_p = 0, 0
        for i, factor in enumerate(self.factors(model, num_codes)):
            part, part_log_p = _draw_in_chunks(factor.matrix_FV, i, features_RJF, noise, combine, choose, chunk)
            codes, log_p = (part, part_log_p) if i == 0 else (codes + part * factor.stride, log_p + part_log_p)
        return codes, log_p


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical(Head, name="categorical"):
    """One softmax over all codes. The matrix has a column for every token, text included, as in the released models."""

    def build(self, config, vocab_size, num_codes, rngs):
        return Linear(rngs, (config.model_dim, vocab_size), ("embed", "vocab"), config)

    def factors(self, model, num_codes=0):
        start, end = model.vocabulary.visual_start, model.vocabulary.visual_end
        end = min(end, start + num_codes) if num_codes else end
        return (Factor(model.head(start, end), 1, end - start),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Head, name="digits"):
    """A softmax for each digit of a code, independent given the hidden state (Genie and 1X: 2^18 codes as 2 x 512)."""

    sizes: tuple[int, ...] = (512, 512)  # values of each digit, the fastest first; their product is the codebook

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < 2:
            raise ValueError(f"sizes={self.sizes}: every digit needs at least 2 values")

    def check(self, num_codes):
        if math.prod(self.sizes) != num_codes:
            raise ValueError(f"head.sizes={self.sizes} make {math.prod(self.sizes)} codes, but there are {num_codes}")

    def build(self, config, vocab_size, num_codes, rngs):
        return Linear(rngs, (config.model_dim, sum(self.sizes)), ("embed", None), config)

    def flops(self, config, num_codes):
        return 2.0 * config.model_dim * sum(self.sizes)

    def factors(self, model, num_codes=0):
        if num_codes and num_codes < math.prod(self.sizes):
            raise ValueError(
                f"head 'digits' draws any of {math.prod(self.sizes)} codes, but the codebook has {num_codes}"
            )
        columns = model.lm_head.kernel[...].astype(model.config.dtype)
        ends = np.cumsum(self.sizes)
        return tuple(
            Factor(columns[:, end - size : end], math.prod(self.sizes[:i]), size)
            for i, (end, size) in enumerate(zip(ends, self.sizes))
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes(Head, name="axes"):
    """A head for each axis: the next column, row and frame; where several predict a code, their logits are averaged (NAR,
    arXiv 2503.10696 section 3.2). Each head has an MLP of its own on the hidden states."""

    num_arms = 3

    def build(self, config, vocab_size, num_codes, rngs):
        return _AxisHeads(config, num_codes, rngs)

    def factors(self, model, num_codes=0):
        matrix_NDV = model.lm_head.kernel[...][..., : num_codes or None].astype(model.config.dtype)
        return (Factor(matrix_NDV.reshape(-1, matrix_NDV.shape[-1]), 1, matrix_NDV.shape[-1]),)

    def flops(self, config, num_codes):
        adapter = 2.0 * 3 * config.model_dim * config.mlp_dim
        return self.num_arms * (2.0 * config.model_dim * num_codes + adapter)

    def arms(self, model, hidden_BQD):
        return model.lm_head(hidden_BQD)


class _AxisHeads(nnx.Module):
    def __init__(self, config: ModelConfig, num_codes: int, rngs: nnx.Rngs):
        self.adapters = stack(lambda r: _Adapter(config, r), 3, rngs)
        kernel = config.init_std * jax.random.normal(rngs.params(), (3, config.model_dim, num_codes))
        self.kernel = param(kernel.astype(config.param_dtype), (None, "embed", "vocab"))

    def __call__(self, x_BQD):
        graph, params = nnx.split(self.adapters)
        of_arm = lambda a: nnx.merge(graph, jax.tree.map(lambda x: x[a], params))(x_BQD)
        return jnp.stack([of_arm(a) for a in range(3)], axis=2)


class _Adapter(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.mlp = MLP(config, rngs)
        self.norm = RMSNorm(config.model_dim, "embed", config)

    def __call__(self, x_BQD):
        return self.norm(x_BQD + self.mlp(x_BQD))


def gather_arms(arms_BQND: jax.Array, source_JN: np.ndarray | jax.Array) -> jax.Array:
    """Return the features of codes that are predicted from `source_JN` (-1 = not by this arm), [B, J, arms * D].

    Features of arms lie behind each other and are divided by how many there are: the product with the stacked matrices is
    then the average of the arms' logits.
    """
    source_JN = jnp.asarray(source_JN)
    used_JN = source_JN >= 0
    share_JN = used_JN / jnp.maximum(used_JN.sum(axis=-1, keepdims=True), 1)
    parts = [arms_BQND[:, jnp.maximum(source_JN[:, a], 0), a] for a in range(arms_BQND.shape[2])]
    features = [part * share_JN[:, a, None].astype(part.dtype) for a, part in enumerate(parts)]
    return jnp.concatenate(features, axis=-1)


def _draw_in_chunks(matrix_FV, factor: int, features_RJF, noise, combine, choose, chunk: int):
    num = features_RJF.shape[1]
    chunk = min(chunk, num)
    padded = jnp.pad(features_RJF, ((0, 0), (0, -num % chunk), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(padded.shape[0], -1, chunk, padded.shape[-1]), 1, 0)

    def one(slices):
        index, features = slices
        logits = combine(jnp.einsum("bjd,dv->bjv", features, matrix_FV, preferred_element_type=jnp.float32))
        codes, log_p = choose(logits, noise(index * chunk, chunk, logits.shape[-1], factor))
        return codes.astype(jnp.int32), log_p

    if chunks.shape[0] == 1:
        return one((0, chunks[0]))
    codes, log_p = jax.lax.map(one, (jnp.arange(chunks.shape[0]), chunks))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :num] for x in (codes, log_p))
