"""A manifest of clips, written by `lumos data index`."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from lumos.errors import UserError
from lumos.info import rejected
from lumos.info.reading import most_common, reason, size_of

_LOOKED_FOR = 256  # clips of a manifest whose files are looked for: all of them would take long on a network
_NUMBERS = ("duration", "fps", "width", "height", "frames", "bytes")
_LOOKED_AT = 20  # lines among which there is one of a clip, so that other lists are told from manifests


def recognise(path: Path) -> bool:
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as file:
        return any(map(_row, itertools.islice(file, _LOOKED_AT)))


def describe(path: Path) -> dict[str, Any]:
    from lumos.data.index import fingerprint, read_manifest

    problems: list[str] = []
    try:
        rows, whole = read_manifest(path), True
    except UserError as error:
        problems.append(f"lumos refuses it: {reason(error)}")
        rows, whole = _tolerant(path, problems), False
    clips = [row for row in rows if row.get("frames", 0) > 1]
    frames = sorted(row["frames"] for row in rows if "frames" in row)
    list_of_rejected = path.with_suffix(rejected.SUFFIX)
    facts = {
        "what": f"manifest of {len(rows):,} clips"
        if whole
        else f"list of {len(rows):,} clips that is no whole manifest",
        "clips": len(rows),
        "images": sum(row.get("frames") == 1 for row in rows),
        "duration_seconds": round(sum(row.get("duration", 0) for row in rows), 3),
        "frames": {
            "in_all": sum(frames),
            "least": frames[0],
            "median": int(statistics.median_low(frames)),
            "most": frames[-1],
        }
        if frames
        else {},
        "without_caption": sum(not row.get("caption") for row in rows),
        "fingerprint": fingerprint(rows) if whole else None,
        "size_of_clips_bytes": sum(row.get("bytes", 0) for row in rows),
        "size_of_manifest_bytes": size_of(path),
        "frame_rates": most_common(f"{row['fps']:g}" for row in clips if "fps" in row),
        "sizes": most_common(f"{row['height']}x{row['width']}" for row in rows if "height" in row and "width" in row),
        "splits": most_common(str(row.get("split", "(none)")) for row in rows)
        if any("split" in row for row in rows)
        else {},
        "files": _files(rows, problems) if whole else {},
        "rejected": {},
    }
    if list_of_rejected.is_file():
        facts["rejected"] = {"list": list_of_rejected.name, **rejected.counts(list_of_rejected, problems)}
    return facts | {"problems": problems}


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
    sample = rows[:: max(1, -(-len(rows) // _LOOKED_FOR))]
    sizes = [(row, size_of(Path(row["path"])) if Path(row["path"]).is_file() else None) for row in sample]
    gone = [row["path"] for row, size in sizes if size is None]
    other = [row["path"] for row, size in sizes if size is not None and row.get("bytes") not in (None, size)]
    if gone:
        problems.append(f"{len(gone)} of {len(sample)} clips looked for are not there, e.g. {gone[0]}")
    if other:
        problems.append(f"{len(other)} of {len(sample)} clips looked for have another size now, e.g. {other[0]}")
    return {"looked_for": len(sample), "not_there": len(gone), "changed": len(other)}
