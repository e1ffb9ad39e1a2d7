"""Slot 6, sampler and guidance: draw a code for every unknown cell, keep the confident ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def guide(logits: jax.Array, scale: float) -> jax.Array:
    """Classifier-free guidance on rows [conditional..., unconditional...]: u + scale (c - u). Scale 1 takes plain rows."""
    if scale == 1.0:
        return logits
    conditional, unconditional = jnp.split(logits, 2)
    return unconditional + scale * (conditional - unconditional)


def draw(
    key: jax.Array, hidden_BJD: jax.Array, head_DV: jax.Array, *, guidance: float, top_k: int, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Draw one code per cell and return (codes int32 [B, J], log-probability of the drawn code [B, J]).

    `hidden_BJD` has 2B rows under guidance. Logits exist for `chunk` cells at a time.
    """
    num = hidden_BJD.shape[1]
    chunk = min(chunk, num)
    padded = jnp.pad(hidden_BJD, ((0, 0), (0, -num % chunk), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(padded.shape[0], -1, chunk, padded.shape[-1]), 1, 0)

    def one(slices):
        index, hidden = slices
        logits = guide(jnp.einsum("bjd,dv->bjv", hidden, head_DV, preferred_element_type=jnp.float32), guidance)
        if top_k:
            least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        codes = jnp.argmax(logits + jax.random.gumbel(jax.random.fold_in(key, index), logits.shape), axis=-1)
        chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
        return codes.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)

    codes, log_p = jax.lax.map(one, (jnp.arange(chunks.shape[0]), chunks))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :num] for x in (codes, log_p))


def keep_confident(
    key: jax.Array, log_p_BJ: jax.Array, known_BJ: jax.Array, num_unknown: jax.Array, temperature: jax.Array
) -> jax.Array:
    """Return the new known mask: all but the `num_unknown` least confident cells (log p + temperature * Gumbel).

    Known cells stay known (MaskGIT; Lumos-1 section 3.4).
    """
    confidence = log_p_BJ + temperature * jax.random.gumbel(key, log_p_BJ.shape)
    confidence = jnp.where(known_BJ, jnp.inf, confidence)
    rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
    return known_BJ | (rank >= num_unknown)
