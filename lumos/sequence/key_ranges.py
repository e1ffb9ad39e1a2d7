"""Key ranges: the keys that a query sees, as a few integers a query instead of a mask.

`KeyRanges` is what attention kernels take. Nothing of size [queries, keys] is built: R ranges cost 2R integers a query,
and R is small (1 for causal masks; 2 to 4 for a sink and a window, two copies of a sequence, scenes, axial attention).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Call(NamedTuple):
    """Consecutive queries that see the same ranges of keys; or, `is_causal`, each of them those of one range up to itself."""

    first: int
    size: int
    ranges: tuple[tuple[int, int], ...]  # (start, end) of each, in order
    is_causal: bool = False


class StaticRanges:
    """Ranges that are the same in every row, as NumPy arrays that may be part of a compiled function's key.

    Kernels that build their schedule at compile time need that.

    Attributes:
      start_RQ, end_RQ: int32 [R, Q], counted in natural key order.
      order_S: None, or a permutation of the natural key order, int32 [S]. Ranges then count in the permuted order: its
        key j is key order_S[j]. Attention over time is one range a query when keys lie in the order (y, x, t).
    """

    def __init__(self, start_RQ: np.ndarray, end_RQ: np.ndarray, order_S: np.ndarray | None = None):
        self.start_RQ, self.end_RQ = np.asarray(start_RQ, np.int32), np.asarray(end_RQ, np.int32)
        self.order_S = None if order_S is None else np.asarray(order_S, np.int32)
        arrays = (self.start_RQ, self.end_RQ, self.order_S)
        self._key = tuple(None if x is None else (x.shape, x.tobytes()) for x in arrays)

    @functools.cached_property
    def runs(self) -> tuple[tuple[int, int], ...] | None:
        """How the queries fall into groups that see all earlier ones and themselves, as (how many, how large) of consecutive
        groups of one size; None where they see something else."""
        end_Q = self.end_RQ[0]
        last = np.flatnonzero(np.append(end_Q[1:] != end_Q[:-1], True))
        if len(self.end_RQ) > 1 or self.start_RQ.any() or self.order_S is not None or (end_Q[last] != last + 1).any():
            return None
        sizes = np.diff(last, prepend=-1).tolist()
        return tuple((len(list(same)), size) for size, same in itertools.groupby(sizes))

    @property
    def alike(self) -> bool:
        """Whether all queries see the same keys."""
        return all((x_RQ == x_RQ[:, :1]).all() for x_RQ in (self.start_RQ, self.end_RQ))

    @functools.cached_property
    def calls(self) -> tuple[Call, ...]:
        """The queries in runs that a kernel without a mask can compute, one after the other."""
        calls: list[Call] = []
        for query, (start_R, end_R) in enumerate(zip(self.start_RQ.T.tolist(), self.end_RQ.T.tolist())):
            ranges = tuple(sorted((start, end) for start, end in zip(start_R, end_R) if start < end))
            last = calls[-1] if calls else Call(query, 0, ())
            begun = last.is_causal or last.size == 1 and last.ranges == ((last.first, query),)
            if last.size and not last.is_causal and last.ranges == ranges:
                calls[-1] = last._replace(size=last.size + 1)
            elif begun and ranges == ((last.first, query + 1),):
                calls[-1] = Call(last.first, last.size + 1, ranges, is_causal=True)
            else:
                calls.append(Call(query, 1, ranges))
        return tuple(calls)

    def __eq__(self, other):
        return isinstance(other, StaticRanges) and self._key == other._key

    def __hash__(self):
        return hash(self._key)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("start_RBQ", "end_RBQ", "bias_BS", "first_B", "gated"),
    meta_fields=("static", "num_chunks", "runs", "alike"),
)
@dataclasses.dataclass(frozen=True)
class KeyRanges:
    """Query q of row b sees the keys k with start_RBQ[r, b, q] <= k < end_RBQ[r, b, q] for some r.

    Ranges of one query are disjoint; an empty range has start >= end.

    Attributes:
      start_RBQ, end_RBQ: int32 [R, B or 1, Q].
      bias_BS: float32 [B or 1, S] or None: added to the logits of each key, in the order in which keys are given (a
        temporal decay, the gate of a sink; -1e30 hides a key).
      first_B: int32 [B] or None: the first visible key of each row, in the order in which `static` counts. `start_RBQ`
        respects it already; kernels that take `static` need it apart.
      static: the same ranges before `first_B`, if every row has the same.
      gated: what the queries see apart, through a learnt gate (`model.mixer`), or None.
      runs: `StaticRanges.runs`, which linear attention goes by.
      alike: whether all queries of a row are known to see the same keys.
      num_chunks: if above 1, keys are given in the chunk order of `sequence.storage`; ranges count in natural order.
    """

    start_RBQ: jax.Array
    end_RBQ: jax.Array
    bias_BS: jax.Array | None = None
    first_B: jax.Array | None = None
    static: StaticRanges | None = None
    num_chunks: int = 1
    gated: KeyRanges | None = None
    runs: tuple[tuple[int, int], ...] | None = None
    alike: bool = False

    @classmethod
    def of(
        cls, static: StaticRanges, first_B: jax.Array | None, bias_BS: jax.Array | None = None, num_chunks: int = 1
    ) -> KeyRanges:
        """Return static ranges without the keys before `first_B` (padding, dropped text)."""
        start_RBQ, end_RBQ = jnp.asarray(static.start_RQ)[:, None], jnp.asarray(static.end_RQ)[:, None]
        if first_B is not None:
            start_RBQ = jnp.maximum(start_RBQ, first_B[:, None])
        return cls(start_RBQ, end_RBQ, bias_BS, first_B, static, num_chunks, runs=static.runs)

    @property
    def order_S(self) -> np.ndarray | None:
        """The permutation of the keys in whose order ranges count, or None."""
        return None if self.static is None else self.static.order_S

    def dense(self, num_keys: int) -> jax.Array:
        """Return the mask bool [B or 1, Q, num_keys] over keys in natural order: tests and tiny inputs only."""
        key = jnp.arange(num_keys) if self.order_S is None else jnp.argsort(self.order_S)
        return ((key >= self.start_RBQ[..., None]) & (key < self.end_RBQ[..., None])).any(0)
