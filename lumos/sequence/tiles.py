"""Tiles of queries that see few keys: neighbouring queries, each tile with exactly the keys that one of them sees.

Blocks of `attention.flash` are a few hundred tokens wide. The cells of a latent frame, of a column of time or of a short window of frames see less
than that, and lie across the edges of blocks: most of what blocks compute is masked there. Tiles are chosen at compile time, from static ranges.
The first keys, which most queries see (the text), are not part of a tile: all queries compute them. `lumos/model/tiled_attention.py` runs this.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from lumos.sequence.blocks import Blocks, Ranges
from lumos.sequence.key_ranges import StaticRanges

_SIZES = range(4, 257)  # queries of a tile
_MOST_KEYS = 512  # of a tile: with more, blocks keep what they compute in a cache, and tiles do not
_MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16)  # of the usual number of queries that belong together
_MOST_GROUPS = 4  # each costs time to compile
_MOST_COPIES = 16  # of a gathered key
_OVERHEAD = 8  # queries and keys that a tile costs on top of its own, in arithmetic of the same time
_GAIN = 0.95  # share of the pairs of blocks below which tiles are faster


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Tiles that are computed together, for queries and keys in the order in which ranges count.

    Attributes:
      prefix: how many of the first keys are computed for all tiles, without a copy; those that half of the tiles see.
      query_NQ: the queries of each tile, int32 [tiles, most in a tile]; the number of queries where a tile has fewer.
      key_NS: the other keys of each tile, int32 [tiles, most in a tile]; the number of keys where a tile has fewer.
      places_SM: where each key is in `key_NS`, flattened, as often as it is there; the size of `key_NS` where it is there less often.
    """

    prefix: int
    query_NQ: np.ndarray
    key_NS: np.ndarray
    places_SM: np.ndarray

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key are computed."""
        return self.query_NQ.size * (self.prefix + self.key_NS.shape[1])

    @property
    def cost(self) -> int:
        """The pairs that could be computed in the same time if tiles were large."""
        num, size = self.query_NQ.shape
        return num * (size + _OVERHEAD) * (self.prefix + self.key_NS.shape[1] + _OVERHEAD)

    @property
    def is_small(self) -> bool:
        """Whether its tiles see few keys, and few of them the same."""
        return self.prefix + self.key_NS.shape[1] <= _MOST_KEYS and self.places_SM.shape[1] <= _MOST_COPIES


@dataclasses.dataclass(frozen=True, eq=False)
class Tiles:
    """Which queries and keys meet. `place_Q` is where each query is in the `query_NQ` of all groups, flattened."""

    groups: tuple[Group, ...]
    place_Q: np.ndarray


@functools.lru_cache(maxsize=256)
def tiles(static: StaticRanges, blocks: Blocks) -> Tiles | None:
    """Return the tiles of whole sequences, or None where those blocks compute little more.

    One block is computed without a loop, and compiles fast: it stays.
    """
    order = slice(None) if static.order_S is None else static.order_S
    ranges = _Cut(static.start_RQ[:, order], static.end_RQ[:, order])
    least, best = _GAIN * ranges.num_computed(blocks), None
    if ranges.num_pairs > least or ranges.num_queries <= min(blocks.queries, blocks.keys):
        return None
    for places, size in ranges.cuts():
        groups = _groups(ranges, places, size)
        cost = sum(group.cost for group in groups)
        if cost < least and all(group.is_small for group in groups):
            best, least = groups, cost
    if best is None:
        return None
    queries = np.concatenate([group.query_NQ.ravel() for group in best])
    return Tiles(tuple(best), np.argsort(queries, kind="stable")[: ranges.num_queries])


class _Cut(Ranges):
    """Where queries may be cut, and the keys that tiles see."""

    def cuts(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield places where queries may be cut, and sizes of tiles: multiples of the usual distance between two."""
        both = np.concatenate([self.start_RQ, self.end_RQ])
        sees_others_Q = (both[:, 1:] != both[:, :-1]).any(0)  # than the one before
        start, end = self.start_RQ[:, None, :-1], self.end_RQ[:, None, :-1]
        is_kept = (end <= start) | (self.start_RQ[None, :, 1:] <= start) & (end <= self.end_RQ[None, :, 1:])
        sees_less_Q = ~is_kept.any(1).all(0)  # some range of the one before lies in none of its own
        for begins_Q in (sees_others_Q, sees_less_Q):
            places = np.append(0, np.flatnonzero(begins_Q) + 1)
            parts = np.diff(np.append(places, self.num_queries))
            unit = int(np.bincount(parts, weights=parts).argmax())  # that of most queries
            yield from ((places, unit * times) for times in _MULTIPLES if unit * times in _SIZES)

    def keys(self, first: int, end: int) -> np.ndarray:
        """Return the keys that one of these queries sees."""
        starts, ends = (x[:, first:end].ravel().tolist() for x in (self.start_RQ, self.end_RQ))
        ranges = {(start, end) for start, end in zip(starts, ends) if start < end}
        return np.unique(np.concatenate([np.arange(*x) for x in ranges])) if ranges else np.empty(0, int)


