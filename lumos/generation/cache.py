"""Slot 7, the cache: keys and values of finished tokens, with the table of tokens that says what they are.

Keys are stored before rotation, so that positions can be chosen when they are read. A cache changes in two ways:
`write` appends tokens, `gather` moves slots. Policies (`generation.policy`) choose what is gathered; dropping, rewinding
and compacting are gathers along the slots, forking is one along the rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.sequence.tokens import Tokens


class Cache(NamedTuple):
    """k, v: [layers, rows, S, K, A]. tokens: int32 [S] each. count: int32, slots in use; they come first."""

    k: jax.Array
    v: jax.Array
    tokens: Tokens
    count: jax.Array

    @property
    def num_slots(self) -> int:
        return self.k.shape[2]

    def write(self, kv: tuple[jax.Array, jax.Array], tokens: Tokens, num: jax.Array | int) -> Cache:
        """Append Q tokens behind the used slots, of which the first `num` are real. There must be room for Q."""
        append = lambda x, new, axis: jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), self.count, axis)
        k, v = (append(x, new, 2) for x, new in zip((self.k, self.v), kv))
        return Cache(k, v, Tokens(*(append(x, new, 0) for x, new in zip(self.tokens, tokens))), self.count + num)

    def gather(self, index_S: jax.Array) -> Cache:
        """Return the cache whose slot i holds what slot index_S[i] held; those with index -1 come last and are empty."""
        index = jnp.maximum(index_S, 0)
        k, v = (jnp.take(x, index, axis=2) for x in (self.k, self.v))
        return Cache(k, v, self.tokens.at(index), (index_S >= 0).sum())

    def rows(self, index_R: jax.Array) -> Cache:
        """Return the cache of other rows: forks and selections."""
        return self._replace(k=jnp.take(self.k, index_R, axis=1), v=jnp.take(self.v, index_R, axis=1))

    @property
    def used_S(self) -> jax.Array:
        """Which slots are in use, bool [S]."""
        return jnp.arange(self.num_slots) < self.count

    @property
    def num_bytes(self) -> int:
        """Memory of the cache, which does not depend on how much of it is in use."""
        return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(self))
