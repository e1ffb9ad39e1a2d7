"""How much the queries of a pass attend to each key of the cache: what a policy may choose tokens by.

Both measures cost no more than attention over the cache, once for each frame that is written. Nothing of size [Q, S] is kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumos.sequence.key_ranges import KeyRanges

_BLOCK = 512  # keys whose probabilities exist at once


def logit_sum(q_BQNA: jax.Array, k_BSKA: jax.Array, keys: KeyRanges, lse_BQN: jax.Array) -> jax.Array:
    """Return the sum over queries and heads of q k, float32 [B, S] (Deep Forcing, participative compression, arXiv 2512.05081)."""
    batch, _, heads, dim = q_BQNA.shape
    kv_heads = k_BSKA.shape[2]
    q_BKA = q_BQNA.astype(jnp.float32).reshape(batch, -1, kv_heads, heads // kv_heads, dim).sum((1, 3))
    return jnp.einsum("bka,bska->bs", q_BKA, k_BSKA.astype(jnp.float32))


def softmax_mass(q_BQNA: jax.Array, k_BSKA: jax.Array, keys: KeyRanges, lse_BQN: jax.Array) -> jax.Array:
    """Return the sum over queries and heads of the attention probabilities, float32 [B, S].

    lse_BQN: log-sum-exp of the logits over all keys, which may be more than those of the cache.
    """
    batch, length, heads, dim = q_BQNA.shape
    num_keys, kv_heads = k_BSKA.shape[1:3]
    size = min(_BLOCK, num_keys)
    split = lambda x: x.reshape(batch, length, kv_heads, heads // kv_heads, *x.shape[3:])
    q_BQKGA, lse_BQKG = split(q_BQNA), split(lse_BQN)

    def block(first):
        k = jax.lax.dynamic_slice_in_dim(k_BSKA, first, size, axis=1)
        logits = jnp.einsum("bqkga,bska->bqkgs", q_BQKGA, k, preferred_element_type=jnp.float32) * dim**-0.5
        if keys.bias_BS is not None:
            logits += jax.lax.dynamic_slice_in_dim(keys.bias_BS, first, size, axis=1)[:, None, None, None]
        key = first + jnp.arange(size)
        seen_BQs = ((key >= keys.start_RBQ[..., None]) & (key < keys.end_RBQ[..., None])).any(0)
        p = jnp.exp(logits - lse_BQKG[..., None])
        return jnp.where(seen_BQs[:, :, None, None], p, 0).sum((1, 2, 3))

    # The last block ends with the keys; those that it shares with the one before come out the same.
    starts = [*range(0, num_keys - size, size), num_keys - size]
    *parts, last = jax.lax.map(block, jnp.array(starts))
    return jnp.concatenate([*parts, last[:, len(parts) * size - starts[-1] :]], axis=1)


MEASURES = {"logit_sum": logit_sum, "softmax_mass": softmax_mass}
