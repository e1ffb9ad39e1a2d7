"""ArrayRecord shards of named arrays and strings: random access, no pickle, never half written.

A record is one safetensors blob. A string is stored as a uint8 array of its UTF-8 bytes under the name with the
suffix ".utf8", and comes back as a string.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors import SafetensorError
from safetensors.numpy import load, save

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

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.with_name(self.path.name + ".partial")
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
            self._writer.close()
        except (OSError, RuntimeError) as error:
            self._partial.unlink(missing_ok=True)
            raise UserError(f"cannot write {self.path}: {_first_line(error)}") from error
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the error that led here is the one to report
            self._writer.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None:
            self.close()
        else:
            self.discard()


class RecordSource:
    """Random access to the records of several shards, in the order of the given paths.

    Attributes:
      lengths: number of records in each shard.

    Raises:
      UserError: a shard is missing or damaged (on construction), or a record is (on access).
    """

    def __init__(self, paths: Sequence[str | Path]):
        self._paths = [str(path) for path in paths]
        self._shards = [_open_shard(path) for path in self._paths]
        self.lengths = [len(shard) for shard in self._shards]
        self._ends = list(itertools.accumulate(self.lengths))

    def __len__(self) -> int:
        return sum(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        position = index - self._ends[shard] + self.lengths[shard]
        try:
            return decode(self._shards[shard][position])
        except (SafetensorError, ValueError, RuntimeError, KeyError, IndexError) as error:
            raise UserError(f"{self._paths[shard]}: record {position} is damaged ({_first_line(error)})") from error


def _open_shard(path: str) -> ArrayRecordDataSource:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such record file")
    if not path.isascii() and any("\ud800" <= character <= "\udfff" for character in path):
        raise UserError(f"{printable(path)}: record files are read below folders whose names are UTF-8; rename it")
    try:
        return ArrayRecordDataSource([path])
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: damaged record file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
