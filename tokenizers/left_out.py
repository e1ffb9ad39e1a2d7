"""What is not in a shard of tokens, and why: a list beside it."""

from __future__ import annotations

import json
from pathlib import Path

from lumos import files
from lumos.tokenizers import token_plan

Key = tuple[int, int, float]  # `Window.key`


def path_of(shard: Path) -> Path:
    return shard.with_suffix(".left_out.jsonl")


def write(shard: Path, windows: list[tuple[Key, str]]) -> None:
    """Write the list of a shard; nothing where all is in it."""
    if not windows:
        path_of(shard).unlink(missing_ok=True)  # of a run that was killed
        return
    lines = (json.dumps({"window": window, "reason": reason}) + "\n" for window, reason in windows)
    token_plan.write_whole(path_of(shard), lines)


def read(shard: Path) -> list[tuple[Key, str]]:
    """Return the windows that a finished shard lacks, and why."""
    if not path_of(shard).exists():
        return []
    rows = map(json.loads, files.read_text(path_of(shard)).splitlines())
    return [(tuple(row["window"]), row["reason"]) for row in rows]
