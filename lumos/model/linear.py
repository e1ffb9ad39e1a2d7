"""Linear attention: sums of keys and values in place of a cache (SANA-Video, arXiv 2509.24695).

    out_i = R_i f(q_i) sum_j R_j f(k_j) v_j / (f(q_i) sum_j f(k_j)),   f = ReLU, R = rotation by position

over the tokens j that i sees. Rotation comes after f, and not in the denominator, which could be 0 otherwise. What a token
sees is a prefix of the sequence that ends with its own group, so sums over groups, added up from group to group, are all
that is needed: nothing has the size of queries times keys, and what generation keeps does not grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from lumos.errors import UserError
from lumos.model import rope
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.tokens import T_SCALE, Positions

if TYPE_CHECKING:
    from lumos.config import ModelConfig

_LEAST = 1e-6  # denominator of a token that sees nothing


class Sums(NamedTuple):
    """Sums over tokens, float32. kv: rotated keys times values, [..., B, K, A, A] (key, then value); k: keys, [..., B, K, A]."""

    kv: jax.Array
    k: jax.Array

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.kv + other.kv, self.k + other.k)


def attend(q_BQNA, k_BQKA, v_BQKA, cos, sin, keys: KeyRanges, past: Sums | None = None) -> tuple[jax.Array, Sums]:
    """Return the values that the tokens see among each other and in `past`, [B, Q, N, A], and the sums over these tokens.

    Takes queries and keys before rotation. A bias of `keys` is the logarithm of what a key weighs.
    """
    if keys.runs is None:
        raise UserError(
            "config.model.mixer: linear attention sums over prefixes: use config.sequence.attention='causal', copies=1 and mesh.context=1"
        )
    batch, length, heads, dim = q_BQNA.shape
    kv_heads = k_BQKA.shape[2]
    weight_BQ = (jnp.arange(length) >= keys.start_RBQ[0, :, :1]).astype(jnp.float32)
    if keys.bias_BS is not None:
        weight_BQ *= jnp.exp(keys.bias_BS)
    feature = lambda x: jax.nn.relu(x.astype(jnp.float32))
    grouped = lambda x: x.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    k, q = feature(k_BQKA) * weight_BQ[..., None, None], feature(q_BQNA)
    k_rotated, q_rotated, q, v = (
        rope.rotate(k, cos, sin),
        grouped(rope.rotate(q, cos, sin)),
        grouped(q),
        v_BQKA.astype(jnp.float32),
    )
    own = Sums(jnp.zeros((batch, kv_heads, dim, dim)), jnp.zeros((batch, kv_heads, dim)))
    outs, at = [], 0
    for num, size in keys.runs:  # groups of one size
        split = lambda x, at=at, num=num, size=size: x[:, at : at + num * size].reshape(batch, num, size, *x.shape[2:])
        kv = jnp.einsum("bcska,bcskd->bckad", split(k_rotated), split(v))
        # Of each group and all before it.
        so_far = Sums(own.kv[:, None] + jnp.cumsum(kv, axis=1), own.k[:, None] + jnp.cumsum(split(k).sum(2), axis=1))
        own = Sums(so_far.kv[:, -1], so_far.k[:, -1])
        seen = so_far if past is None else so_far + Sums(past.kv[:, None], past.k[:, None])
        values = jnp.einsum("bcskga,bckad->bcskgd", split(q_rotated), seen.kv)
        total = jnp.einsum("bcskga,bcka->bcskg", split(q), seen.k)
        outs.append((values / jnp.maximum(total, _LEAST)[..., None]).reshape(batch, num * size, heads, dim))
        at += num * size
    return jnp.concatenate(outs, axis=1).astype(q_BQNA.dtype), own


def moved(sums: Sums, frames: jax.Array, index: jax.Array, config: ModelConfig) -> Sums:
    """Return the sums over the same tokens so many latent frames (and places of the sequence) later: one rotation."""
    zero = jnp.zeros(1, jnp.int32)
    positions = Positions(zero + index, zero + frames * T_SCALE, zero, zero, zero + 1)
    cos, sin = rope.mm_rope(positions, config.head_dim, config.rope_theta, config.rope)
    return sums._replace(kv=rope.rotate(sums.kv.swapaxes(-1, -2), cos, sin).swapaxes(-1, -2))
