"""Which windows of which clips are encoded, and which shard each belongs to; made of arrays, however many there are."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lumos.config import Config
from lumos.data.buckets import Bucket, assign_all, plan_buckets
from lumos.data.sources import Source, open_sources
from lumos.errors import UserError


@dataclasses.dataclass(frozen=True)
class Window:
    """One example to encode: part `where` in [0, 1] of clip `index` of source `number`."""

    source: Source
    number: int
    index: int
    where: float
    bucket: Bucket

    @functools.cached_property
    def row(self) -> dict[str, Any]:
        """What the manifest says of the clip; {} where there is none."""
        facts = self.source.facts
        return facts[self.index] if len(facts) == len(self.source.sizes) else {}

    @property
    def key(self) -> tuple[int, int, float]:
        return self.number, self.index, self.where


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of consecutive windows; they are made when they are asked for."""

    path: Path
    split: Split
    places: range

    @property
    def windows(self) -> list[Window]:
        return [self.split.window(place) for place in self.places]


@dataclasses.dataclass(frozen=True)
class Split:
    """The windows of a split, all of a bucket together; of `num_clips` in all, `num_short` are too short for every bucket.

    Arrays of the windows: the number of the source, the clip in it, which of how many windows of it, the bucket.
    """

    sources: list[Source]
    buckets: Sequence[Bucket]
    number_N: np.ndarray
    index_N: np.ndarray
    part_N: np.ndarray
    parts_N: np.ndarray
    bucket_N: np.ndarray
    num_short: int

    def __len__(self) -> int:
        return len(self.index_N)

    @property
    def num_clips(self) -> int:
        return sum(len(source.sizes) for source in self.sources)

    @property
    def facts(self) -> Iterator[dict]:
        return itertools.chain.from_iterable(source.facts for source in self.sources)

    def window(self, place: int) -> Window:
        number, index, part, parts, bucket = (
            int(values_N[place]) for values_N in (self.number_N, self.index_N, self.part_N, self.parts_N, self.bucket_N)
        )
        return Window(self.sources[number], number, index, part / max(parts - 1, 1), self.buckets[bucket])

    def shards(self, out: Path, name: str, size: int) -> list[Shard]:
        """Divide the windows into files of `size` of them."""
        count = -(-len(self) // size)
        return [
            Shard(
                out / f"{name}-{k:05d}-of-{count:05d}.array_record",
                self,
                range(k * size, min((k + 1) * size, len(self))),
            )
            for k in range(count)
        ]

    def num_encoded(self, left_out: set[int]) -> int:
        """Return how many clips have a window that is not among these places."""
        clips_N = self.number_N.astype(np.int64) << 32 | self.index_N
        return len(np.unique(np.delete(clips_N, sorted(left_out))))


def plan_split(config: Config, split: str, splits: tuple[str, ...]) -> Split:
    """Return every window of every clip, bucket by bucket (all clips of a shard have one size where possible).

    Raises UserError where no clip of the split is long enough.
    """
    buckets = plan_buckets(config.data, config.tokenizer)
    frames_B = np.array([bucket.frames for bucket in buckets])
    sources = [source for source, _ in open_sources(config, split)]
    columns, num_short = [], 0
    for number, source in enumerate(sources):
        try:
            bucket_N = assign_all(source.name, source.sizes, buckets)
        except UserError as error:
            others = ",".join(other for other in splits if other != split)
            raise UserError(f"{error}" + (f"; --splits={others} leaves this split out" if others else "")) from error
        index_N = np.flatnonzero(bucket_N >= 0).astype(np.int32)
        num_short += len(bucket_N) - len(index_N)
        bucket_N = bucket_N[index_N]
        # As few windows as can cover the clip, spread evenly from its first frame to its last.
        parts_N = -(-source.sizes[index_N, 0] // frames_B[bucket_N])
        index_W, parts_W, bucket_W = (np.repeat(values_N, parts_N) for values_N in (index_N, parts_N, bucket_N))
        first_N = np.cumsum(parts_N) - parts_N
        part_W = np.arange(len(index_W)) - np.repeat(first_N, parts_N)
        columns.append((np.full(len(index_W), number, np.int16), index_W, part_W, parts_W, bucket_W))
    number_W, index_W, part_W, parts_W, bucket_W = map(np.concatenate, zip(*columns))
    order = np.argsort(bucket_W, kind="stable")
    arrays = number_W, index_W, part_W.astype(np.int32), parts_W.astype(np.int32), bucket_W.astype(np.int16)
    return Split(sources, buckets, *(values_W[order] for values_W in arrays), num_short)
