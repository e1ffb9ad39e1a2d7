"""Writes manifests, row by row, in the format of their suffix; the file appears under its name when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from lumos import files
from lumos.data.manifest import FIELDS, NUMBERS, hash_of, update
from lumos.errors import UserError, printable

_ROWS_OF_BATCH = 1 << 14
_WHOLE = ("width", "height", "frames", "bytes", "offset", "size", "row")


class ManifestWriter:
    """A context manager; an exception inside leaves no file.

    Args:
      path: of a .jsonl or .arrow file.
      columns: names of the fields that rows have; only columns need to know them before.
      numbers: which of those that lumos does not know are numbers; others are text.

    Attributes:
      fingerprint: `manifest.fingerprint` of the rows written so far.
      num_rows: how many these are.
    """

    def __init__(self, path: Path, columns: Iterable[str] = (), numbers: Collection[str] = ()):
        self.num_rows, self._digest = 0, hashlib.sha256()
        self._stack = contextlib.ExitStack()
        self._partial = self._stack.enter_context(files.written(path))
        # Bytes of a name that are not UTF-8 become \udcXX, which is how JSON writes them: they come back as they were.
        self._write = (
            _Columns(self._partial, columns, numbers) if path.suffix.lower() == ".arrow" else _Lines(self._partial)
        )

    def write(self, row: dict[str, Any]) -> None:
        self._write(row)
        update(self._digest, row)
        self.num_rows += 1

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()[:16]

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._write.close()
        self._stack.__exit__(kind, error, traceback)


class _Lines:
    def __init__(self, path: Path):
        self._file = path.open("w", encoding="utf-8", errors="backslashreplace")

    def __call__(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Columns:
    def __init__(self, path: Path, columns: Iterable[str], numbers: Collection[str]):
        import pyarrow

        names = [*FIELDS, *sorted(set(columns) - FIELDS.keys() - {"hash"}), "hash"]
        self._schema = pyarrow.schema([(name, _type(pyarrow, name, name in numbers)) for name in names])
        self._batch, self._rows = pyarrow.RecordBatch, []
        self._file = pyarrow.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, self._schema)

    def __call__(self, row: dict[str, Any]) -> None:
        if unknown := row.keys() - set(self._schema.names):
            raise UserError(f"field {min(unknown)!r} of {printable(row['id'])} has no column")
        self._rows.append(row | {"path": os.fsencode(row["path"]), "hash": hash_of(row["id"])})
        if len(self._rows) == _ROWS_OF_BATCH:
            self._flush()

    def _flush(self) -> None:
        try:
            self._writer.write_batch(self._batch.from_pylist(self._rows, self._schema))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"rows of a manifest in columns have one type for each field ({printable(str(error))})"
            ) from error
        self._rows.clear()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._file.close)
            if self._rows:
                self._flush()
            self._writer.close()


def _type(pyarrow: Any, name: str, is_number: bool) -> Any:
    if name == "path":
        return pyarrow.binary()  # names of files need not be UTF-8
    if name == "hash":
        return pyarrow.uint64()
    if name in _WHOLE:
        return pyarrow.int64()
    if name == "captions":
        return pyarrow.list_(pyarrow.string())
    is_number |= name in NUMBERS or name in ("start", "end")
    return pyarrow.float64() if is_number else pyarrow.string()
