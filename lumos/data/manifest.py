"""Manifests, opened lazily: a row is read when it is asked for, and what is needed of all rows is a NumPy array.

    .jsonl   one object a line, to read and edit; every line is checked when it is opened
    .arrow   the same rows by columns (Arrow IPC), with a hash of each id; opened without reading the rows

Rows have path (relative to the manifest where possible), id, caption, duration, fps, width, height, frames, and perhaps

    bytes           of the file at path
    split           train, validation, ...
    captions        all captions, where there are several; `caption` is the first of them
    offset, size    the clip is this byte range of the file (a tar, a parquet file that is not compressed)
    row, column     the clip is this value of a parquet file
    start, end      the clip is what is shown from second `start` to second `end`
    actions         `file:column[first:end]`: an array with a row for every frame (lumos/data/actions.py)

and more. A manifest holds no Python object for a clip, so one of ten million takes no more memory than its arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lumos import files
from lumos.data import actions, captions, utf8
from lumos.errors import UserError, printable, short

SUFFIXES = (".jsonl", ".arrow")
FIELDS = {
    "path": (str,), "id": (str,), "caption": (str,), "duration": (float, int), "fps": (float, int), "width": (int,),
    "height": (int,), "frames": (int,),
}  # fmt: skip
_is_place = lambda value: type(value) is int and value >= 0
_is_time = lambda value: type(value) in (int, float) and 0 <= value < 1e12
OPTIONAL = {
    "captions": lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
    "offset": _is_place, "size": _is_place, "row": _is_place, "column": lambda value: isinstance(value, str),
    "start": _is_time, "end": _is_time, "actions": lambda value: isinstance(value, str),
}  # fmt: skip
NUMBERS = {"duration": np.float64, "fps": np.float64, "width": np.int64, "height": np.int64, "frames": np.int64}
_POSITIVE = ("width", "height", "frames")
_ADVICE = "write it with `lumos data index`"
_ROWS_BEFORE_RELEASE = 512  # pages of the file that were read count as memory of the process until they are given back


class Rows(Sequence[dict[str, Any]]):
    """The rows of a manifest, or those of an ascending selection, made when they are asked for."""

    def __init__(self, manifest: Manifest, chosen_N: np.ndarray | None = None):
        self._manifest, self._chosen_N = manifest, chosen_N

    def __len__(self) -> int:
        return len(self._manifest) if self._chosen_N is None else len(self._chosen_N)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = index % len(self)
        return self._manifest.row(index if self._chosen_N is None else int(self._chosen_N[index]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows from the first to the last, faster than one by one."""
        wanted_N = np.zeros(len(self._manifest), bool)
        wanted_N[... if self._chosen_N is None else self._chosen_N] = True
        for wanted, row in zip(wanted_N, self._manifest.stored_rows()):
            if wanted:
                yield self._manifest.placed(row)

    def column(self, name: str) -> np.ndarray:
        """Return one of NUMBERS of all rows."""
        values = self._manifest.column(name)
        return values if self._chosen_N is None else values[self._chosen_N]


class Manifest:
    """What both formats have in common."""

    path: Path

    def __len__(self) -> int:
        raise NotImplementedError

    def column(self, name: str) -> np.ndarray:
        """Return one of NUMBERS of all rows, or "hash": uint64, the first eight bytes of the SHA-256 of every id."""
        raise NotImplementedError

    def splits(self) -> tuple[np.ndarray, list[str]] | None:
        """Return which of some names is the split of every row, -1 = none; None where no row has one."""
        raise NotImplementedError

    def stored_row(self, index: int) -> dict[str, Any]:
        """Return a row as it was written, paths relative."""
        raise NotImplementedError

    def stored_rows(self) -> Iterator[dict[str, Any]]:
        return map(self.stored_row, range(len(self)))

    def row(self, index: int) -> dict[str, Any]:
        return self.placed(self.stored_row(index))

    def placed(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with its path made absolute. Raises UserError if that leads out of the manifest's folder."""
        place = {"path": self._place(row["path"])}
        if "actions" in row:
            place["actions"] = actions.placed(row["actions"], self._place)
        return row | place

    def _place(self, name: str) -> str:
        if escapes(name):
            raise UserError(f"{self.path}: {short(name)} leads out of the folder of the manifest")
        return str(beside(self._folders, name))

    def _open(self, path: Path) -> None:
        self.path, self._folders, self._local = path, folders(path), files.kept(path)


def open_manifest(path: str | Path) -> Manifest:
    """Open a manifest. Raises UserError when it is missing or malformed; where rows are text, with the line."""
    path = files.path(path)
    return _Columns(path) if path.suffix.lower() == ".arrow" else _Lines(path)


def read_manifest(path: str | Path) -> Rows:
    """Return the rows of a manifest, paths made absolute. Raises UserError when it is missing or malformed."""
    return Rows(open_manifest(path))


def fingerprint(rows: Iterable[dict]) -> str:
    """Return a short hash of what the manifest holds (ids, captions, sizes), wherever the files lie."""
    digest = hashlib.sha256()
    for row in rows:
        update(digest, row)
    return digest.hexdigest()[:16]


def update(digest: Any, row: dict[str, Any]) -> None:
    """Add a row to the digest whose first 16 characters are a fingerprint."""
    facts = {k: v for k, v in row.items() if k != "path"}
    if "actions" in facts:
        facts["actions"] = row["actions"].rpartition(":")[2]
    digest.update(json.dumps(facts, sort_keys=True).encode())


def hash_of(clip_id: str) -> int:
    return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8])


