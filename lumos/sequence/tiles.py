"""Tiles of queries that see few keys: neighbouring queries, each tile with exactly the keys that one of them sees.

Blocks of `attention.flash` are a few hundred tokens wide. The cells of a latent frame, of a column of time or of a short window of frames see less
than that, and lie across the edges of blocks: most of what blocks compute is masked there. Tiles are chosen at compile time, from static ranges.
Keys that most queries see (the text) are not part of tiles: all queries compute them. `lumos/model/tiled_attention.py` runs this.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from lumos.sequence.key_ranges import StaticRanges

_LARGEST = 256  # queries of a tile
_MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16)  # of the usual distance at which queries begin to see other keys
_MOST_COPIES = 16  # of a gathered key
_OVERHEAD = 8  # queries and keys that a tile costs on top of its own, in arithmetic of the same time
_GAIN = 0.75  # share of the pairs of blocks below which tiles are faster


@dataclasses.dataclass(frozen=True, eq=False)
class Tiles:
    """Which queries and keys meet, for queries and keys in the order in which ranges count.

    Attributes:
      prefix: how many of the first keys all tiles see.
      query_NQ: the queries of each tile, int32 [tiles, most in a tile]; the number of queries where a tile has fewer.
      key_NS: the keys of each tile, int32 [tiles, most in a tile]; the number of keys where a tile has fewer.
      place_Q: where each query is in `query_NQ`, flattened.
      places_SM: where each key behind the prefix is in `key_NS`, flattened, as often as it is there; the size of `key_NS` where it is there less often.
    """

    prefix: int
    query_NQ: np.ndarray
    key_NS: np.ndarray
    place_Q: np.ndarray
    places_SM: np.ndarray

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key are computed."""
        return self.query_NQ.size * (self.prefix + self.key_NS.shape[1])


@functools.lru_cache(maxsize=256)
def tiles(static: StaticRanges, block_queries: int, block_keys: int) -> Tiles | None:
    """Return the tiles of whole sequences, or None where blocks of that size compute little more."""
    order = slice(None) if static.order_S is None else static.order_S
    start_RQ, end_RQ = static.start_RQ[:, order], static.end_RQ[:, order]
    most = _GAIN * _block_pairs(start_RQ, end_RQ, block_queries, block_keys)
    if np.maximum(end_RQ - start_RQ, 0).sum() > most / 2:
        return None
    prefix = _prefix(start_RQ, end_RQ)
    start_RQ = np.maximum(start_RQ, prefix)  # what is left to gather
    best, least = None, most
    drops = _drops(start_RQ, end_RQ)
    unit = int(np.bincount(np.diff(drops)).argmax()) if len(drops) > 1 else _LARGEST + 1
    for size in (unit * times for times in _MULTIPLES if unit * times <= _LARGEST):
        of_drops = (len(_keys(start_RQ[:, drop : drop + size], end_RQ[:, drop : drop + size])) for drop in drops)
        most_keys = max(*of_drops, np.maximum(end_RQ - start_RQ, 0).sum(0).max())
        cut = _cut(start_RQ, end_RQ, size, most_keys)
        cost = len(cut) * (size + _OVERHEAD) * (prefix + most_keys + _OVERHEAD)
        if cost < least:
            best, least = _of(start_RQ, end_RQ, prefix, cut, size, most_keys), cost
    return best if best and best.places_SM.shape[1] <= _MOST_COPIES else None


def _block_pairs(start_RQ, end_RQ, block_queries: int, block_keys: int) -> int:
    """Return how many pairs `attention.flash` computes: the blocks of keys that a block of queries sees."""
    edges, num_queries = np.arange(0, start_RQ.shape[1], block_queries), start_RQ.shape[1]
    block, seen = np.arange(-(-num_queries // block_keys)), False
    for start_Q, end_Q in zip(start_RQ, end_RQ):
        first = np.minimum.reduceat(np.where(end_Q > start_Q, start_Q, num_queries), edges) // block_keys
        last = -(-np.maximum.reduceat(np.where(end_Q > start_Q, end_Q, 0), edges) // block_keys)
        seen = seen | (block >= first[:, None]) & (block < last[:, None])
    return int(np.count_nonzero(seen)) * block_queries * block_keys


def _prefix(start_RQ, end_RQ) -> int:
    """Return how many of the first keys more than half of the queries see."""
    change = np.zeros(start_RQ.shape[1] + 1, int)
    seen = end_RQ > start_RQ
    np.add.at(change, start_RQ[seen], 1)
    np.add.at(change, end_RQ[seen], -1)
    is_common = np.cumsum(change) > start_RQ.shape[1] / 2
    return int(np.argmin(is_common))


def _drops(start_RQ, end_RQ) -> np.ndarray:
    """Return the queries that do not see all that the one before sees."""
    start, end = start_RQ[:, None, :-1], end_RQ[:, None, :-1]
    # Each range of the one before lies in a range of the next.
    is_kept = (end <= start) | (start_RQ[None, :, 1:] <= start) & (end <= end_RQ[None, :, 1:])
    return np.flatnonzero(~is_kept.any(1).all(0)) + 1


def _keys(start_RQ, end_RQ) -> np.ndarray:
    """Return the keys that one of the queries sees."""
    ranges = {(start, end) for start, end in zip(start_RQ.ravel().tolist(), end_RQ.ravel().tolist()) if start < end}
    return np.unique(np.concatenate([np.arange(*x) for x in ranges])) if ranges else np.empty(0, int)


def _cut(start_RQ, end_RQ, size: int, most_keys: int) -> list[int]:
    """Return where tiles begin that have at most so many queries and keys."""
    firsts, count, seen_S = [0], 0, np.zeros(start_RQ.shape[1], bool)
    for query in range(start_RQ.shape[1]):
        ranges = [slice(start, end) for start, end in zip(start_RQ[:, query], end_RQ[:, query]) if start < end]
        if query - firsts[-1] == size or count + sum(np.count_nonzero(~seen_S[x]) for x in ranges) > most_keys:
            firsts.append(query)
            seen_S[:], count = False, 0
        for x in ranges:
            count += np.count_nonzero(~seen_S[x])
            seen_S[x] = True
    return firsts


def _of(start_RQ, end_RQ, prefix: int, firsts: list[int], size: int, most_keys: int) -> Tiles:
    num = start_RQ.shape[1]
    query_NQ = np.full((len(firsts), size), num, np.int32)
    key_NS = np.full((len(firsts), most_keys), num, np.int32)
    for tile, (first, end) in enumerate(zip(firsts, [*firsts[1:], num])):
        keys = _keys(start_RQ[:, first:end], end_RQ[:, first:end])
        query_NQ[tile, : end - first], key_NS[tile, : len(keys)] = np.arange(first, end), keys
    by_key = np.argsort(key_NS, axis=None, kind="stable")
    key, copies_S = key_NS.ravel()[by_key], np.bincount(key_NS.ravel(), minlength=num + 1)
    copy = np.arange(len(key)) - (np.cumsum(copies_S) - copies_S)[key]  # counts the places of each key
    places_SM = np.full((num + 1, max(1, copies_S[:num].max())), key_NS.size, np.int32)
    places_SM[key[key < num], copy[key < num]] = by_key[key < num]
    return Tiles(prefix, query_NQ, key_NS, np.flatnonzero(query_NQ < num), places_SM[prefix:num])
