"""A manifest of clips, written by `lumos data index`."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from lumos import files
from lumos.data import lineage
from lumos.data.manifest import SUFFIXES
from lumos.errors import UserError
from lumos.info import rejected
from lumos.info.reading import most_common, reason, size_of

_LOOKED_FOR = 256  # clips of a manifest whose files are looked for: all of them would take long on a network
_NUMBERS = ("duration", "fps", "width", "height", "frames", "bytes")
_LOOKED_AT = 20  # lines among which there is one of a clip, so that other lists are told from manifests


def recognise(path: Path) -> bool:
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    if path.suffix == ".arrow":
        return True
    with path.open("rb") as file:
        return any(map(_row, itertools.islice(file, _LOOKED_AT)))


def describe(path: Path) -> dict[str, Any]:
    from lumos.data.manifest import read_manifest, update

    problems: list[str] = []
    try:
        rows, whole = read_manifest(path), True
    except UserError as error:
        problems.append(f"lumos refuses it: {reason(error)}")
        rows, whole = [] if path.suffix == ".arrow" else _tolerant(path, problems), False
    number = without_caption = size = 0
    seconds, digest = 0.0, hashlib.sha256()
    frames, rates, sizes, splits = (collections.Counter() for _ in range(4))
    for row in rows:  # once: there may be millions
        number, without_caption, size = (
            number + 1,
            without_caption + (not row.get("caption")),
            size + row.get("bytes", 0),
        )
        seconds += row.get("duration", 0)
        frames.update([row["frames"]] if "frames" in row else [])
        rates.update([f"{row['fps']:g}"] if row.get("frames", 0) > 1 and "fps" in row else [])
        sizes.update([f"{row['height']}x{row['width']}"] if "height" in row and "width" in row else [])
        splits[str(row.get("split", "(none)"))] += 1
        update(digest, row)
    list_of_rejected = path.with_suffix(rejected.SUFFIX)
    facts = {
        "what": f"manifest of {number:,} clips" if whole else f"list of {number:,} clips that is no whole manifest",
        "clips": number,
        "images": frames[1],
        "duration_seconds": round(seconds, 3),
        "frames": {
            "in_all": sum(value * count for value, count in frames.items()),
            "least": min(frames),
            "median": _median(frames),
            "most": max(frames),
        }
        if frames.total()
        else {},
        "without_caption": without_caption,
        "fingerprint": digest.hexdigest()[:16] if whole else None,
        "size_of_clips_bytes": size,
        "size_of_manifest_bytes": size_of(path),
        "frame_rates": most_common(rates),
        "sizes": most_common(sizes),
        "splits": most_common(splits) if splits.keys() - {"(none)"} else {},
        "files": _files(rows, problems) if whole else {},
        "rejected": {},
        "lineage": lineage.read(path),
    }
    if list_of_rejected.is_file():
        facts["rejected"] = {"list": list_of_rejected.name, **rejected.counts(list_of_rejected, problems)}
    return facts | {"problems": problems}


def _median(counts: collections.Counter[int]) -> int:
    """Return the middle of the values, of two the lower."""
    below = 0
    for value in sorted(counts):
        below += counts[value]
        if 2 * below >= counts.total():
            return value


def _tolerant(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the rows that can be read of a manifest that is refused as a whole, without fields of another type."""
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if row := _row(line):
            rows.append({name: value for name, value in row.items() if name not in _NUMBERS or _is_number(value)})
        elif line.strip():
            damaged.append(number)
    if damaged:
        problems.append(f"{len(damaged)} lines are no clips (the first is line {damaged[0]})")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line; None if it is not one of a clip."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "path" in row else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


def _files(rows: list[dict], problems: list[str]) -> dict[str, int]:
    """Return how many of a sample of clips are there, and as long as they were."""
    sample = [rows[i] for i in range(0, len(rows), max(1, -(-len(rows) // _LOOKED_FOR)))]
    paths = [files.path(row["path"]) for row in sample]
    sizes = [(row, size_of(path) if path.is_file() else None) for row, path in zip(sample, paths)]
    gone = [row["path"] for row, size in sizes if size is None]
    other = [row["path"] for row, size in sizes if size is not None and row.get("bytes") not in (None, size)]
    if gone:
        problems.append(f"{len(gone)} of {len(sample)} clips looked for are not there, e.g. {gone[0]}")
    if other:
        problems.append(f"{len(other)} of {len(sample)} clips looked for have another size now, e.g. {other[0]}")
    return {"looked_for": len(sample), "not_there": len(gone), "changed": len(other)}
