"""Splash attention (the Pallas TPU kernel that ships with JAX) with a mask computed from key ranges.

The kernel decides at compile time which blocks to visit, so ranges must be static (`KeyRanges.static`). Where all queries
see one range from the first key on, it compares numbers instead of reading a mask: a query carries the last key it sees,
and key k is visible if it is not later. For other ranges it reads the blocks that are visible in part, each kind stored
once. Keys before a row's first visible one (padding, dropped text) form a segment of their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as infos

from lumos import sharding
from lumos.sequence.key_ranges import KeyRanges, StaticRanges

MULTIPLE = 512  # lengths that the kernel is fed with are multiples of this, or of LANES when short
LANES = 128
# What the backward pass needs of the forward pass, under a name that remat policies can keep.
RESIDUALS = "attention"


def can_run(keys: KeyRanges) -> bool:
    """Whether the kernel can compute this at all: it needs static ranges (of whole sequences), and adds nothing to logits."""
    return keys.static is not None and keys.bias_BS is None


def serves(k_shape: tuple[int, ...]) -> bool:
    """Whether the kernel is the right one if it can run: on a TPU, for sequences of a fitting length."""
    return sharding.platform() == "tpu" and k_shape[1] % LANES == 0


def length_multiple(length: int, shards: int = 1) -> int:
    """Return what the chunks of `sequence.storage` are padded to on the current platform."""
    return padding(length, shards) if sharding.platform() == "tpu" else 1


def padding(length: int, shards: int = 1) -> int:
    """Return the unit of a chunk: the whole comes in blocks of MULTIPLE, and each device's part in blocks of 256."""
    if length <= 4 * MULTIPLE:
        return LANES
    if shards == 1:
        return MULTIPLE
    return MULTIPLE // 2 if length > 16 * shards * MULTIPLE else max(LANES, MULTIPLE // (2 * shards))


