"""Actions that belong to clips: a manifest refers to an array with a row for every frame, `file:column[first:end]`.

The file is a .npy (then there is no column: `file:[first:end]`), a .npz, a .json object of lists, or a parquet file, its name relative
to the manifest as those of clips. A list of clips may name the file alone: all rows of its column "action". Other columns of the same
file are other streams.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lumos import files
from lumos.errors import UserError, printable, short

_REFERENCE = re.compile(r"(.+):([^:\[\]]*)\[(\d+):(\d+)\]", re.DOTALL)


def reference(path: str, column: str, first: int, end: int) -> str:
    return f"{path}:{column}[{first}:{end}]"


def placed(text: str, place: Callable[[str], str]) -> str:
    """Return a reference, or the name of a file alone, with its file as `place` (a function of names) says. Raises UserError."""
    if _is_file(text):
        return place(text)
    path, column, first, end = _parts(text)
    return reference(place(path), column, first, end)


def read(text: str, column: str = "") -> np.ndarray:
    """Return the actions that a reference with an absolute path names, or another column of the same rows, float32 [F, A]. Raises UserError."""
    path, own, first, end = _parts(text)
    actions_NA = _array(path, column or own)
    if end > len(actions_NA):
        raise UserError(f"{path}: {len(actions_NA)} rows of actions, the manifest refers to {first} up to {end}")
    return actions_NA[first:end]


def is_reference(text: str) -> bool:
    """Return whether a text names rows of a file, or a file that may hold them."""
    return bool(_REFERENCE.fullmatch(text)) or _is_file(text)


def _is_file(text: str) -> bool:
    return not _REFERENCE.fullmatch(text) and Path(text).suffix in (*_READERS, ".parquet")


def completed(text: str, num_frames: int) -> str:
    """Return a reference to the rows of a clip where `text` names a file alone."""
    return (
        text
        if _REFERENCE.fullmatch(text)
        else reference(text, "" if text.endswith(".npy") else "action", 0, num_frames)
    )


def _parts(text: str) -> tuple[str, str, int, int]:
    if (found := _REFERENCE.fullmatch(text)) is None:
        raise UserError(f"actions {short(text)}: expected file:column[first:end]")
    return found[1], found[2], int(found[3]), int(found[4])


@functools.lru_cache(maxsize=256)
def _array(path: str, column: str) -> np.ndarray:
    try:
        with files.borrowed(path) as local:
            values = _READERS.get(Path(path).suffix, _column)(local, column)
        return values.astype(np.float32).reshape(len(values), -1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its actions cannot be read ({printable(str(error))})") from error


def _npy(path: Path, column: str) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _npz(path: Path, column: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[column]


def _json(path: Path, column: str) -> np.ndarray:
    return np.array(json.loads(path.read_text(encoding="utf-8"))[column], np.float32)


def _column(path: Path, column: str) -> np.ndarray:
    from pyarrow import parquet

    values = parquet.read_table(path, columns=[column]).column(0).to_pylist()
    return np.array(values, np.float32)


_READERS = {".npy": _npy, ".npz": _npz, ".json": _json}
