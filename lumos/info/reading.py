"""Reading what may be damaged, half written, or gone a moment later: what cannot be read becomes a problem in words."""

from __future__ import annotations

import collections
import json
import os
import stat
from pathlib import Path
from typing import Any

from lumos import files

_TAIL_BYTES = 1 << 20


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the JSON object of a file; {} where there is no such file, or (with a problem) none can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {reason(error)}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} is no JSON object")
        return {}
    return value


def read_tail(path: Path, problems: list[str], *, whole: bool = False) -> list[dict[str, Any]]:
    """Return the objects of the last megabyte of a JSONL file (or of all); lines that are none are counted in a problem."""
    try:
        with path.open("rb") as file:
            start = 0 if whole else max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(start)
            lines = file.read().splitlines()[bool(start) :]
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {reason(error)}")
        return []
    found, damaged = [], 0
    for line in filter(None, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            found.append(row)
        else:
            damaged += 1
    if damaged:
        problems.append(f"{path.name}: {damaged} of its last {len(lines)} lines are damaged")
    return found


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; a file with several names counts once."""
    return sum(sizes_in(path).values()) if path.is_dir() else files.size_and_time(path)[0] if path.exists() else 0


def sizes_in(folder: Path) -> dict[str, int]:
    """Return the bytes of everything in a folder, by name; a file with several names counts under the first."""
    if files.is_remote(folder):
        return files.sizes_below(folder)
    seen: set[tuple[int, int]] = set()
    return {name: _size(os.path.join(folder, name), seen) for name in sorted(os.listdir(folder))}


def _size(path: str, seen: set[tuple[int, int]]) -> int:
    try:
        facts = os.lstat(path)
        if stat.S_ISDIR(facts.st_mode):
            return sum(_size(os.path.join(path, name), seen) for name in os.listdir(path))
    except OSError:  # deleted meanwhile
        return 0
    new = (facts.st_dev, facts.st_ino) not in seen
    seen.add((facts.st_dev, facts.st_ino))
    return facts.st_size * new


def most_common(values, number: int = 6) -> dict[str, int]:
    """Return how often each value comes, the most frequent first; beyond `number` of them together as "<n> other"."""
    counts = collections.Counter(values)
    top = dict(counts.most_common(number))
    others = len(counts) - len(top)
    return top | ({f"{others} other": counts.total() - sum(top.values())} if others else {})


def reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
