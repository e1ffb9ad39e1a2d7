"""Blocks of queries and keys for `attention.flash`: how large they are and where they begin, so that few hidden pairs are computed.

A block of keys is computed for a block of queries where one of its pairs is visible. A block of queries that ends just behind the first
tokens of a latent frame meets the keys of that whole frame with all of its queries; one that ends before them does not.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np

from lumos.sequence.key_ranges import StaticRanges

_STEP = 8  # sizes are multiples of it
_OVERHEAD = 48  # queries and keys that a block costs on top of its own, in arithmetic of the same time (two CPU cores)


class Blocks(NamedTuple):
    """Queries and keys of a block, and the rows of padding in front of the first query; the rest of the padding is behind."""

    queries: int
    keys: int
    queries_before: int = 0


def equal_blocks(num_queries: int, num_keys: int, most_queries: int, most_keys: int) -> Blocks:
    """Return blocks of at most that many, as equal as can be, so that there is little padding."""
    return Blocks(_equal(num_queries, most_queries), _equal(num_keys, most_keys))


def _equal(length: int, most: int) -> int:
    if length <= most:
        return length
    num_blocks = -(-length // most)
    return min(-(-length // (_STEP * num_blocks)) * _STEP, most)


@functools.lru_cache(maxsize=256)
def best_blocks(static: StaticRanges, most_queries: int, most_keys: int) -> Blocks:
    """Return the blocks of at most that many queries and keys that compute whole sequences fastest."""
    order = slice(None) if static.order_S is None else static.order_S
    ranges = Ranges(static.start_RQ[:, order], static.end_RQ[:, order])
    length = ranges.num_queries
    found = equal_blocks(length, length, most_queries, most_keys)
    if length <= min(most_queries, most_keys):
        return found
    sizes = lambda most: range(-(-most // (2 * _STEP)) * _STEP, most + 1, _STEP)
    for queries, keys in itertools.product(sizes(min(most_queries, length)), sizes(min(most_keys, length))):
        behind, before = Blocks(queries, keys), Blocks(queries, keys, -length % queries)
        found = min(found, behind, before, key=ranges.cost)
    return found


class Ranges:
    """Ranges of keys, start and end [R, Q], of as many queries as keys, in the order in which they count."""

    def __init__(self, start_RQ: np.ndarray, end_RQ: np.ndarray):
        self.start_RQ, self.end_RQ, self.num_queries = start_RQ, end_RQ, start_RQ.shape[1]
        self.num_pairs = int(np.maximum(end_RQ - start_RQ, 0).sum())

    def num_blocks(self, blocks: Blocks) -> int:
        """Return how many blocks of keys `attention.flash` computes, over all blocks of queries."""
        block, seen = np.arange(-(-self.num_queries // blocks.keys)), False
        for start_N, end_N in self._of_queries(blocks.queries, blocks.queries_before):
            first_N, last_N = start_N // blocks.keys, -(-end_N // blocks.keys)
            seen = seen | (block >= first_N[:, None]) & (block < last_N[:, None])
        return int(np.count_nonzero(seen))

    def num_computed(self, blocks: Blocks) -> int:
        """Return how many pairs `attention.flash` computes."""
        return self.num_blocks(blocks) * blocks.queries * blocks.keys

    def cost(self, blocks: Blocks) -> int:
        """Return the pairs that could be computed in the same time if blocks were large."""
        return self.num_blocks(blocks) * (blocks.queries + _OVERHEAD) * (blocks.keys + _OVERHEAD)

    def _of_queries(self, size: int, before: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the first and one past the last key that some query of each block sees, range by range."""
        edges = np.maximum(np.arange(-before, self.num_queries, size), 0)
        return [
            (
                np.minimum.reduceat(np.where(end_Q > start_Q, start_Q, self.num_queries), edges),
                np.maximum.reduceat(np.where(end_Q > start_Q, end_Q, 0), edges),
            )
            for start_Q, end_Q in zip(self.start_RQ, self.end_RQ)
        ]
