"""Flash attention of cuDNN (through `jax.nn.dot_product_attention`) over key ranges, on GPUs.

cuDNN knows no masks of ours, but needs none: queries that follow one another and see the same keys are one call over those
keys alone, and queries of which each sees one key more than the one before are one causal call. A frame-causal video of 7
latent frames is 8 calls a layer (`StaticRanges.calls`), in which nothing invisible is computed. Keys that a row does not see
(padding, dropped text) come first: rows are moved so that they begin with the first visible key, and end by their length.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lumos import sharding
from lumos.sequence.key_ranges import Call, KeyRanges, StaticRanges

# What the backward pass needs of the forward pass, as the primitive that makes it is called: remat policies can keep it.
PRIMITIVE = "dot_product_attention_fwd"
_DTYPES = ("bfloat16", "float16")
_MOST_CALLS = 64  # a layer
_MOST_HEAD_DIM = 128


def serves(q_BQNA: jax.Array, keys: KeyRanges) -> bool:
    """Whether cuDNN is the right choice for whole sequences: on a GPU, in half precision, with few different queries."""
    if not _knows(q_BQNA, keys) or keys.static is None or keys.order_S is not None:
        return False
    return len(keys.static.calls) <= _MOST_CALLS


def serves_part(q_BQNA: jax.Array, keys: KeyRanges) -> bool:
    """Whether cuDNN is the right choice for queries of which all see the same keys."""
    return _knows(q_BQNA, keys) and keys.alike


def _knows(q_BQNA: jax.Array, keys: KeyRanges) -> bool:
    head_dim = q_BQNA.shape[-1]
    fits = q_BQNA.dtype.name in _DTYPES and head_dim <= _MOST_HEAD_DIM and head_dim % 8 == 0
    return sharding.platform() == "gpu" and fits and keys.bias_BS is None


def attend(q_BQNA, k_BSKA, v_BSKA, first_B, static: StaticRanges, implementation: str = "cudnn") -> jax.Array:
    """Return what `attention.attend` does for static ranges, without the keys before `first_B` [B] (None: all are visible)."""
    moved = (k_BSKA, v_BSKA) if first_B is None else (_from(k_BSKA, first_B), _from(v_BSKA, first_B))

    def of(call: Call):
        q = q_BQNA[:, call.first : call.first + call.size]
        hidden_B = None
        if call.ranges and call.ranges[0][0] == 0 and len(call.ranges) == 1:  # moved once for all of them
            k, v = (x[:, : call.ranges[0][1]] for x in moved)
            hidden_B = None if first_B is None else jnp.minimum(first_B, call.ranges[0][1])
        elif call.ranges:
            k, v = (jnp.concatenate([x[:, start:end] for start, end in call.ranges], axis=1) for x in (k_BSKA, v_BSKA))
            if first_B is not None:
                hidden_B = sum(jnp.clip(first_B - start, 0, end - start) for start, end in call.ranges)
                k, v = _from(k, hidden_B), _from(v, hidden_B)
        else:
            return jnp.zeros_like(q)
        run = functools.partial(jax.nn.dot_product_attention, is_causal=call.is_causal, implementation=implementation)
        if hidden_B is None:
            return run(q, k, v)
        length_B = (k.shape[1] - hidden_B).astype(jnp.int32)
        if call.is_causal:  # the queries are the tokens of the keys
            out = run(_from(q, hidden_B), k, v, query_seq_lengths=length_B, key_value_seq_lengths=length_B)
            return _from(out, -hidden_B)
        out = run(q, k, v, query_seq_lengths=_full(q), key_value_seq_lengths=length_B)
        return jnp.where((length_B > 0)[:, None, None, None], out, 0)

    return jnp.concatenate([of(call) for call in static.calls], axis=1)


def attend_parts(
    q_BQNA, parts: list[tuple[jax.Array, jax.Array, KeyRanges]], implementation: str = "cudnn"
) -> jax.Array:
    """Return what `attention.attend_parts` does, for queries that all see the same keys of each part (k, v, KeyRanges).

    The keys that a row sees are put one behind the other: to merge the results of parts would need their log-sum-exp, which JAX rounds to
    half precision.
    """
    k_BSKA, v_BSKA = (jnp.concatenate(of_parts, axis=1) for of_parts in list(zip(*parts))[:2])
    place_S, offset, end_B = jnp.arange(k_BSKA.shape[1]), 0, jnp.zeros(len(q_BQNA), jnp.int32)
    key_BS = jnp.zeros((len(q_BQNA), len(place_S)), jnp.int32)
    for k, _, keys in parts:
        for start_BQ, stop_BQ in zip(keys.start_RBQ, keys.end_RBQ):
            start_B, length_B = start_BQ[:, 0], jnp.minimum(stop_BQ, k.shape[1])[:, 0] - start_BQ[:, 0]
            begin_B, end_B = end_B, end_B + jnp.maximum(length_B, 0)
            is_here_BS = (place_S >= begin_B[:, None]) & (place_S < end_B[:, None])
            key_BS = jnp.where(is_here_BS, place_S + (offset + start_B - begin_B)[:, None], key_BS)
        offset += k.shape[1]
    seen_BS11 = (place_S < end_B[:, None])[..., None, None]
    k, v = (jnp.where(seen_BS11, jnp.take_along_axis(x, key_BS[..., None, None], axis=1), 0) for x in (k_BSKA, v_BSKA))
    out = jax.nn.dot_product_attention(
        q_BQNA, k, v, query_seq_lengths=_full(q_BQNA), key_value_seq_lengths=end_B, implementation=implementation
    )
    return jnp.where((end_B > 0)[:, None, None, None], out, 0)


def _full(q_BQNA) -> jax.Array:
    return jnp.full(len(q_BQNA), q_BQNA.shape[1], jnp.int32)


@jax.custom_vjp
def _from(x_BS__, first_B):
    """Return rows that begin at a place of x; zeros where there is nothing (not the numbers of padding)."""
    place_BS = jnp.arange(x_BS__.shape[1]) + first_B[:, None]
    inside_BS = (place_BS >= 0) & (place_BS < x_BS__.shape[1])
    moved = jnp.take_along_axis(x_BS__, jnp.where(inside_BS, place_BS, 0)[..., None, None], axis=1)
    return jnp.where(inside_BS[..., None, None], moved, 0)


# The gradient is a gather too; JAX would derive a scatter, which is slow.
_from.defvjp(
    lambda x, first: (_from(x, first), first),
    lambda first, dx: (_from(dx, -first), np.zeros(first.shape, jax.dtypes.float0)),
)
