"""Actions that belong to clips: a manifest refers to an array with a row for every frame, `file:column[first:end]`.

The file is a .npy (then there is no column: `file:[first:end]`) or a parquet file, its name relative to the manifest as those of clips.
"""

from __future__ import annotations

import functools
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
    """Return a reference with its file as `place` (a function of names) says. Raises UserError."""
    path, column, first, end = _parts(text)
    return reference(place(path), column, first, end)


def read(text: str) -> np.ndarray:
    """Return the actions that a reference with an absolute path names, float32 [F, A]. Raises UserError."""
    path, column, first, end = _parts(text)
    actions_NA = _array(path, column)
    if end > len(actions_NA):
        raise UserError(f"{path}: {len(actions_NA)} rows of actions, the manifest refers to {first} up to {end}")
    return actions_NA[first:end]


def _parts(text: str) -> tuple[str, str, int, int]:
    if (found := _REFERENCE.fullmatch(text)) is None:
        raise UserError(f"actions {short(text)}: expected file:column[first:end]")
    return found[1], found[2], int(found[3]), int(found[4])


@functools.lru_cache(maxsize=256)
def _array(path: str, column: str) -> np.ndarray:
    try:
        with files.borrowed(path) as local:
            values = np.load(local, allow_pickle=False) if Path(path).suffix == ".npy" else _column(local, column)
        return values.astype(np.float32).reshape(len(values), -1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its actions cannot be read ({printable(str(error))})") from error


def _column(path: Path, column: str) -> np.ndarray:
    from pyarrow import parquet

    values = parquet.read_table(path, columns=[column]).column(0).to_pylist()
    return np.array(values, np.float32)