def _groups(ranges: _Cut, places: np.ndarray, size: int) -> list[Group]:
    """Cut queries into tiles, and return groups of those that see about as many keys."""
    firsts = _cut(places, size, ranges.num_queries)
    tiles = [(first, end, ranges.keys(first, end)) for first, end in zip(firsts, [*firsts[1:], ranges.num_queries])]
    counts = sorted({len(keys) for *_, keys in tiles})
    while len(counts) > _MOST_GROUPS:  # the smaller of the two that are closest joins the larger
        counts.pop(int(np.argmin(np.diff(counts))))
    of_count = [[x for x in tiles if low < len(x[2]) <= high] for low, high in zip([-1, *counts], counts)]
    return [_group(group, ranges.num_queries) for group in of_count]


def _cut(places: np.ndarray, size: int, num_queries: int) -> list[int]:
    """Return where tiles begin: at places, so that as many parts as fit are in one, and within a part that is larger than a tile."""
    firsts = [0]
    for first, end in zip(places.tolist(), [*places[1:].tolist(), num_queries]):
        if first > firsts[-1] and end - firsts[-1] > size:
            firsts.append(first)
        firsts += range(firsts[-1] + size, end, size)
    return firsts


def _group(tiles: list[tuple[int, int, np.ndarray]], num: int) -> Group:
    # Keys from the first one on that half of the tiles see are not gathered.
    prefix = int(np.median([np.argmin(np.append(keys, -1) == np.arange(len(keys) + 1)) for *_, keys in tiles]))
    if not any(len(keys) for *_, keys in tiles):
        prefix = 1  # they see nothing, and there has to be a key that they do not see
    others = [keys[keys >= prefix] for *_, keys in tiles]
    query_NQ = np.full((len(tiles), max(end - first for first, end, _ in tiles)), num, np.int32)
    key_NS = np.full((len(tiles), max(map(len, others))), num, np.int32)
    for tile, ((first, end, _), keys) in enumerate(zip(tiles, others)):
        query_NQ[tile, : end - first], key_NS[tile, : len(keys)] = np.arange(first, end), keys
    by_key = np.argsort(key_NS, axis=None, kind="stable")
    key, copies_S = key_NS.ravel()[by_key], np.bincount(key_NS.ravel(), minlength=num + 1)
    copy = np.arange(len(key)) - (np.cumsum(copies_S) - copies_S)[key]  # counts the places of each key
    places_SM = np.full((num + 1, copies_S[:num].max()), key_NS.size, np.int32)
    places_SM[key[key < num], copy[key < num]] = by_key[key < num]
    return Group(prefix, query_NQ, key_NS, places_SM[:num])
