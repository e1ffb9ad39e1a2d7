"""ArrayRecord shards of named arrays and strings: random access, no pickle, never half written.

A record is one safetensors blob. A string is stored as a uint8 array of its UTF-8 bytes under the name with the
suffix ".utf8", and comes back as a string.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import resource
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lumos import files
from lumos.data import record_places
from lumos.data.remote_records import RemoteShards
from lumos.errors import UserError, printable

_STRING = ".utf8"


def encode(record: Mapping[str, np.ndarray | str]) -> bytes:
    """Return the bytes of one record."""
    arrays = {}
    for name, value in record.items():
        if isinstance(value, str):
            arrays[name + _STRING] = np.frombuffer(value.encode(), np.uint8)
        else:
            # safetensors writes the buffer as it lies, so a transposed view would be scrambled.
            arrays[name] = np.ascontiguousarray(value)
    return save(arrays)


def decode(data: bytes) -> dict[str, np.ndarray | str]:
    """Return the record that `encode` wrote. Raises SafetensorError on damaged bytes."""
    record = {}
    for name, array in load(data).items():
        if name.endswith(_STRING):
            record[name.removesuffix(_STRING)] = array.tobytes().decode()
        else:
            record[name] = array
    return record


class RecordWriter:
    """Write one shard. The file appears under its name only when `close` has finished.

    As a context manager it closes on success and discards the partial file on an exception.
    """

    def __init__(self, path: str | Path, own: str = ""):
        self.path, self._stack, self._own = files.path(path), contextlib.ExitStack(), own  # own: see `files.written`
        self._partial = self._stack.enter_context(files.written(self.path, own))
        # One record per group: random access then reads one record, not a group (grain asks for it).
        self._writer = ArrayRecordWriter(str(self._partial), "group_size:1")
        self.num_records = 0

    def write(self, record: Mapping[str, np.ndarray | str]) -> None:
        try:
            self._writer.write(encode(record))
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot write {self.path}: {_first_line(error)}") from error
        self.num_records += 1

    def close(self) -> None:
        try:
            with self._stack:
                self._writer.close()
                # First, so that a shard which is there has its list.
                with files.written(self.path.with_name(self.path.name + record_places.SUFFIX), self._own) as partial:
                    partial.write_bytes(record_places.of_file(self._partial).to_bytes())
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot write {self.path}: {_first_line(error)}") from error

    def discard(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, _Discarded), self._stack:
            self._writer.close()
            raise _Discarded

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None:
            self.close()
        else:
            self.discard()


class _Discarded(Exception):
    """Keeps a file from becoming whole; the error that led to it is the one to report."""


class RecordSource:
    """Random access to the records of several shards, in the order of the given paths.

    Attributes:
      lengths: number of records in each shard.

    Raises:
      UserError: a shard is missing or damaged (on construction), or a record is (on access).
    """

    def __init__(self, paths: Sequence[str | Path], max_bytes: int = 2 << 30):
        """Open shards; of those of a bucket at most `max_bytes` are kept on the local disk."""
        self._paths = [str(path) for path in paths]
        self.remote = RemoteShards(self._paths, max_bytes) if paths and files.is_remote(self._paths[0]) else None
        self._most_open = _allow_open(len(self._paths))
        self._open: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()
        if self.remote:
            self.lengths = self.remote.lengths
        else:
            with ThreadPoolExecutor(8) as pool:
                self.lengths = list(pool.map(lambda shard: self._reader(shard).num_records(), range(len(self._paths))))
        self._ends = list(itertools.accumulate(self.lengths))

    def __len__(self) -> int:
        return sum(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, position = self._place(index)
        try:
            if self.remote:
                return decode(self.remote.read(shard, position))
            return decode(self._reader(shard).read([position])[0])
        except (SafetensorError, ValueError, RuntimeError, KeyError, IndexError) as error:
            raise UserError(f"{self._paths[shard]}: record {position} is damaged ({_first_line(error)})") from error

    def fetch(self, indices: Iterable[int]) -> None:
        """Bring records of a bucket that will be read."""
        if self.remote:
            self.remote.fetch([self._place(index) for index in indices])

    def _place(self, index: int) -> tuple[int, int]:
        """Return the shard of a record, and the place of the record in it."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - self._ends[shard] + self.lengths[shard]

    def _reader(self, shard: int) -> ArrayRecordReader:
        """Return the open reader of a shard. Of more shards than files may be open, the one opened first is closed."""
        if (reader := self._open.get(shard)) is None:
            reader = _open_shard(self._paths[shard])
            with self._lock:
                while len(self._open) >= self._most_open:
                    del self._open[next(iter(self._open))]  # it closes when the last read in it has ended
                self._open[shard] = reader
        return reader


def _allow_open(number: int) -> int:
    """Return how many of `number` files may be open at a time, beside others; let this process have so many if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = 512
    if soft != resource.RLIM_INFINITY and soft < number + others:
        soft = number + others if hard == resource.RLIM_INFINITY else min(number + others, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return number if soft == resource.RLIM_INFINITY else max(16, min(number, soft - others))


def _open_shard(path: str) -> ArrayRecordReader:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such record file")
    if not path.isascii() and any("\ud800" <= character <= "\udfff" for character in path):
        raise UserError(f"{printable(path)}: record files are read below folders whose names are UTF-8; rename it")
    try:
        # Records are read at random: nothing is read ahead.
        reader = ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)
        if not reader.ok():
            reader.close()  # raises what is wrong
        return reader
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: damaged record file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
