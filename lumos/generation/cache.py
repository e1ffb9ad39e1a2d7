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

from lumos.generation.storage import Scales
from lumos.model.linear import Sums
from lumos.sequence.tokens import Tokens


class Cache(NamedTuple):
    """k, v: [layers, rows, S, K, A]. tokens: int32 [S] each. count: int32, slots in use; they come first.

    A policy that keeps other tokens in every layer and row has `y`, `x` and `index` of the tokens as [layers, rows, S], and
    `score`: float32 [layers, rows, writes, S], what the queries of the last writes gave to each slot.
    """

    k: jax.Array
    v: jax.Array
    tokens: Tokens
    count: jax.Array
    score: jax.Array | None = None
    scales: Scales | None = None  # of keys and values that are stored as integers
    sums: Sums | None = None  # of layers with linear attention, which have no slots
    shift: jax.Array | None = None  # latent frames by which the tokens in the sums were moved

    @property
    def num_slots(self) -> int:
        return self.k.shape[2]

    def scored(self, num_writes: int) -> Cache:
        """Return the cache with room for scores of so many writes, and places of its own for each layer and row."""
        shape = (*self.k.shape[:2], self.num_slots)
        own = {name: jnp.broadcast_to(getattr(self.tokens, name), shape) for name in ("y", "x", "index")}
        score = jnp.zeros((*shape[:2], num_writes, shape[2]), jnp.float32)
        return self._replace(tokens=self.tokens._replace(**own), score=score)

    def read(self, dtype) -> tuple[jax.Array, jax.Array]:
        """Return keys and values, [layers, rows, S, K, A] each."""
        return (self.k, self.v) if self.scales is None else self.scales.read(self.k, self.v, dtype)

    def rate(self, score_LRS: jax.Array) -> Cache:
        """Add the scores of one more write, and forget those of the oldest."""
        return self._replace(score=jnp.concatenate([self.score[:, :, 1:], score_LRS[:, :, None]], axis=2))

    def write(self, kv: tuple[jax.Array, jax.Array], tokens: Tokens, num: jax.Array | int) -> Cache:
        """Append Q tokens behind the used slots, of which the first `num` are real. There must be room for Q."""
        scales = self.scales
        if scales is not None:
            kv, scales = scales.append(kv, self.used_S, self.count)
        k, v = (_append(x, new, 2, self.count) for x, new in zip((self.k, self.v), kv))
        tokens = Tokens(*(_append(x, new, x.ndim - 1, self.count) for x, new in zip(self.tokens, tokens)))
        score = self.score
        if score is not None:
            score = _append(score, jnp.zeros(kv[0].shape[2]), 3, self.count)
        return self._replace(k=k, v=v, tokens=tokens, count=self.count + num, score=score, scales=scales)

    def gather(self, index_S: jax.Array, own_LRS: jax.Array | None = None) -> Cache:
        """Return the cache whose slot i holds what slot index_S[i] held; those with index -1 come last and are empty.

        own_LRS: other slots for each layer and row, whose tokens then stand in the frames of the slots index_S.
        """
        index = jnp.maximum(index_S, 0)
        own = index if own_LRS is None else jnp.maximum(own_LRS, 0)
        k, v = (_take(x, own, 2) for x in (self.k, self.v))
        tokens = Tokens(*(_take(x, own if x.ndim > 1 else index, x.ndim - 1) for x in self.tokens))
        score = None if self.score is None else _take(self.score, own if own.ndim == 1 else own[:, :, None], 3)
        scales = self.scales
        if scales is not None:  # those of blocks stay where they are
            scales = scales._replace(v=_take(scales.v, index, 2), block=_take(scales.block, index, 0))
        count = (index_S >= 0).sum()
        return self._replace(k=k, v=v, tokens=tokens, count=count, score=score, scales=scales)

    def rows(self, index_R: jax.Array) -> Cache:
        """Return the cache of other rows: forks and selections."""
        take = lambda x: x if x.ndim < 2 else jnp.take(x, index_R, axis=1)
        return jax.tree.map(take, self)

    def first(self, num: int) -> Cache:
        """Return the cache with its first slots alone."""
        tokens = Tokens(*(field[..., :num] for field in self.tokens))
        return self._replace(k=self.k[:, :, :num], v=self.v[:, :, :num], tokens=tokens)

    def with_text(self, other: Cache, length: int) -> Cache:
        """Return the cache with the text of another one, in the first `length` slots."""
        put = lambda x, new, num: x.at[:, :, :num].set(new[:, :, :num])
        scales = self.scales
        if scales is not None:
            k, v = put(scales.k, other.scales.k, 1), put(scales.v, other.scales.v, length)
            scales = scales._replace(k=k, v=v)
        return self._replace(k=put(self.k, other.k, length), v=put(self.v, other.v, length), scales=scales)

    @property
    def used_S(self) -> jax.Array:
        """Which slots are in use, bool [S]."""
        return jnp.arange(self.num_slots) < self.count

    @property
    def num_bytes(self) -> int:
        """Memory of the cache, which does not depend on how much of it is in use."""
        return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(self))


def _append(x: jax.Array, new: jax.Array, axis: int, count: jax.Array) -> jax.Array:
    if new.ndim < x.ndim:  # the same in all layers and rows
        new = jnp.broadcast_to(new, (*x.shape[:axis], *new.shape))
    return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), count, axis)


def _take(x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Take slots, [S] for all layers and rows or [layers, rows, S]."""
    if index.ndim == 1:
        return jnp.take(x, index, axis=axis)
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - index.ndim)), axis=axis)
