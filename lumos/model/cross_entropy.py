"""The transformer's loss: cross-entropy of a slice of the vocabulary, never materialised whole.

`linear_cross_entropy` fuses the head with the loss: logits exist for one chunk of positions at a time, and the
backward pass recomputes them, so peak memory is chunk x vocabulary instead of positions x vocabulary. Positions without
weight are sorted to the end, and chunks that hold only such are skipped.

On a mesh the head is gathered once for the forward and once for the backward pass, its gradient is reduced once; a
vocabulary that is split over devices stays split.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from lumos import sharding


class CrossEntropy(NamedTuple):
    """Per-position results, float32, shaped like the labels; 0 where the weight is 0.

    Only `loss` has a gradient: to the hidden states, the head and the weights.
    """

    loss: jax.Array  # weighted: cross-entropy + label smoothing + z-loss
    nll: jax.Array  # weighted negative log-likelihood alone, in nats
    correct: jax.Array  # weighted 0/1: no code is more likely than the target


class _Options(NamedTuple):
    chunk: int
    label_smoothing: float
    z_loss: float


def linear_cross_entropy(
    hidden_BLD: jax.Array,
    head_DV: jax.Array,
    labels_BL: jax.Array,
    weights_BL: jax.Array,
    *,
    chunk: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Return the cross-entropy of softmax(hidden @ head) against labels, per position.

    Args:
      hidden_BLD: final hidden states; [J, D] without a batch axis (then nothing is split over a mesh).
      head_DV: the columns of the head for the V candidate tokens.
      labels_BL: int32 in [0, V). Positions with weight 0 may hold anything.
      weights_BL: float32, 0 removes a position. Where they depend on what is differentiated, every position is computed:
        the gradient of a weight is the loss of its position without it, at weight 0 too.
      chunk: positions per device whose logits exist at once.
      z_loss: weight of log(Z)^2 (PaLM, section 5).
    """
    return _cross_entropy(_Options(chunk, label_smoothing, z_loss), hidden_BLD, head_DV, labels_BL, weights_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options, hidden, head, labels, weights):
    return _forward(options, hidden, head, labels, weights, weights != 0)[0]


def _forward(options, hidden, head, labels, weights, active):
    """Return the results, the loss before weighting and the log-sum-exp; 0 in chunks without an active position."""
    rows, (embed, vocab) = axes_of(hidden, head)
    vocab_size = head.shape[1]

    def local(hidden, head, labels, weights, active):
        head = sharding.all_gather(head, embed, 0)
        split = Chunks(active, options.chunk)

        def one(_, hidden, labels, weights):
            logits = jnp.dot(hidden, head, preferred_element_type=jnp.float32)
            peak = sharding.pmax(logits.max(-1), vocab)
            lse = peak + jnp.log(sharding.psum(jnp.exp(logits - peak[:, None]).sum(-1), vocab))
            index, mine = _local_labels(labels, logits.shape[1], vocab)
            at_label = jnp.take_along_axis(logits, index[:, None], axis=-1)[:, 0]
            at_label = sharding.psum(jnp.where(mine, at_label, 0), vocab)
            nll = lse - at_label
            loss = nll
            if options.label_smoothing:
                mean = sharding.psum(logits.sum(-1), vocab) / vocab_size
                loss = (1 - options.label_smoothing) * nll + options.label_smoothing * (lse - mean)
            if options.z_loss:
                loss = loss + options.z_loss * jnp.square(lse)
            return (), (loss * weights, nll * weights, (at_label >= peak) * weights, loss, lse)

        # A vocabulary that is split needs the same chunks on all its devices, as they add up inside; they agree, because
        # they hold the same positions.
        _, out = split.scan(one, (), (hidden, labels, weights))
        loss, nll, correct, plain_loss, lse = (split.join(x) for x in out)
        return CrossEntropy(loss, nll, correct), plain_loss, lse

    place = sharding.per_device(
        local, ((*rows, None), (embed, vocab), rows, rows, rows), (CrossEntropy(rows, rows, rows), rows, rows)
    )
    return place(hidden, head, labels, weights, active)


def _cross_entropy_fwd(options, hidden, head, labels, weights):
    learnt = weights.perturbed
    hidden, head, labels, weights = (x.value for x in (hidden, head, labels, weights))
    active = jnp.ones(weights.shape, bool) if learnt else weights != 0
    out, plain_loss, lse = _forward(options, hidden, head, labels, weights, active)
    return out, (hidden, head, labels, weights, active, lse, plain_loss if learnt else None)


