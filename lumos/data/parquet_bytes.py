"""Clips that lie in parquet files as values of a column, as Hugging Face sets have them.

A value that stands in the file as it is has a byte range, which is read like a file. One that was compressed is read with the row group it is
in, of which the last ones used are kept.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lumos import files
from lumos.data.remote_file import opened
from lumos.errors import UserError, printable

_LONGEST_NAME = 1024  # bytes; what is longer is no path
_KEPT_BYTES = 1 << 29  # of row groups
_kept: collections.OrderedDict[tuple, Any] = collections.OrderedDict()
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of a column of clips: `data`, the byte range `offset` (-1: there is none), and the values of other columns beside it."""

    row: int
    data: bytes | None
    name: str
    offset: int
    fields: dict[str, Any]


def media_column(path: Path) -> str:
    """Return the column of a parquet file that holds files, "" where there is none: bytes, or {bytes, path}. Raises UserError."""
    import pyarrow

    file = _open(path)
    for field in file.schema_arrow:
        if pyarrow.types.is_struct(field.type):
            inside = [field.type.field(i) for i in range(field.type.num_fields)]
            if any(part.name == "bytes" and _is_binary(pyarrow, part.type) for part in inside):
                return f"{field.name}.bytes"
        elif _is_binary(pyarrow, field.type):
            first = next(file.iter_batches(1, columns=[field.name]), [[]])[0]
            if len(first) and len(first[0].as_py() or b"") > _LONGEST_NAME:
                return field.name
    return ""


def _is_binary(pyarrow: Any, kind: Any) -> bool:
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def values(path: Path, column: str) -> Iterator[Value]:
    """Yield the values of a column of clips. Raises UserError where the file is damaged."""
    file, row = _open(path), 0
    top = column.partition(".")[0]
    with contextlib.ExitStack() as stack:
        part_of = _parts(path, stack)
        for group in range(file.num_row_groups):
            try:
                rows = file.read_row_group(group).to_pylist()
            except (ValueError, OSError) as error:
                raise UserError(f"{path}: damaged behind row {row} ({printable(str(error))})") from error
            search = _Search(file.metadata.row_group(group), column, part_of)
            for fields in rows:
                value, name = fields.pop(top), ""
                if isinstance(value, dict):
                    value, name = value.get("bytes"), value.get("path") or ""
                yield Value(row, value, name, search(value) if value else -1, fields)
                row += 1


def _parts(path: Path, stack: contextlib.ExitStack) -> Callable[[int, int], tuple[Any, int]]:
    """Return a function that gives for the first byte of a part of a file, and its end, bytes with it and where it begins in them."""
    if files.is_remote(path):
        return lambda first, end: (files.read_range(path, first, end - first), 0)
    file = stack.enter_context(path.open("rb"))
    whole = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    return lambda first, end: (whole, first)


class _Search:
    """Where values stand in a column chunk, in their order; the next one is mostly right behind the last."""

    def __init__(self, group: Any, column: str, part_of: Callable[[int, int], tuple[Any, int]]):
        chunks = [group.column(i) for i in range(group.num_columns)]
        chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
        first = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        self._plain = chunk.compression == "UNCOMPRESSED"
        if self._plain:
            self._data, self._first = part_of(first, first + chunk.total_compressed_size)
            self._next, self._end = self._first, self._first + chunk.total_compressed_size
            self._before = first - self._first  # bytes of the file before those of `data`

    def __call__(self, value: bytes) -> int:
        if not self._plain:
            return -1
        place = self._data.find(value, self._next, self._end)
        if place >= 0:
            self._next = place + len(value)
        else:  # one that was there before is stored once
            place = self._data.find(value, self._first, self._end)
        return place + self._before if place >= 0 else -1


def read(path: str, row: int, column: str) -> bytes:
    """Return the value of a row. Raises UserError."""
    place = files.path(path)
    try:
        key = (path, *(() if files.is_remote(path) else _version(place)))
        metadata, ends = _cached((key, "metadata"), lambda: _metadata(place))
        group = int(np.searchsorted(ends, row, side="right"))
        first = int(ends[group - 1]) if group else 0
        found = _cached((key, group, column), lambda: _column_of(_open(place, metadata), group, column))
        value = found[row - first].as_py()
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: row {row} cannot be read ({printable(str(error))})") from error
    if value is None:
        raise UserError(f"{path}: row {row} holds nothing")
    return value


def _cached(key: tuple, make: Callable[[], Any]) -> Any:
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    made = make()
    with _lock:
        _kept[key] = made
        while len(_kept) > 1 and sum(getattr(part, "nbytes", 1 << 20) for part in _kept.values()) > _KEPT_BYTES:
            _kept.popitem(last=False)
    return made


def _version(path: Path) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns


def _metadata(path: Path) -> tuple[Any, np.ndarray]:
    """Return what the end of a parquet file says, and the rows up to the end of each row group."""
    file = _open(path)
    return file.metadata, np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])


def _column_of(file: Any, group: int, column: str) -> Any:
    table = file.read_row_group(group, columns=[column], use_threads=False)
    found = table.column(0).combine_chunks()
    return found.field("bytes") if "." in column else found


def _open(path: Path, metadata: Any = None) -> Any:
    from pyarrow import parquet  # here: it takes a moment

    try:
        return parquet.ParquetFile(opened(path) if files.is_remote(path) else path, metadata=metadata)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file ({printable(str(error))})") from error
