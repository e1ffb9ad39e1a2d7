"""Slot 8, heads: from hidden states to a loss on codes, and to drawn codes.

A head predicts a code in one or several factors, each a softmax over the columns of a matrix: one factor for the whole
code, or one for each of its digits. `loss` and `draw` need no more; heads of other kinds override both
(`model.copy_head`, `model.continuous_heads`); `model.axis_heads` has one for each axis.
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

from lumos.errors import UserError
from lumos.model.cross_entropy import CrossEntropy, linear_cross_entropy
from lumos.model.layers import Linear
from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.config import ModelConfig


class Factor(NamedTuple):
    """Part of a code: code // stride % size is drawn from softmax(features @ matrix_FV)."""

    matrix_FV: jax.Array
    stride: int
    size: int


class Context(NamedTuple):
    """What a head may need beside hidden states.

    before_BTHW: the code that the model sees one frame before each predicted cell, in its place; -1 = none, or hidden.
    key: random key of a training batch.
    """

    before_BTHW: jax.Array
    key: jax.Array | None = None


class Head(Slot):
    """How codes are predicted. `num_arms` > 1: a code is predicted from that many positions, with weights of each."""

    num_arms = 1
    in_raster = False  # whether positions come in raster order, [B, T * H * W], rather than as they lie in memory
    reads_before = False  # whether `Context.before_BTHW` is read: generation then goes by whole frames
    has_log_p = True  # whether drawn codes come with their log-probability

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

    def loss(
        self, model: nnx.Module, features_BJF, codes_BJ, weights_BJ, context: Context | None = None, **options
    ) -> CrossEntropy:
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
        context: Context | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Draw a code for each position; return codes int32 [B, J] and their log-probabilities [B, J].

        Args:
          features_RJF: of all branches, B rows each.
          noise: (first position, positions, codes, factor) -> Gumbel numbers [B, positions, codes].
          combine: logits of all branches [R, j, V] -> logits [B, j, V].
          choose: (logits, gumbel) -> (code, log-probability).
          chunk: positions whose logits exist at a time.
          context: its `before_BTHW` has a frame for each group in flight.
        """
        codes, log_p = 0, 0
        for i, factor in enumerate(self.factors(model, num_codes)):

            def one(start, features, i=i, factor=factor):
                logits = combine(times(features, factor.matrix_FV))
                return choose(logits, noise(start, *logits.shape[1:], i))

            part, part_log_p = in_chunks(one, chunk, features_RJF)
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


def refuse(head: str, **options: float) -> None:
    """Raise UserError for options of the loss that a head has no use for."""
    for name, value in options.items():
        if value:
            raise UserError(f"config.loss.{name}={value} does not go with model.head={head!r}; set it to 0")


def times(features_RJF: jax.Array, matrix_FV: jax.Array) -> jax.Array:
    """Return logits float32 [R, J, V]."""
    return jnp.einsum("bjd,dv->bjv", features_RJF, matrix_FV, preferred_element_type=jnp.float32)


def in_chunks(draw: Callable, chunk: int, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return codes and log-probabilities [B, J] of `draw(first position, *arrays)`, called for `chunk` positions at a time.

    `arrays` have positions on their second axis.
    """
    num = arrays[0].shape[1]
    chunk = min(chunk, num)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, -num % chunk)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def one(slices):
        index, *arrays = slices
        codes, log_p = draw(index * chunk, *arrays)
        return codes.astype(jnp.int32), log_p

    chunks = [split(x) for x in arrays]
    if chunks[0].shape[0] == 1:
        return one((0, *(x[0] for x in chunks)))
    codes, log_p = jax.lax.map(one, (jnp.arange(chunks[0].shape[0]), *chunks))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :num] for x in (codes, log_p))