def make_schedule(q_BQNA, k_BSKA, static: StaticRanges, query_order: np.ndarray | None, length: str | None):
    """Return the kernel with its block schedule for queries in `query_order`, and how the schedule is split over devices."""
    shards = sharding.shards(length)
    num_queries = q_BQNA.shape[1] // shards
    mask_shape = (q_BQNA.shape[1], k_BSKA.shape[1])
    sizes = _block_sizes(num_queries, k_BSKA.shape[1])
    start_RQ, end_RQ = (x if query_order is None else x[:, query_order] for x in (static.start_RQ, static.end_RQ))
    mask_class = _RangesMask if len(start_RQ) > 1 or start_RQ.any() else _EndMask
    mask = mask_class(mask_shape, start_RQ, end_RQ, is_split=shards > 1)
    kernel = kernels.make_splash_mqa(
        masks.MultiHeadMask([mask] * (q_BQNA.shape[2] // k_BSKA.shape[2])),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name=RESIDUALS,
        interpret=sharding.platform() == "cpu",
    )
    return kernel, None if jax.sharding.get_abstract_mesh().empty else _split_schedule(kernel, length)


def _split_schedule(kernel, length: str | None):
    """Return how the arrays of a schedule are split over devices.

    The kernel's own `manual_sharding_spec` takes for granted that forward and backward pass have the same arrays; of a pass
    whose larger blocks are visible in part, when those of the other are not, it does not know some.
    """
    blocks = sharding.spec((None, length))
    specs = infos.MaskInfo(blocks, blocks, blocks, sharding.spec(()), sharding.spec((length,)))

    def split(info):
        return info and infos.MaskInfo(*(None if x is None else axes for x, axes in zip(info, specs)))

    passes, options = kernel.tree_flatten()
    return kernel.tree_unflatten(options, [split(info) for info in passes])


def attend(q_BQNA, k_BSKA, v_BSKA, first_B, schedule) -> jax.Array:
    """Run the kernel on one device's queries over all keys from `first_B` on; grouped queries share the keys of their group."""
    batch, num_queries, heads, dim = q_BQNA.shape
    kv_heads = k_BSKA.shape[2]
    q_BKGQA = (q_BQNA * dim**-0.5).reshape(batch, num_queries, kv_heads, -1, dim).transpose(0, 2, 3, 1, 4)
    k_BKSA, v_BKSA = k_BSKA.transpose(0, 2, 1, 3), v_BSKA.transpose(0, 2, 1, 3)
    first_B1 = jnp.zeros((batch, 1), jnp.int32) if first_B is None else first_B[:, None]
    hidden_BS = jnp.arange(k_BSKA.shape[1])[None] < first_B1
    segments = kernels.SegmentIds(
        q=jnp.ones((batch, num_queries), jnp.int32), kv=jnp.where(hidden_BS, 0, 1).astype(jnp.int32)
    )
    per_head = jax.vmap(schedule, in_axes=(0, 0, 0, None))
    out_BKGQA = jax.vmap(per_head)(q_BKGQA, k_BKSA, v_BKSA, segments)
    return out_BKGQA.transpose(0, 3, 1, 2, 4).reshape(q_BQNA.shape).astype(q_BQNA.dtype)


def _block_sizes(num_queries: int, num_keys: int) -> kernels.BlockSizes:
    q, kv, kv_backward = block_sizes(num_queries, num_keys)
    compute = _largest_divisor(kv_backward, 512)
    fused = is_fused(num_keys)
    return kernels.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=kv,
        block_q_dkv=q, block_kv_dkv=kv_backward, block_kv_dkv_compute=compute,
        block_q_dq=None if fused else q, block_kv_dq=None if fused else kv_backward, use_fused_bwd_kernel=fused,
    )  # fmt: skip


def block_sizes(num_queries: int, num_keys: int) -> tuple[int, int, int]:
    """Return queries per block, keys per block forward and backward: fewer, larger blocks there keep fewer copies of dq."""
    return _largest_divisor(num_queries, 512), _largest_divisor(num_keys, 512), _largest_divisor(num_keys, 1024)


def is_fused(num_keys: int) -> bool:
    """Whether the backward pass is one kernel: 5 matmuls instead of 7, while a dq for every block of keys fits in memory."""
    return num_keys <= 32 * 1024


def _largest_divisor(length: int, most: int) -> int:
    return next(size for size in (1024, 512, 384, 256, 128) if size <= most and length % size == 0)


class _Constant:
    """The answer for a block that is wholly visible or wholly hidden: building it costs nothing."""

    def __init__(self, value: bool):
        self._value = value

    def any(self):
        return self._value

    def all(self):
        return self._value


class _InPart(np.ndarray):
    """A block that passes for one visible in part, even if it is wholly visible."""

    def all(self):
        return np.False_


class _RangesMask(masks.Mask):
    """Key k is visible to query q if start[r, q] <= k < end[r, q] for some r; a block is built when it is asked for.

    The library cannot split a mask over devices in which no block is visible in part: if `is_split`, the block of the
    first query that sees a key passes for one.
    """

    def __init__(self, shape: tuple[int, int], start_RQ: np.ndarray, end_RQ: np.ndarray, is_split: bool):
        self._shape = shape
        self._start_RQ, self._end_RQ = start_RQ, end_RQ
        self._limits = {}
        self._pair = None
        if is_split:
            query, r = np.argwhere((start_RQ < end_RQ).T)[0]
            self._pair = query, start_RQ[r, query]

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def __getitem__(self, index):
        queries, keys = index
        seen_by_some, seen_by_all = self._seen(queries)
        if all(keys.stop <= first or end <= keys.start for first, end in seen_by_some):
            return _Constant(False)
        passes_for_part = self._pair and all(part.start <= at < part.stop for at, part in zip(self._pair, index))
        if not passes_for_part and any(first <= keys.start and keys.stop <= end for first, end in seen_by_all):
            return _Constant(True)
        key = np.arange(keys.start, keys.stop, dtype=np.int32)
        block = np.zeros((queries.stop - queries.start, len(key)), bool)
        for start, end in zip(self._start_RQ[:, queries, None], self._end_RQ[:, queries, None]):
            block |= (key >= start) & (key < end)
        return block.view(_InPart) if passes_for_part else block

    def _seen(self, queries: slice):
        """Return two bounds for each range: of the keys that some of the queries see, and of those that all see."""
        at = queries.start, queries.stop
        if at not in self._limits:
            start, end = self._start_RQ[:, queries], self._end_RQ[:, queries]
            is_empty = start >= end
            some = np.where(is_empty, self.shape[1], start).min(1), np.where(is_empty, 0, end).max(1)
            every = start.max(1), end.min(1)
            self._limits[at] = [np.stack(bounds, axis=1).tolist() for bounds in (some, every)]
        return self._limits[at]

    def _key(self):
        return self.shape, self._pair, self._start_RQ.tobytes(), self._end_RQ.tobytes()

    def __eq__(self, other):
        return type(other) is type(self) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())


class _EndMask(_RangesMask):
    """One range a query, from the first key on: the kernel compares `q_sequence` with keys and reads no mask."""

    def __init__(self, shape: tuple[int, int], start_RQ: np.ndarray, end_RQ: np.ndarray, is_split: bool):
        super().__init__(shape, start_RQ, end_RQ, is_split)
        self.q_sequence = (end_RQ[0] - 1).astype(np.int32)

    @staticmethod
    def mask_function(last, key):
        return last >= key
