"""The transformer's loss: cross-entropy of a slice of the vocabulary, never materialised whole.

`linear_cross_entropy` fuses the head with the loss: logits exist for one chunk of positions at a time, and the
backward pass recomputes them, so peak memory is chunk x vocabulary instead of positions x vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class CrossEntropy(NamedTuple):
    """Per-position results, float32 [J]; both are 0 where the weight is 0."""

    loss: jax.Array  # weighted: cross-entropy + label smoothing + z-loss
    nll: jax.Array  # weighted negative log-likelihood alone, in nats
    correct: jax.Array  # weighted 0/1: the most likely code is the target


def linear_cross_entropy(
    hidden_JD: jax.Array,
    head_DV: jax.Array,
    labels_J: jax.Array,
    weights_J: jax.Array,
    *,
    chunk: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Return the cross-entropy of softmax(hidden @ head) against labels, per position.

    Args:
      hidden_JD: final hidden states of J positions.
      head_DV: the columns of the head for the V candidate tokens.
      labels_J: int32 in [0, V). Positions with weight 0 may hold anything.
      weights_J: float32, 0 removes a position.
      chunk: positions whose logits exist at once.
      z_loss: weight of log(Z)^2 (PaLM, section 5).
    """
    num = hidden_JD.shape[0]
    chunk = min(chunk, num)
    extra = -num % chunk
    padded = [jnp.pad(a, [(0, extra)] + [(0, 0)] * (a.ndim - 1)) for a in (hidden_JD, labels_J, weights_J)]
    chunks = [a.reshape(-1, chunk, *a.shape[1:]) for a in padded]

    @jax.checkpoint
    def one(head_DV, hidden, labels, weights):
        logits = jnp.dot(hidden, head_DV, preferred_element_type=jnp.float32)
        lse = jax.nn.logsumexp(logits, axis=-1)
        labels = jnp.clip(labels, 0, logits.shape[-1] - 1)
        nll = lse - jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
        loss = nll
        if label_smoothing:
            loss = (1 - label_smoothing) * nll + label_smoothing * (lse - logits.mean(-1))
        if z_loss:
            loss = loss + z_loss * jnp.square(lse)
        correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        return CrossEntropy(loss * weights, nll * weights, jax.lax.stop_gradient(correct * weights))

    if chunks[0].shape[0] == 1:
        out = one(head_DV, *(a[0] for a in chunks))
    else:
        out = jax.lax.map(lambda slices: one(head_DV, *slices), tuple(chunks))
        out = jax.tree.map(lambda a: a.reshape(-1), out)
    return jax.tree.map(lambda a: a[:num], out)
