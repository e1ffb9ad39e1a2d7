"""Clips that are parts of longer files: how lists write their times."""

from __future__ import annotations

import ast
import re
from typing import Any

from lumos.errors import short

_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")


def seconds(value: Any) -> float:
    """Return a time in seconds: a number, or h:mm:ss.fff. Raises ValueError."""
    if isinstance(value, str) and (found := _CLOCK.fullmatch(value.strip())):
        return int(found[1] or 0) * 3600 + int(found[2]) * 60 + float(found[3])
    try:
        time = float(value)
    except (TypeError, ValueError):
        time = -1.0
    if isinstance(value, bool) or not 0 <= time < 1e9:
        raise ValueError(f"{short(value)} is no time; write seconds or h:mm:ss")
    return time


def span(start: Any, end: Any) -> tuple[float, float]:
    """Return (first, last second) of a clip. Raises ValueError."""
    first, last = seconds(0.0 if start in (None, "") else start), seconds(end)
    if last <= first:
        raise ValueError(f"the clip ends at {short(end)}, before it begins at {short(start)}")
    return first, last


def spans(value: Any) -> list[tuple[float, float]]:
    """Return the clips of a list of [start, end], which may be written as text, as Panda-70M does. Raises ValueError."""
    pairs = literal(value)
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"the times must be a list of [start, end], got {short(value)}")
    return [span(*pair) for pair in pairs]


def literal(value: Any) -> Any:
    """Return the list that a text writes; another value as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{short(value)} is not a list") from error