def first_repeated(hash_N: np.ndarray) -> int | None:
    """Return the first place whose hash stands before it already."""
    order = np.argsort(hash_N, kind="stable")
    again = order[1:][hash_N[order[1:]] == hash_N[order[:-1]]]
    return int(again.min()) if len(again) else None


# Lines of JSON -------------------------------------------------------------------------------------------------------


_BLOCK = 1 << 16  # rows whose numbers are Python objects before they become arrays


class _Lines(Manifest):
    """Knows of every row its numbers and the bytes of its line."""

    def __init__(self, path: Path):
        self._open(path)
        dtypes = NUMBERS | {"hash": np.uint64, "split": np.int16, "first": np.int64, "end": np.int64, "line": np.int64}
        values, blocks = {name: [] for name in dtypes}, {name: [] for name in dtypes}
        names: dict[str, int] = {}

        def pack() -> None:
            for name, dtype in dtypes.items():
                blocks[name].append(np.array(values[name], dtype))
                values[name].clear()

        for line, (first, end), row in _checked_rows(self._local, path):
            split = names.setdefault(str(row["split"]), len(names)) if "split" in row else -1
            facts = {"hash": hash_of(utf8_id(row["id"])), "split": split, "first": first, "end": end, "line": line}
            for name, column in values.items():
                column.append(facts[name] if name in facts else row[name])
            if len(values["line"]) == _BLOCK:
                pack()
        pack()
        self._columns = {name: np.concatenate(parts) for name, parts in blocks.items()}
        lines_N = self._columns.pop("line")
        self._split_N, self._splits = self._columns.pop("split"), list(names)
        self._file = self._local.open("rb")
        if (again := first_repeated(self._columns["hash"])) is not None:
            clip_id = self.stored_row(again)["id"]
            raise UserError(f"{path}:{lines_N[again]}: the id {short(clip_id)} was given before")

    def __len__(self) -> int:
        return len(self._columns["hash"])

    def column(self, name: str) -> np.ndarray:
        return self._columns[name]

    def splits(self) -> tuple[np.ndarray, list[str]] | None:
        return (self._split_N, self._splits) if self._splits else None

    def stored_row(self, index: int) -> dict[str, Any]:
        first, end = (int(self._columns[name][index]) for name in ("first", "end"))
        try:
            row = json.loads(os.pread(self._file.fileno(), end - first, first))
            # Of manifests made by hand.
            row |= {"captions": captions.cleaned(row["captions"])} if "captions" in row else {}
            return row | {"id": utf8_id(row["id"]), "caption": captions.clean(row["caption"])}
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.path} was changed while it was in use; start again") from error


def _checked_rows(local: Path, path: Path) -> Iterator[tuple[int, tuple[int, int], dict[str, Any]]]:
    """Yield (number of the line, its first byte and its end, row) of all rows. Raises UserError with the line."""
    for number, place, text in utf8.placed_lines(local):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON ({error}); give one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} must be an object with path and caption, got {type(row).__name__}")
        _check(row, f"{path}:{number}")
        yield number, place, row


def _check(row: dict[str, Any], where: str) -> None:
    if missing := FIELDS.keys() - row.keys():
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}; {_ADVICE}")
    for name, kinds in FIELDS.items():
        value = row[name]
        if type(value) not in kinds or (kinds != (str,) and not 0 <= value < 1e12):
            raise UserError(f"{where}: {name} must not be {short(value)}; {_ADVICE}")
    for name in OPTIONAL.keys() & row.keys():
        if not OPTIONAL[name](row[name]):
            raise UserError(f"{where}: {name} must not be {short(row[name])}; {_ADVICE}")
    for pair in (("offset", "size"), ("row", "column"), ("start", "end")):
        if len(row.keys() & set(pair)) == 1 and not ("row" in row and "size" in pair):
            raise UserError(f"{where}: {pair[0]} and {pair[1]} stand together; {_ADVICE}")
    if min(row["frames"], row["width"], row["height"]) < 1:
        raise UserError(f"{where}: a clip of {row['frames']} frames of {row['width']}x{row['height']} pixels")
    if escapes(row["path"]):
        raise UserError(f"{where}: {short(row['path'])} leads out of the folder of the manifest")


