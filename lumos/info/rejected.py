"""The list of files that `lumos data index` rejected, or of windows that `lumos tokenize` left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumos.info.reading import most_common, read_tail, size_of

SUFFIX = ".rejected.jsonl"


def recognise(path: Path) -> bool:
    return path.is_file() and path.name.endswith((SUFFIX, ".left_out.jsonl"))


def describe(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    found = counts(path, problems)
    what = (
        "files that lumos data index rejected" if path.name.endswith(SUFFIX) else "windows that lumos tokenize left out"
    )
    return {"what": f"list of {found['number']:,} {what}", **found, "bytes": size_of(path), "problems": problems}


def counts(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return {"number", "reasons": {reason: how often}} of a list."""
    rows = read_tail(path, problems, whole=True)
    return {"number": len(rows), "reasons": most_common(str(row.get("reason", "")) for row in rows)}
