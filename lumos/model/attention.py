"""Attention over key ranges: `attend` picks the kernel, `dense` is the oracle, `flash` the portable fast path.

`flash` is blockwise attention with an online softmax and a recomputing backward pass (Dao et al., FlashAttention),
written in XLA with a custom VJP: memory is O(L), and key blocks outside the ranges of a query block are skipped. A bias
that depends on the key alone is added to the logits, and has a gradient.
Whole sequences run the splash kernel on a TPU (lumos/model/splash.py) and cuDNN on a GPU (lumos/model/cudnn.py). Where neither runs and queries see few
keys, such as their own frame, tiles take the place of blocks (lumos/model/tiled_attention.py). On a mesh every device computes its own rows, heads
and queries; keys and values are gathered over the context axis.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lumos import sharding
from lumos.model import cudnn, splash, tiled_attention
from lumos.model.tiled_attention import LEAST as _LEAST
from lumos.model.tiled_attention import NEVER as _NEVER
from lumos.sequence.blocks import Blocks, best_blocks, equal_blocks
from lumos.sequence.key_ranges import KeyRanges, StaticRanges
from lumos.sequence.storage import in_order
from lumos.sequence.tiles import tiles

_BLOCK = 512  # queries and keys per block
_MOST_LOGITS = 2**27  # of tiles, all rows and heads, at once
_CPU_TILE = 2**20  # there no more logits of all rows and heads exist at once than this, if blocks of 128 allow it


def attend(q_BQNA: jax.Array, k_BSKA: jax.Array, v_BSKA: jax.Array, keys: KeyRanges, kernel: str = "auto") -> jax.Array:
    """Return softmax(q k^T / sqrt(A) + bias) v over the visible keys of each query, [B, Q, N, A].

    Query head n uses kv head n // (N / K). A query that sees no key returns zeros (with the splash kernel: a finite
    value without meaning, in rows and positions that nothing reads).
    """
    sharding.check_divides("config.model.num_heads", q_BQNA.shape[2], "heads")
    sharding.check_divides("config.model.num_kv_heads", k_BSKA.shape[2], "kv_heads")
    batch = sharding.axis_of(q_BQNA.shape[0], "batch")
    length = sharding.axis_of(q_BQNA.shape[1], "length") if q_BQNA.shape[1] == k_BSKA.shape[1] else None
    # Where the queries are the tokens of the keys, blocks of queries have tight bounds in the order of the keys. Of
    # a split sequence each device keeps the queries that it has.
    is_whole = q_BQNA.shape[1] == k_BSKA.shape[1] and sharding.shards(length) == 1
    query_order = keys.order_S if is_whole else None
    # Decoding has no static ranges, splash knows no bias, and with queries in another order than keys nearly every block
    # is visible in part, which splash would store: there "splash" runs the flash kernel.
    can_splash = splash.can_run(keys) and (keys.order_S is None or is_whole)
    use_splash = can_splash and (kernel == "splash" or kernel == "auto" and splash.serves(k_BSKA.shape))
    schedule, schedule_specs = (
        splash.make_schedule(q_BQNA, k_BSKA, keys.static, query_order, length) if use_splash else (None, None)
    )
    is_one_part = is_whole and query_order is None and sharding.shards(length) == 1
    use_cudnn = kernel == "auto" and is_one_part and cudnn.serves(q_BQNA, keys)
    use_tiles = kernel == "auto" and is_whole and keys.static is not None and not use_splash and not use_cudnn

    def local(q, k, v, start, end, bias, first, schedule):
        k, v = (in_order(sharding.all_gather(x, length, 1), keys.num_chunks, 1) for x in (k, v))
        bias = None if bias is None else in_order(bias, keys.num_chunks, 1)
        if kernel == "dense":
            return dense(q, k, v, KeyRanges(start, end, bias, static=keys.static))
        if use_cudnn:
            return cudnn.attend(q, k, v, first, keys.static)
        k, v, bias = (_permute(x, keys.order_S) for x in (k, v, bias))
        q = _permute(q, query_order)
        if query_order is not None:
            start, end = start[..., query_order], end[..., query_order]
        blocks = _blocks(q, k, keys.static if is_whole else None)
        of_tiles = tiles(keys.static, blocks) if use_tiles else None
        if of_tiles:
            out = tiled_attention.attend(
                q, k, v, start, end, bias, of_tiles, _CPU_TILE if sharding.platform() == "cpu" else _MOST_LOGITS
            )
        elif use_splash:
            out = splash.attend(q, k, v, first, schedule)
        else:
            out = _flash(q, k, v, start, end, bias, blocks)
        return _permute(out, None if query_order is None else np.argsort(query_order))

    def row_axis(rows):  # the axis of rows, of which an array may have one for all
        return batch if rows > 1 else None

    q_axes, kv_axes = (batch, length, "heads", None), (batch, length, "kv_heads", None)
    range_axes = tuple((None, row_axis(x.shape[1]), length) for x in (keys.start_RBQ, keys.end_RBQ))
    bias_axes = None if keys.bias_BS is None else (row_axis(keys.bias_BS.shape[0]), None)
    first_axes = None if keys.first_B is None else (batch,)
    in_axes = (q_axes, kv_axes, kv_axes, *range_axes, bias_axes, first_axes, schedule_specs)
    return sharding.per_device(local, in_axes, q_axes)(
        q_BQNA, k_BSKA, v_BSKA, keys.start_RBQ, keys.end_RBQ, keys.bias_BS, keys.first_B, schedule
    )


def dense(q_BQNA, k_BSKA, v_BSKA, keys: KeyRanges) -> jax.Array:
    """The definition with a full mask over keys in natural order, for tests."""
    q_BKGQA = _group(q_BQNA, k_BSKA.shape[2])
    logits = jnp.einsum("bkgqa,bska->bkgqs", q_BKGQA, k_BSKA, preferred_element_type=jnp.float32)
    logits *= q_BQNA.shape[3] ** -0.5
    mask = keys.dense(k_BSKA.shape[1])[:, None, None]
    if keys.bias_BS is not None:
        bias = keys.bias_BS[:, None, None, None]
        logits, mask = logits + bias, mask & (bias > _LEAST)
    weights = jax.nn.softmax(jnp.where(mask, logits, _NEVER), axis=-1) * mask
    return _ungroup(jnp.einsum("bkgqs,bska->bkgqa", weights.astype(v_BSKA.dtype), v_BSKA))


def attend_parts(
    q_BQNA: jax.Array, parts: list[tuple[jax.Array, jax.Array, KeyRanges]], kernel: str = "auto"
) -> jax.Array:
    """Attend over several key sets (k, v, KeyRanges) as if they were one, such as the cache and the current tokens.

    The partial softmaxes are merged through their log-sum-exp, so the cache is never copied; in float32, so that the sum is
    rounded once.
    """
    if kernel == "auto" and all(cudnn.serves_part(q_BQNA, keys) for *_, keys in parts):
        return cudnn.attend_parts(q_BQNA, parts)
    return attend_parts_lse(q_BQNA, parts)[0]


def attend_parts_lse(q_BQNA: jax.Array, parts) -> tuple[jax.Array, jax.Array]:
    """Return what `attend_parts` does, and the log-sum-exp of the logits over all parts, float32 [B, Q, N], without a gradient."""
    in_order = lambda x, keys: _permute(x, keys.order_S)
    out, lse_BQN = _merged(
        q_BQNA,
        [(in_order(k, s), in_order(v, s), s.start_RBQ, s.end_RBQ, in_order(s.bias_BS, s)) for k, v, s in parts],
    )
    return out, jax.lax.stop_gradient(lse_BQN)


@jax.custom_vjp
def _merged(q_BQNA, parts):
    return _merged_fwd(q_BQNA, parts)[0]


def _merged_fwd(q_BQNA, parts):
    done = [_flash_forward(q_BQNA, *part, _blocks(q_BQNA, part[0]), jnp.float32) for part in parts]
    lse_BQN = functools.reduce(jnp.logaddexp, [part_lse for _, part_lse in done])
    out = sum(out * jnp.exp(part_lse - lse_BQN)[..., None] for out, part_lse in done).astype(q_BQNA.dtype)
    return (out, lse_BQN), (q_BQNA, parts, out, lse_BQN)


def _merged_bwd(saved, cotangents):
    """With the log-sum-exp of all keys, the gradient of every part is that of attention over it alone."""
    q_BQNA, parts, out, lse_BQN = saved
    dout_BQNA, _ = cotangents
    dq, *rest = zip(*(_flash_bwd(_blocks(q_BQNA, part[0]), (q_BQNA, *part, out, lse_BQN), dout_BQNA) for part in parts))
    return sum(dq), [tuple(of_part) for of_part in zip(*rest)]


_merged.defvjp(_merged_fwd, _merged_bwd)


def _permute(x: jax.Array | None, order: np.ndarray | None) -> jax.Array | None:
    """Bring the second axis into an order, if there is one."""
    return x if x is None or order is None else _take(x, order)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _take(x: jax.Array, order: np.ndarray) -> jax.Array:
    return jnp.take(x, order, axis=1, mode="clip", unique_indices=True)


# The gradient is a gather too; JAX would derive a scatter, which is slow.
_take.defvjp(lambda x, order: (_take(x, order), None), lambda order, _, dx: (_take(dx, np.argsort(order)),))


def _group(q_BQNA: jax.Array, num_kv_heads: int) -> jax.Array:
    batch, length, heads, dim = q_BQNA.shape
    q = q_BQNA.reshape(batch, length, num_kv_heads, heads // num_kv_heads, dim)
    return q.transpose(0, 2, 3, 1, 4)


def _ungroup(x_BKGQA: jax.Array) -> jax.Array:
    batch, kv, group, length, dim = x_BKGQA.shape
    return x_BKGQA.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv * group, dim)


def _pad(x: jax.Array, axis: int, multiple: int, before: int = 0) -> jax.Array:
    sides = before, -(before + x.shape[axis]) % multiple
    return jnp.pad(x, [sides if a == axis else (0, 0) for a in range(x.ndim)]) if any(sides) else x


def _most_per_block(num_heads: int) -> tuple[int, int]:
    """Return the most queries and keys of a block, for that many heads of all rows together."""
    if sharding.platform() != "cpu":
        return _BLOCK, _BLOCK
    keys = min(_BLOCK // 2, max(128, math.isqrt(_CPU_TILE // num_heads)))
    return min(_BLOCK, max(128, _CPU_TILE // (num_heads * keys))), keys


def _blocks(q_BQNA, k_BSKA, static: StaticRanges | None = None) -> Blocks:
    """Return the blocks of a call, whose queries are the tokens of the keys where static ranges are given."""
    most = _most_per_block(q_BQNA.shape[0] * q_BQNA.shape[2])
    if static is not None and sharding.platform() == "cpu":
        return best_blocks(static, *most)
    return equal_blocks(q_BQNA.shape[1], k_BSKA.shape[1], *most)


class _Operands:
    """Blocked operands of one call: queries [nq, B, K, G, bq, A], keys [B, K, A, nk * bk], values [B, K, nk * bk, A], ranges
    [nq, R, B|1, bq]. Keys come last, as a matmul with queries on a CPU is up to four times as fast then."""

    def __init__(self, q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, blocks: Blocks):
        self.num_queries, self.num_keys = q_BQNA.shape[1], k_BSKA.shape[1]
        self.kv_heads, self.bq, self.bk, self.queries_before = k_BSKA.shape[2], *blocks
        self.scale = q_BQNA.shape[3] ** -0.5
        self.q = self.split_queries(q_BQNA)
        self.k = _pad(k_BSKA.transpose(0, 2, 3, 1), 3, self.bk)
        self.v = _pad(v_BSKA.transpose(0, 2, 1, 3), 2, self.bk)
        self.nk = self.k.shape[3] // self.bk
        self.bias = None if bias_BS is None else _pad(bias_BS, 1, self.bk)
        shape = (len(start_RBQ), max(start_RBQ.shape[1], end_RBQ.shape[1]), self.num_queries)
        # Padded queries get empty ranges [0, 0).
        self.start = self._split_range(jnp.broadcast_to(start_RBQ, shape))
        self.end = self._split_range(jnp.minimum(jnp.broadcast_to(end_RBQ, shape), self.num_keys))

    def split_queries(self, x_BQNA):
        x_BKGQA = _group(_pad(x_BQNA, 1, self.bq, self.queries_before), self.kv_heads)
        return jnp.moveaxis(x_BKGQA.reshape(*x_BKGQA.shape[:3], -1, self.bq, x_BKGQA.shape[4]), 3, 0)

    def join_queries(self, x):
        x = jnp.moveaxis(x, 0, 3)
        x_BKGQA = x.reshape(*x.shape[:3], -1, x.shape[5])
        return _ungroup(x_BKGQA)[:, self.queries_before :][:, : self.num_queries]

    def _split_range(self, x):
        x = _pad(x, 2, self.bq, self.queries_before)
        return jnp.moveaxis(x.reshape(*x.shape[:2], -1, self.bq), 2, 0)

    def _bounds(self, start, end):
        """Return the first and one past the last key block that any query of a query block sees in one range."""
        last = (jnp.max(jnp.where(end > start, end, 0)) + self.bk - 1) // self.bk
        first = jnp.min(jnp.where(end > start, start, self.num_keys)) // self.bk
        return first, jnp.maximum(last, first)

    def key_block(self, x, j, axis=2):
        if self.nk == 1:
            return x
        return jax.lax.dynamic_slice_in_dim(x, j * self.bk, self.bk, axis)

    def key_gradient_shape(self):
        b, k, a, _ = self.k.shape
        return self.nk, b, k, a, self.bk

    def join_key_gradient(self, x):
        n, b, k, a, bk = x.shape
        return x.transpose(1, 0, 4, 2, 3).reshape(b, n * bk, k, a)[:, : self.num_keys]

    def zero_bias_gradient(self):
        return None if self.bias is None else jnp.zeros((self.nk, self.bias.shape[0], self.bk))

    def add_bias_gradient(self, dbias, ds, j):
        if dbias is None:
            return None
        rows = (0,) if self.bias.shape[0] == 1 else ()
        return dbias.at[j].add(ds.sum((*rows, 1, 2, 3)).reshape(dbias.shape[1:]))

    def join_bias_gradient(self, dbias):
        if dbias is None:
            return None
        return dbias.transpose(1, 0, 2).reshape(self.bias.shape)[:, : self.num_keys]

    def loop(self, start, end, body, carry):
        """Run `body(ranges, j, carry)` over the key blocks that some query sees; starts and ends are [R, B|1, bq]."""
        ranges = list(zip(start, end))
        if self.nk == 1:
            return body(ranges, 0, carry)
        block, bounds = jnp.arange(self.nk), [self._bounds(*one) for one in ranges]
        seen = functools.reduce(jnp.logical_or, [(block >= first) & (block < last) for first, last in bounds])
        blocks = jnp.argsort(~seen, stable=True)  # once each, also where several ranges lie in it
        return jax.lax.fori_loop(0, seen.sum(), lambda i, carry: body(ranges, blocks[i], carry), carry)

    def logits(self, q, k, ranges, j):
        s = jnp.einsum("bkgqa,bkas->bkgqs", q, k, preferred_element_type=jnp.float32) * self.scale
        if self.bias is not None:
            s = s + self.key_block(self.bias, j, axis=1)[:, None, None, None]
        key = j * self.bk + jnp.arange(self.bk)
        seen = [(key >= start[..., None]) & (key < end[..., None]) for start, end in ranges]
        return jnp.where(functools.reduce(jnp.logical_or, seen)[:, None, None], s, _NEVER)

    def map_queries(self, body, *arrays):
        """Map over query blocks; one block needs no loop."""
        if self.q.shape[0] == 1:
            return jax.tree.map(lambda x: x[None], body(*(a[0] for a in arrays)))
        return jax.lax.map(lambda slices: body(*slices), arrays)


def _flash_forward(q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, blocks: Blocks, dtype=None):
    """Return the output [B, Q, N, A] (in the dtype of q by default) and log-sum-exp [B, Q, N] (-1e30 where nothing is visible)."""
    given = _Operands(q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, blocks)

    def one(q, start, end):
        def body(ranges, j, carry):
            out, total, peak = carry
            s = given.logits(q, given.key_block(given.k, j, axis=3), ranges, j)
            new_peak = jnp.maximum(peak, s.max(-1))
            p = jnp.exp(s - new_peak[..., None])
            keep = jnp.exp(peak - new_peak)
            v = given.key_block(given.v, j)
            out = out * keep[..., None] + jnp.einsum(
                "bkgqs,bksa->bkgqa", p.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            return out, total * keep + p.sum(-1), new_peak

        init = (jnp.zeros(q.shape, jnp.float32), jnp.zeros(q.shape[:-1]), jnp.full(q.shape[:-1], _LEAST))
        out, total, peak = given.loop(start, end, body, init)
        lse = jnp.where(total > 0, peak + jnp.log(jnp.maximum(total, 1e-37)), _NEVER)
        return (out / jnp.maximum(total, 1e-37)[..., None]).astype(dtype or q.dtype), lse

    out, lse = given.map_queries(one, given.q, given.start, given.end)
    return given.join_queries(out), given.join_queries(lse[..., None])[..., 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _flash(q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, blocks: Blocks):
    return _flash_forward(q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, blocks)[0]


def _flash_fwd(*operands):
    *arrays, _ = operands
    out, lse = (checkpoint_name(x, splash.RESIDUALS) for x in _flash_forward(*operands))
    return out, (*arrays, out, lse)


def _flash_bwd(blocks, saved, dout_BQNA):
    q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, out_BQNA, lse_BQN = saved
    given = _Operands(q_BQNA, k_BSKA, v_BSKA, start_RBQ, end_RBQ, bias_BS, blocks)
    delta_BQN1 = jnp.sum(dout_BQNA.astype(jnp.float32) * out_BQNA.astype(jnp.float32), -1, keepdims=True)
    dout, delta = given.split_queries(dout_BQNA), given.split_queries(delta_BQN1)[..., 0]
    lse = given.split_queries(jnp.maximum(lse_BQN, _LEAST)[..., None])[..., 0]

    def one(carry, slices):
        q, start, end, dout, delta, lse = slices

        def body(ranges, j, carry):
            dq, dk, dv, dbias = carry
            k, v = given.key_block(given.k, j, axis=3), given.key_block(given.v, j)
            s = given.logits(q, k, ranges, j)
            p = jnp.exp(s - lse[..., None])
            dp = jnp.einsum("bkgqa,bksa->bkgqs", dout, v, preferred_element_type=jnp.float32)
            ds = p * (dp - delta[..., None])
            dbias = given.add_bias_gradient(dbias, ds, j)
            ds = (ds * given.scale).astype(q.dtype)
            dq = dq + jnp.einsum("bkgqs,bkas->bkgqa", ds, k, preferred_element_type=jnp.float32)
            # Keys come last in their gradients: the other way round these two matmuls take twice as long on a CPU.
            dk_j = jnp.einsum("bkgqs,bkgqa->bkas", ds, q, preferred_element_type=jnp.float32)
            dv_j = jnp.einsum("bkgqs,bkgqa->bkas", p.astype(q.dtype), dout, preferred_element_type=jnp.float32)
            return dq, dk.at[j].add(dk_j), dv.at[j].add(dv_j), dbias

        dq, *sums = given.loop(start, end, body, (jnp.zeros(q.shape, jnp.float32), *carry))
        return tuple(sums), dq

    zeros = (jnp.zeros(given.key_gradient_shape(), jnp.float32),) * 2
    zeros = (*zeros, given.zero_bias_gradient())
    slices = (given.q, given.start, given.end, dout, delta, lse)
    if given.q.shape[0] == 1:
        (dk, dv, dbias), dq = one(zeros, tuple(a[0] for a in slices))
        dq = dq[None]
    else:
        (dk, dv, dbias), dq = jax.lax.scan(one, zeros, slices)
    dq = given.join_queries(dq).astype(q_BQNA.dtype)
    dk, dv = (given.join_key_gradient(x).astype(k_BSKA.dtype) for x in (dk, dv))
    none = np.zeros(start_RBQ.shape, jax.dtypes.float0), np.zeros(end_RBQ.shape, jax.dtypes.float0)
    return dq, dk, dv, *none, given.join_bias_gradient(dbias)


_flash.defvjp(_flash_fwd, _flash_bwd)