# Columns -------------------------------------------------------------------------------------------------------------


class _Columns(Manifest):
    """Numbers are read once, text with the row; the pages of the file that this touches are given back."""

    def __init__(self, path: Path):
        import pyarrow

        self._open(path)
        try:
            with self._local.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            self._table = pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(self._map)))
        except OSError as error:  # ArrowInvalid is a ValueError
            raise UserError(f"{path}: {'no such file' if not path.exists() else error.strerror or error}") from error
        except ValueError as error:
            raise UserError(f"{path}: not a manifest in columns ({printable(str(error))}); {_ADVICE}") from error
        self._names = self._table.schema.names
        if missing := {*FIELDS, "hash"} - set(self._names):
            raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}; {_ADVICE}")
        self._rows_read = 0
        self._ends = np.cumsum([len(batch) for batch in self._batches()], dtype=np.int64)
        self._release()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _batches(self) -> Iterator[Any]:
        try:
            for number in range(self._table.num_record_batches):
                yield self._table.get_batch(number)
        except (ValueError, OSError) as error:
            raise UserError(f"{self.path}: damaged ({printable(str(error))}); {_ADVICE}") from error

    def column(self, name: str) -> np.ndarray:
        place = self._names.index(name)
        values_N, start = np.empty(len(self), NUMBERS.get(name, np.uint64)), 0
        for batch, end in zip(self._batches(), self._ends.tolist()):
            values_N[start:end] = batch.column(place).to_numpy()
            start = end
            self._release()
        if name != "hash" and len(self) and not (values_N.min() >= (name in _POSITIVE) and values_N.max() < 1e12):
            raise UserError(f"{self.path}: {name} from {values_N.min():g} to {values_N.max():g}; {_ADVICE}")
        return values_N

    def splits(self) -> tuple[np.ndarray, list[str]] | None:
        if "split" not in self._names:
            return None
        names: dict[str, int] = {}
        place = self._names.index("split")
        codes = [_codes(batch.column(place), names) for batch in self._batches()]
        self._release()
        return (np.concatenate(codes), list(names)) if names else None

    def stored_row(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._table.get_batch(number)
        place = index - (int(self._ends[number - 1]) if number else 0)
        self._rows_read += 1
        if self._rows_read % _ROWS_BEFORE_RELEASE == 0:
            self._release()
        return _without_gaps({name: batch.column(i)[place].as_py() for i, name in enumerate(self._names)})

    def stored_rows(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches():
            for start in range(0, len(batch), _ROWS_BEFORE_RELEASE):
                yield from map(_without_gaps, batch.slice(start, _ROWS_BEFORE_RELEASE).to_pylist())
            self._release()

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_DONTNEED)  # they are still in the cache of the system


def _without_gaps(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of columns as it was written: without fields that it did not have."""
    row["path"] = os.fsdecode(row["path"])
    return {name: value for name, value in row.items() if value is not None and name != "hash"}


def _codes(column: Any, names: dict[str, int]) -> np.ndarray:
    """Return the number of the name in every place of a column of text, new names with new numbers; -1 = none."""
    encoded = column.dictionary_encode()
    numbers = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
    indices_N = encoded.indices.fill_null(len(numbers)).to_numpy()
    return np.array([*numbers, -1], np.int16)[indices_N]


# Paths ---------------------------------------------------------------------------------------------------------------


def utf8_id(text: str) -> str:
    """Return the text with a backslash escape for what is not UTF-8: ids go into records, hashes and reports."""
    return text.encode("utf-8", "backslashreplace").decode()


def escapes(path: str) -> bool:
    """Return whether a relative path leads out of its folder. Absolute paths are meant as they are."""
    return (
        os.pardir in path
        and not os.path.isabs(path)
        and not files.is_remote(path)
        and os.path.normpath(path).split(os.sep)[0] == os.pardir
    )


def folders(file: Path) -> tuple[Path, ...]:
    """Return where the relative paths of a list or manifest start. One that is a link may have its clips beside either end."""
    if files.is_remote(file):
        return (file.parent,)
    here = file.absolute().parent
    return (here, file.resolve().parent) if file.is_symlink() else (here,)


def beside(places: tuple[Path, ...], name: str) -> Path:
    """Return the path of what a list or manifest names: the first that exists."""
    paths = [files.join(folder, name) for folder in places]
    return paths[0] if len(paths) == 1 else next(filter(os.path.lexists, paths), paths[0])
