"""Work over a long list in parts: any number of processes share them, may die and be started again, and one puts the parts together.

A part is a file that appears when it is complete. The folder around them has a plan, which says of what they are parts: those of another
source, or of other settings, go. It goes with the folder when the parts have been put together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lumos import files
from lumos.errors import UserError
from lumos.leases import Leases

Made = TypeVar("Made")


def share(
    out: Path,
    identity: str,
    chunks: Callable[[], Iterator[list[Any]]],
    make: Callable[[list[Any]], str],
    merge: Callable[[list[Path]], Made],
) -> Made | None:
    """Write what parts of `out` are missing, and merge them; None where another process has merged.

    Args:
      identity: what the parts are made of and how.
      chunks: gives what every part is made of, in the same order each time.
      make: the text of a part.

    Raises UserError of `make` and `merge`; then nothing of the work is left.
    """
    folder = out.with_name(f".{out.name}.parts")
    try:
        _begin(folder, identity)
        return _share(folder, chunks, make, merge)
    except UserError:
        files.remove_tree(folder)
        raise


def _begin(folder: Path, identity: str) -> None:
    plan = folder / "plan"
    if folder.exists() and not (plan.exists() and files.read_text(plan) == identity):
        files.remove_tree(folder)
    if not plan.exists():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(plan, identity)


def _share(
    folder: Path,
    chunks: Callable[[], Iterator[list[Any]]],
    make: Callable[[list[Any]], str],
    merge: Callable[[list[Path]], Made],
) -> Made | None:
    try:
        leases, merged = Leases(folder / "leases"), None
        parts = _write(folder, leases, chunks, make)
        with leases.hold("merge") as mine:
            if mine and (folder / "plan").exists():
                merged = merge(parts)
                (folder / "plan").unlink()
        if merged is not None:
            files.remove_tree(folder)
            return merged
    except FileNotFoundError:
        if (folder / "plan").exists():
            raise
    while (folder / "plan").exists():  # another process merges
        time.sleep(0.5)
    return None


def _write(
    folder: Path, leases: Leases, chunks: Callable[[], Iterator[list[Any]]], make: Callable[[list[Any]], str]
) -> list[Path]:
    """Write every part that no other process writes, until all are there. Raises FileNotFoundError when they are merged already."""
    while True:
        parts, waiting = [], False
        for chunk in chunks():
            part = folder / f"{len(parts):06d}.jsonl"
            parts.append(part)
            if part.exists():
                continue
            with leases.hold(part.stem) as mine:
                waiting |= mine is None
                if mine and not (folder / "plan").exists():
                    raise FileNotFoundError(folder)
                if mine and not part.exists():
                    files.write_text(part, make(chunk))
        if not waiting:
            return parts
        time.sleep(0.5)  # for the parts of others, which may die
