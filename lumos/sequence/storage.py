"""How the tokens of a sequence lie in memory: padded to what kernels need, and balanced over context shards.

Under a frame-causal mask the last tokens have the most to attend to. If devices held consecutive parts of a sequence,
the last would do almost twice the average work. So a sequence is cut into 2n chunks for n shards, and shard i holds
chunks i and 2n-1-i, whose work adds up to about the same for all ("zigzag", as in Llama 3 training, arXiv 2407.21783
section 3.3.2). Tokens are stored once in this order, with their positions; only attention puts keys back in order.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Storage:
    """Slots of the first `length` tokens of a sequence, padded to a multiple of `multiple`, for `shards` context shards."""

    length: int
    shards: int = 1
    multiple: int = 1

    @property
    def num_slots(self) -> int:
        unit = self.multiple * self.num_chunks
        return -(-self.length // unit) * unit

    @property
    def order(self) -> np.ndarray:
        """Natural index of the token in each slot, int32 [slots]; indices from `length` on are padding."""
        chunks = np.arange(self.num_slots, dtype=np.int32).reshape(self.num_chunks, -1)
        return chunks[chunk_order(self.num_chunks)].reshape(-1)

    @property
    def num_chunks(self) -> int:
        return 2 * self.shards if self.shards > 1 else 1

    def put(self, x: jax.Array, axis: int = -1, fill: float | None = None) -> jax.Array:
        """Bring tokens from natural order into their slots; padding repeats the last token, or is `fill`."""
        if self.num_slots == self.length and self.shards == 1:
            return x[(slice(None),) * (axis % x.ndim) + (slice(self.length),)]
        slots = jnp.take(x, jnp.asarray(np.minimum(self.order, self.length - 1)), axis=axis)
        if fill is None:
            return slots
        is_padding = jnp.asarray(self.order >= self.length)
        return jnp.where(jnp.expand_dims(is_padding, [d for d in range(x.ndim) if d != axis % x.ndim]), fill, slots)

    def take(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """Bring values from their slots back into natural order, without the padding."""
        if self.num_slots == self.length and self.shards == 1:
            return x
        return jnp.take(x, jnp.asarray(np.argsort(self.order)[: self.length]), axis=axis)


def chunk_order(num_chunks: int) -> np.ndarray:
    """Return which chunk each slot chunk holds: 0, n-1, 1, n-2, ..."""
    index = np.arange(num_chunks)
    return np.where(index % 2 == 0, index // 2, num_chunks - 1 - index // 2)


def in_order(x: jax.Array, num_chunks: int, axis: int) -> jax.Array:
    """Put chunks that lie in `chunk_order` back into natural order along an axis."""
    if num_chunks == 1:
        return x
    parts = jnp.split(x, num_chunks, axis=axis)
    return jnp.concatenate([parts[i] for i in np.argsort(chunk_order(num_chunks))], axis=axis)
