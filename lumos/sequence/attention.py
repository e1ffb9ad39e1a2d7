"""Slot 2, attention: one predicate over per-token integers says who sees whom.

    visible(q, k) = valid[k] and (index[k] <= index[q] or group[k] == group[q])

Causal text (unique groups), frame-causal video (group = latent frame) and full attention (one group) are values
of `group`. When groups are contiguous, the keys that a query sees form one range, and kernels take that range
(`KeyRange`) instead of a mask: nothing of size [L, L] is built.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lumos.sequence.layout import Layout
from lumos.sequence.storage import Storage


class StaticEnd:
    """The ends of key ranges as a NumPy array [Q] that may be part of a compiled function's key.

    It promises more than `KeyRange`: ends are the same in every row, and each row has one start for all its queries.
    Kernels that build their schedule at compile time need that.
    """

    def __init__(self, end_Q: np.ndarray):
        self.end_Q = np.asarray(end_Q, np.int32)
        self._bytes = self.end_Q.tobytes()

    def __eq__(self, other):
        return isinstance(other, StaticEnd) and self._bytes == other._bytes

    def __hash__(self):
        return hash(self._bytes)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("start_BQ", "end_BQ"), meta_fields=("static", "num_chunks")
)
@dataclasses.dataclass(frozen=True)
class KeyRange:
    """Query q of row b sees keys start_BQ[b, q] <= k < end_BQ[b, q]. Both int32, [B or 1, Q].

    `num_chunks` > 1: keys are given in the chunk order of `sequence.storage`; ranges count in natural order.
    """

    start_BQ: jax.Array
    end_BQ: jax.Array
    static: StaticEnd | None = None
    num_chunks: int = 1

    def dense(self, num_keys: int) -> jax.Array:
        """Return the mask bool [B or 1, Q, num_keys]: tests and tiny inputs only."""
        key = jnp.arange(num_keys)
        return (key >= self.start_BQ[..., None]) & (key < self.end_BQ[..., None])


def visible(index_L: np.ndarray, group_L: np.ndarray, valid_L: np.ndarray | None = None) -> np.ndarray:
    """Evaluate the predicate for every pair, bool [L (query), L (key)]: the definition, used as the test oracle."""
    sees = (index_L[None, :] <= index_L[:, None]) | (group_L[None, :] == group_L[:, None])
    return sees if valid_L is None else sees & valid_L[None, :]


def range_end(group_L: np.ndarray) -> np.ndarray:
    """Return one past the last visible key of each query, int32 [L]. Raises ValueError if a group is not contiguous."""
    change = np.flatnonzero(np.diff(group_L)) + 1
    starts = np.concatenate([[0], change])
    if len(np.unique(group_L[starts])) != len(starts):
        raise ValueError("a group is not contiguous in the sequence: its keys are not one range")
    ends = np.concatenate([change, [len(group_L)]])
    return np.repeat(ends, ends - starts).astype(np.int32)


def layout_range(layout: Layout, first_key_B: jax.Array, storage: Storage | None = None) -> KeyRange:
    """Return the key range of a whole sequence; keys before `first_key_B` (padding, dropped text) are invisible.

    With a `storage` the queries are its slots; padding slots see what comes before them, and nothing sees them.
    """
    storage = storage or Storage(layout.length)
    natural = np.concatenate([range_end(layout.group), np.arange(layout.length, storage.num_slots) + 1])
    end = StaticEnd(natural[storage.order])
    start_BQ = jnp.broadcast_to(first_key_B[:, None], (first_key_B.shape[0], storage.num_slots))
    return KeyRange(start_BQ, jnp.asarray(end.end_Q)[None], end, storage.num_chunks)


def count_pairs(layout: Layout, text_length: float | None = None) -> float:
    """Return how many (query, key) pairs a row computes: the exact attention area, for FLOP counts."""
    first = layout.num_text - (layout.num_text if text_length is None else text_length)
    end_L = range_end(layout.group)
    index_L = np.arange(layout.length)
    return float(np.maximum(end_L - first, 0)[index_L >= first].sum())
