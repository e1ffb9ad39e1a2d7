"""Record shards in a bucket, read by the byte ranges of their records; those fetched last are on the local disk, up to a number of bytes.

What a run will read is known before, so that it is fetched many records at a time (`fetch`); one that was not is fetched when it is read.
"""

from __future__ import annotations

import collections
import os
import tempfile
import threading
import zlib
from collections.abc import Sequence
from typing import Any

from lumos import files
from lumos.data import record_places
from lumos.data.record_places import Places
from lumos.errors import UserError

_AT_A_TIME = 512  # ranges that are asked for side by side

Key = tuple[int, int]  # shard, and record in it


class RemoteShards:
    """Shards of one bucket.

    Attributes:
      lengths: records of every shard.
      room: records that may be fetched before they are read.

    Raises:
      UserError: a shard or its list of places is missing.
    """

    def __init__(self, paths: Sequence[str], max_bytes: int):
        self._paths, self._fs, self._kept = list(paths), files.file_system(paths[0]), Ring(max_bytes)
        self._fetching = threading.Lock()
        names = [path + record_places.SUFFIX for path in self._paths]
        self._places = [
            self._read(name, data) for name, data in zip(names, self._bring([(n, None, None) for n in names]))
        ]
        self.lengths = [len(places) for places in self._places]
        size = sum(int(places.begin_N1[-1]) for places in self._places)
        self.room = int(max_bytes / 2 / max(1.0, size / max(1, sum(self.lengths))))

    def _read(self, name: str, data: bytes | Exception) -> Places:
        if not isinstance(data, Exception):
            return record_places.of_bytes(data)
        shard = name.removesuffix(record_places.SUFFIX)
        if not files.path(shard).exists():
            raise UserError(f"{shard}: cannot be read (no such bucket or object)") from data
        raise UserError(
            f"{shard}: cannot be read from a bucket without {name.rpartition('/')[2]} beside it; copy the folder as `lumos tokenize` "
            "wrote it, with all of its files"
        ) from data

    def read(self, shard: int, record: int) -> bytes:
        """Return a record. Raises ValueError where its bytes are not those that were written."""
        if (data := self._kept.get((shard, record))) is None:
            with self._fetching:  # perhaps it is on its way
                if (data := self._kept.get((shard, record))) is None:
                    data = self._fetch([(shard, record)], must=True)[0]
        places = self._places[shard]
        if zlib.crc32(data) != places.crc_N[record]:
            raise ValueError("its bytes are not those that were written")
        return record_places.record_of(data, int(places.begin_N1[record]))

    def fetch(self, wanted: Sequence[Key]) -> None:
        """Bring records, as far as they are not here."""
        for start in range(0, len(wanted), _AT_A_TIME):
            with self._fetching:
                self._fetch([key for key in wanted[start : start + _AT_A_TIME] if key not in self._kept])

    def _fetch(self, keys: list[Key], must: bool = False) -> list[Any]:
        ranges = [(self._paths[shard], *self._places[shard].range(record)) for shard, record in keys]
        parts = self._bring(ranges, must)
        for key, part in zip(keys, parts):
            if not isinstance(part, Exception):  # else it is asked for again when it is read
                self._kept.put(key, part)
            elif must:
                raise UserError(f"{self._paths[key[0]]}: cannot be read ({files.reason_of(part)})") from part
        return parts

    def _bring(self, ranges: list[tuple[str, int | None, int | None]], must: bool = True) -> list[Any]:
        """Return parts of objects. What is not there is a FileNotFoundError; another error is one with `must` False alone."""
        parts: list[Any] = [None] * len(ranges)

        def ask() -> None:
            left = [i for i, part in enumerate(parts) if part is None or isinstance(part, Exception)]
            if not left:
                return
            asked = zip(*(ranges[i] for i in left))
            for i, part in zip(left, self._fs.cat_ranges(*map(list, asked), on_error="return")):
                parts[i] = part
            errors = [part for part in parts if isinstance(part, Exception) and not isinstance(part, FileNotFoundError)]
            if errors and must:
                raise errors[0]

        files.retried(ask)
        return parts


class Ring:
    """Values in a file of bounded size; a new one takes the place of those that have been there for longest."""

    def __init__(self, max_bytes: int):
        self._file, self._max_bytes, self._next = tempfile.TemporaryFile(prefix="lumos-records-"), max_bytes, 0
        self._order: collections.deque[tuple[int, int, Key]] = collections.deque()  # first byte, end, key
        self._places: dict[Key, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: Key) -> bytes | None:
        with self._lock:
            if (place := self._places.get(key)) is None:
                return None
            return os.pread(self._file.fileno(), place[1] - place[0], place[0])

    def put(self, key: Key, data: bytes) -> None:
        with self._lock:
            if key in self._places or len(data) > self._max_bytes:
                return
            if self._next + len(data) > self._max_bytes:
                self._drop_from(self._next, self._max_bytes)
                self._next = 0
            end = self._next + len(data)
            self._drop_from(self._next, end)
            os.pwrite(self._file.fileno(), data, self._next)
            self._order.append((self._next, end, key))
            self._places[key] = (self._next, end)
            self._next = end

    def _drop_from(self, first: int, end: int) -> None:
        """Drop the oldest values as long as they stand in these bytes."""
        while self._order and first <= self._order[0][0] < end:
            del self._places[self._order.popleft()[2]]
