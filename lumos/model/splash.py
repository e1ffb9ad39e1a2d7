"""Splash attention (the Pallas TPU kernel that ships with JAX) with a mask computed from key ranges.

The kernel decides at compile time which blocks to visit, so ranges must be static (`KeyRange.static`). It compares
numbers instead of reading a mask: a query carries the last key it sees, and key k is visible if it is not later. Keys
before a row's first visible one (padding, dropped text) form a segment of their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from lumos import sharding
from lumos.sequence.attention import KeyRange

MULTIPLE = 512  # lengths that the kernel is fed with are multiples of this, or of LANES when short
LANES = 128
# What the backward pass needs of the forward pass, under a name that remat policies can keep.
RESIDUALS = "attention"


def serves(k_shape: tuple[int, ...], keys: KeyRange) -> bool:
    """Whether the kernel is the right one here: on a TPU, for whole sequences with static ranges of a fitting length."""
    return sharding.platform() == "tpu" and keys.static is not None and k_shape[1] % LANES == 0


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


def make_schedule(q_BQNA, k_BSKA, keys: KeyRange, length: str | None):
    """Return the kernel with its block schedule, and how the schedule is split over devices."""
    shards = sharding.shards(length)
    num_queries = q_BQNA.shape[1] // shards
    mask_shape = (q_BQNA.shape[1], k_BSKA.shape[1])
    sizes = _block_sizes(num_queries, k_BSKA.shape[1])
    mask = _RangeMask(mask_shape, keys.static.end_Q)
    kernel = kernels.make_splash_mqa(
        masks.MultiHeadMask([mask] * (q_BQNA.shape[2] // k_BSKA.shape[2])),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name=RESIDUALS,
        interpret=sharding.platform() == "cpu",
    )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel, None
    split = sharding.spec((None, length))
    return kernel, kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, split))


def attend(q_BQNA, k_BSKA, v_BSKA, start_BQ, schedule) -> jax.Array:
    """Run the kernel on one device's queries over all keys; grouped queries share the keys of their group."""
    batch, num_queries, heads, dim = q_BQNA.shape
    kv_heads = k_BSKA.shape[2]
    q_BKGQA = (q_BQNA * dim**-0.5).reshape(batch, num_queries, kv_heads, -1, dim).transpose(0, 2, 3, 1, 4)
    k_BKSA, v_BKSA = k_BSKA.transpose(0, 2, 1, 3), v_BSKA.transpose(0, 2, 1, 3)
    first_B1 = jnp.broadcast_to(start_BQ[:, :1], (batch, 1))
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


class _RangeMask(masks._ComputableMask):
    """Key k is visible to query q if k < end[q]."""

    def __init__(self, shape: tuple[int, int], end_Q: np.ndarray):
        super().__init__(shape, lambda last, key: last >= key)
        self.q_sequence = (end_Q - 1).astype(np.int32)

    def __getitem__(self, index):
        queries, keys = index
        last = self.q_sequence[queries]
        if last.max() < keys.start:
            return _Constant(False)
        if last.min() >= keys.stop - 1:
            return _Constant(True)
        return super().__getitem__(index)

    def __eq__(self, other):
        return (
            isinstance(other, _RangeMask)
            and self.shape == other.shape
            and np.array_equal(self.q_sequence, other.q_sequence)
        )

    def __hash__(self):
        return hash((self.shape, self.q_sequence.tobytes()))
