"""Attention over tiles: the keys of a tile are gathered once, and the tiles of a step are one batched matmul.

Keys that most queries see (the text) are not gathered: they are a part of their own, and both parts share a softmax. The backward pass recomputes
the logits, as that of `attention.flash` does. Nothing is scattered: the gradient of a key is the sum over the tiles that have a copy of it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lumos.model import splash
from lumos.sequence.tiles import Group, Tiles

NEVER = -1e30  # logit of an invisible key; finite, so that rows without keys stay finite
LEAST = -1e29  # subtracted from a logit in place of less: exp(NEVER - LEAST) is 0, so no second mask is needed


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def attend(q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, tiles: Tiles, most_logits: int) -> jax.Array:
    """Return what `attention.attend` does, for queries and keys in the order in which ranges count; so many logits exist at once."""
    return _forward(q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, tiles, most_logits)[0]


def _forward(q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, tiles, most_logits):
    operands = q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS
    outs, lses = zip(*(_group_forward(_Operands(*operands, group, most_logits)) for group in tiles.groups))
    out_BQNA = checkpoint_name(_take(jnp.concatenate(outs, axis=1), tiles.place_Q), splash.RESIDUALS)
    return out_BQNA, (*operands, out_BQNA, [checkpoint_name(lse, splash.RESIDUALS) for lse in lses])


def _group_forward(given: _Operands):
    """Return what the queries of a group get, [B, tiles * b, N, A], and the log-sum-exp of their logits."""

    def step(_, operands):
        queries, own = operands
        parts = given.parts(own)
        logits = [_logits(queries, part) for part in parts]
        peak = functools.reduce(jnp.maximum, [s.max(-1) for s in logits], LEAST)
        weights = [jnp.exp(s - peak[..., None]) for s in logits]
        total = sum(p.sum(-1) for p in weights)
        out = sum(_dot(f"bktqs,{part.axes}sa->bktqa", p, part.v) for p, part in zip(weights, parts))
        lse = jnp.where(total > 0, peak + jnp.log(jnp.maximum(total, 1e-37)), NEVER)
        return None, ((out / jnp.maximum(total, 1e-37)[..., None]).astype(queries.q.dtype), lse)

    _, (out, lse) = _steps(step, None, (given.queries, given.own))
    return given.joined(out), lse


def _backward(tiles, most_logits, saved, dout_BQNA):
    *operands, out_BQNA, lses = saved
    delta_BQN1 = jnp.sum(dout_BQNA.astype(jnp.float32) * out_BQNA.astype(jnp.float32), -1, keepdims=True)
    dqs, sums = [], None
    for group, lse in zip(tiles.groups, lses):
        dq, d_keys = _group_backward(_Operands(*operands, group, most_logits), dout_BQNA, delta_BQN1, lse)
        dqs.append(dq)
        sums = d_keys if sums is None else jax.tree.map(jnp.add, sums, d_keys)
    dq = _take(jnp.concatenate(dqs, axis=1), tiles.place_Q)
    dk, dv, dbias = sums
    dbias = None if dbias is None else dbias[..., 0, 0]
    return *(x.astype(of.dtype) for x, of in zip((dq, dk, dv), operands)), *_no_gradient(operands[3:5]), dbias


def _group_backward(given: _Operands, dout_BQNA, delta_BQN1, lse):
    """Return the gradient of a group's queries, [B, tiles * b, N, A], and what it adds to those of all keys, values and biases."""
    dout, delta = given.split(dout_BQNA), given.split(delta_BQN1)

    def step(d_common, operands):
        queries, own, dout, delta, lse = operands

        def gradients(part):
            p = jnp.exp(_logits(queries, part) - jnp.maximum(lse, LEAST)[..., None])
            ds = p * (_dot(f"bktqa,{part.axes}sa->bktqs", dout, part.v) - delta)
            dq = _dot(f"bktqs,{part.axes}as->bktqa", ds, part.k)
            # Keys come last in their gradients: the other way round these two matmuls take twice as long on a CPU.
            dk, dv = (_dot(f"bktqs,bktqa->{part.axes}as", x, y) for x, y in ((ds, queries.q), (p, dout)))
            axes = [i for i, size in enumerate(part.bias.shape) if size == 1] if part.bias is not None else None
            return dq, (dk, dv, axes and ds.sum(axes, keepdims=True))

        dqs, d_parts = zip(*(gradients(part) for part in given.parts(own)))
        d_own = d_parts[0] if own else None
        return jax.tree.map(jnp.add, d_common, d_parts[-1]) if given.common else None, (sum(dqs), d_own)

    zeros = given.common and jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32), (given.common.k, given.common.k, given.common.bias)
    )
    d_common, (dq, d_own) = _steps(step, zeros, (given.queries, given.own, dout, delta, lse))
    return given.joined(dq) * given.scale, given.key_gradients(d_own, d_common)