def _cross_entropy_bwd(options, saved, cotangents):
    hidden, head, labels, weights, active, lse, plain_loss = saved
    if isinstance(cotangents.loss, SymbolicZero):  # only results without a gradient were used
        return jax.tree.map(_zero, (hidden, head, labels, weights))
    rows, (embed, vocab) = axes_of(hidden, head)
    vocab_size = head.shape[1]

    def local(hidden, head, labels, active, scale, lse):
        full = sharding.all_gather(head, embed, 0)
        # The chunks of the forward pass: `lse` exists for these alone, wherever the scale happens to be 0.
        split = Chunks(active, options.chunk)

        def one(dhead, hidden, labels, scale, lse):
            logits = jnp.dot(hidden, full, preferred_element_type=jnp.float32)
            index, mine = _local_labels(labels, logits.shape[1], vocab)
            p = jnp.exp(logits - lse[:, None])
            at_label = (jnp.arange(logits.shape[1]) == index[:, None]) & mine[:, None]
            dlogits = p - (1 - options.label_smoothing) * at_label - options.label_smoothing / vocab_size
            if options.z_loss:
                dlogits = dlogits + 2 * options.z_loss * lse[:, None] * p
            dlogits = (dlogits * scale[:, None]).astype(hidden.dtype)
            dhidden = jnp.dot(dlogits, full.T, preferred_element_type=jnp.float32)
            return dhead + jnp.dot(hidden.T, dlogits, preferred_element_type=jnp.float32), (dhidden,)

        dhead, (dhidden,) = split.scan(one, jnp.zeros(full.shape, jnp.float32), (hidden, labels, scale, lse))
        # Summed over devices in the head's dtype, like the gradients of all other weights.
        dhead = sharding.psum_except(dhead.astype(head.dtype), rows, without=embed)
        dhead = sharding.reduce_scatter(dhead, embed, 0)
        return sharding.psum(split.join(dhidden), vocab).astype(hidden.dtype), dhead

    place = sharding.per_device(
        local, ((*rows, None), (embed, vocab), rows, rows, rows, rows), ((*rows, None), (embed, vocab))
    )
    dhidden, dhead = place(hidden, head, labels, active, weights * cotangents.loss, lse)
    dweights = _zero(weights) if plain_loss is None else (plain_loss * cotangents.loss).astype(weights.dtype)
    return dhidden, dhead, _zero(labels), dweights


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd, symbolic_zeros=True)


def _zero(x):
    """Return the zero cotangent of an argument."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)


def axes_of(hidden, head):
    """Return the logical axes of the positions and of the head, as far as sizes divide."""
    if hidden.ndim == 2:
        return (None,), (None, None)
    rows = sharding.axis_of(hidden.shape[0], "batch"), sharding.axis_of(hidden.shape[1], "length")
    if rows[0] is None:
        return (None, None), (None, None)
    return rows, (sharding.axis_of(head.shape[0], "embed"), sharding.axis_of(head.shape[1], "vocab"))


def _local_labels(labels, num_local, vocab):
    """Return the labels as columns of this device's part of the vocabulary, and which of them lie in it."""
    index = labels - sharding.shard_index(vocab) * num_local
    return jnp.clip(index, 0, num_local - 1), (index >= 0) & (index < num_local)


class Chunks:
    """Positions of one device, the active ones first, cut into equal chunks."""

    def __init__(self, active, chunk):
        self._shape = active.shape
        num = active.size
        self._chunk = min(chunk, num)
        self._extra = -num % self._chunk
        self._order = None if num == self._chunk else jnp.argsort(~active.reshape(-1), stable=True)
        self._used = jnp.sum(active)

    def _split(self, x):
        x = x.reshape(-1, *x.shape[len(self._shape) :])
        if self._order is None:
            return x[None]
        x = jnp.pad(x[self._order], [(0, self._extra)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, self._chunk, *x.shape[1:])

    def join(self, x):
        """Undo the split."""
        x = x.reshape(-1, *x.shape[2:])
        if self._order is not None:
            x = x[jnp.argsort(self._order)]
        return x.reshape(*self._shape, *x.shape[1:])

    def scan(self, body, carry, arrays):
        """Run `carry, outs = body(carry, *chunk)` over chunks; outs are 0 in chunks without an active position."""
        slices = tuple(self._split(x) for x in arrays)
        if self._order is None:
            carry, outs = body(carry, *(x[0] for x in slices))
            return carry, tuple(x[None] for x in outs)
        shapes = jax.eval_shape(lambda: body(carry, *(x[0] for x in slices))[1])
        zeros = tuple(jnp.zeros(x.shape, x.dtype) for x in shapes)

        def step(carry, chunk):
            index, *arrays = chunk
            return jax.lax.cond(index * self._chunk < self._used, lambda: body(carry, *arrays), lambda: (carry, zeros))

        return jax.lax.scan(step, carry, (jnp.arange(slices[0].shape[0]), *slices))
