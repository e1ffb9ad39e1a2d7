"""Where the wall time of a run went, over all its restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from lumos import files

# init: from the start of the process to the first step; idle: between the end of one process and the start of the next.
BUCKETS = ("init", "compile", "data", "step", "checkpoint", "eval", "idle")


class Goodput:
    """A stopwatch that is always in exactly one bucket, so the buckets add up to the wall time of the run."""

    def __init__(self, path: str | Path | None, clock: Callable[[], float] = time.time):
        """Go on from `path`, where an earlier process left its times (None: keep nothing)."""
        self._path, self._clock = files.path(path) if path else None, clock
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        self._bucket, self._since = "init", clock()
        if self._path and self._path.exists():
            before = json.loads(files.read_text(self._path))
            self._seconds |= before["seconds"]
            self._seconds["idle"] += max(self._since - before["until"], 0.0)

    def enter(self, bucket: str) -> None:
        """Leave the current bucket for another."""
        if bucket not in self._seconds:
            raise ValueError(f"unknown bucket {bucket!r}; known: {', '.join(BUCKETS)}")
        now = self._clock()
        self._seconds[self._bucket] += now - self._since
        self._bucket, self._since = bucket, now

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run was first started, the current bucket included."""
        return sum(self._seconds.values()) + self._clock() - self._since

    def shares(self) -> dict[str, float]:
        """Return each bucket's share of the wall time; `goodput` is that of steps."""
        self.enter(self._bucket)
        total = max(sum(self._seconds.values()), 1e-9)
        shares = {f"time_{name}": seconds / total for name, seconds in self._seconds.items()}
        return shares | {"goodput": self._seconds["step"] / total}

    def save(self) -> None:
        """Write the times for the next process; a process that dies loses what came after the last call to idle."""
        self.enter(self._bucket)
        if self._path:
            files.write_text(self._path, json.dumps({"seconds": self._seconds, "until": self._since}))