attend.defvjp(_forward, _backward)


class _Queries(NamedTuple):
    """Queries of g tiles, b a tile, scaled, [B, K, g, G * b, A], with their ranges [R, B | 1, g, b, 1]."""

    q: jax.Array
    start: jax.Array
    end: jax.Array


class _Keys(NamedTuple):
    """Keys, values, numbers and biases of g tiles, axes "bkt", or of all, axes "bk"."""

    axes: str
    k: jax.Array  # [B, K, g, A, S] or [B, K, A, S]
    v: jax.Array  # [B, K, g, S, A] or [B, K, S, A]
    number: Any  # [g, 1, S] or [S]
    bias: jax.Array | None  # [B | 1, 1, g, 1, S] or [B | 1, 1, 1, 1, S]


def _dot(axes: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(axes, x.astype(y.dtype), y, preferred_element_type=jnp.float32)


def _logits(queries: _Queries, keys: _Keys) -> jax.Array:
    s = _dot(f"bktqa,{keys.axes}as->bktqs", queries.q, keys.k)
    if keys.bias is not None:
        s = s + keys.bias
    seen = ((keys.number >= queries.start) & (keys.number < queries.end)).any(0)  # [B | 1, g, b, S]
    by_head = s.reshape(*s.shape[:3], -1, *seen.shape[-2:])
    return jnp.where(seen[:, None, :, None], by_head, NEVER).reshape(s.shape)


def _steps(step, carry, operands):
    """Scan; one step needs no loop."""
    if len(jax.tree.leaves(operands)[0]) > 1:
        return jax.lax.scan(step, carry, operands)
    carry, out = step(carry, jax.tree.map(lambda x: x[0], operands))
    return carry, jax.tree.map(lambda x: x[None], out)


def _no_gradient(ranges):
    return (np.zeros(x.shape, jax.dtypes.float0) for x in ranges)


class _Operands:
    """What one group of tiles computes with, stacked to steps of as many tiles as have no more logits than allowed."""

    def __init__(self, q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, group: Group, most_logits: int):
        self.num_queries, heads = q_BQNA.shape[1:3]
        self.heads_KG, self.scale = (k_BSKA.shape[2], heads // k_BSKA.shape[2]), q_BQNA.shape[3] ** -0.5
        self.group, (num, self.size) = group, group.query_NQ.shape
        self.num_steps = min(num, -(-len(q_BQNA) * heads * group.pairs // most_logits))
        self.per_step = -(-num // self.num_steps)
        extra = ((0, self.num_steps * self.per_step - num), (0, 0))
        self.query, key = (
            np.pad(x, extra, constant_values=self.num_queries).ravel() for x in (group.query_NQ, group.key_NS)
        )
        ranges = self._ranges(start_RBQ, self.num_queries), self._ranges(end_RBQ, 0)
        self.queries = _Queries(self.split(q_BQNA) * self.scale, *ranges)
        self.own = self.common = None
        if len(key):
            of_keys = lambda x_BS__: self._by_steps(_take(x_BS__, key))
            k, v = (of_keys(x).transpose(0, 1, 4, 2, 3, 5) for x in (k_BSKA, v_BSKA))  # [steps, B, K, g, S, A]
            bias = None if bias_BS is None else of_keys(bias_BS)[:, :, None, :, None]
            self.own = k.swapaxes(-1, -2), v, key.reshape(self.num_steps, self.per_step, 1, -1), bias
        if group.prefix:
            k, v = (x[:, : group.prefix].transpose(0, 2, 1, 3) for x in (k_BSKA, v_BSKA))
            bias = None if bias_BS is None else bias_BS[:, None, None, None, : group.prefix]
            self.common = _Keys("bk", k.swapaxes(-1, -2), v, np.arange(group.prefix), bias)

    def parts(self, own) -> list[_Keys]:
        """Return the keys of one step, those of all tiles last."""
        return ([_Keys("bkt", *own)] if own else []) + ([self.common] if self.common else [])

    def split(self, x_BQNA: jax.Array) -> jax.Array:
        """Return queries of tiles, [steps, B, K, g, G * b, A]."""
        x = self._by_steps(_take(x_BQNA, self.query))
        x = x.reshape(*x.shape[:4], *self.heads_KG, -1).transpose(0, 1, 4, 2, 5, 3, 6)
        return x.reshape(*x.shape[:4], -1, x.shape[-1])

    def joined(self, x: jax.Array) -> jax.Array:
        """Return queries of tiles as [B, tiles * b, N, A]."""
        x = x.reshape(*x.shape[:4], self.heads_KG[1], self.size, -1).transpose(1, 0, 3, 5, 2, 4, 6)
        x = x.reshape(len(x), -1, np.prod(self.heads_KG), x.shape[-1])
        return x[:, : self.group.query_NQ.size]

    def key_gradients(self, d_own, d_common):
        """Return the gradients of all keys, values and biases, [B, S, K, A] with K = A = 1 for biases, from those of tiles and of the prefix."""
        parts = []
        if d_own:
            parts.append(jax.tree.map(lambda x: self._gathered(x.transpose(1, 0, 3, 5, 2, 4)), d_own))
        if d_common:
            rest = (0, self.num_queries - self.group.prefix)
            whole = lambda x: jnp.pad(x.reshape(*x.shape[:2], -1, x.shape[-1]), (*[(0, 0)] * 3, rest))
            parts.append(jax.tree.map(lambda x: whole(x).transpose(0, 3, 1, 2), d_common))
        return jax.tree.map(lambda *x: sum(x), *parts)

    def _gathered(self, x_BTgSKA):
        """Sum the copies of each key."""
        x = x_BTgSKA.reshape(len(x_BTgSKA), -1, *x_BTgSKA.shape[4:])
        fill = functools.partial(jnp.take, x, axis=1, mode="fill", fill_value=0)
        return sum(fill(places_S) for places_S in self.group.places_SM.T)

    def _by_steps(self, x_BT__):
        """Cut [B, steps * g * size, ...] to [steps, B, g, size, ...]."""
        return jnp.moveaxis(x_BT__.reshape(len(x_BT__), self.num_steps, self.per_step, -1, *x_BT__.shape[2:]), 1, 0)

    def _ranges(self, x_RBQ, missing: int):
        x = jnp.where(self.query < self.num_queries, jnp.take(x_RBQ, self.query, axis=2, mode="clip"), missing)
        return jnp.moveaxis(x.reshape(*x.shape[:2], self.num_steps, self.per_step, self.size, 1), 2, 0)


def _take(x: jax.Array, places: np.ndarray) -> jax.Array:
    if (np.diff(places) == 1).all() and places[-1] < x.shape[1]:
        return x[:, places[0] : places[0] + len(places)]
    return jnp.take(x, places, axis=1, mode="clip")
