"""What a stream spends its time on."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from typing import Any

import numpy as np


class Profile:
    """Seconds by cause, and the gaps between frames that were shown. Costs a few clock readings a frame."""

    def __init__(self):
        self._began, self._last = time.perf_counter(), None
        self._seconds, self._gaps, self._num_pixel_frames = defaultdict(float), [], 0
        self.first_frame_s: float | None = None

    @contextlib.contextmanager
    def timed(self, what: str):
        """Count the time of the body under a name."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - began

    def shown(self, num_pixel_frames: int) -> None:
        """Count a latent frame that is shown now, of so many frames of pixels over all videos."""
        now = time.perf_counter()
        if self._last is None:
            self.first_frame_s = now - self._began
        else:
            self._gaps.append(now - self._last)
            self._num_pixel_frames += num_pixel_frames
        self._last = now

    def summary(self) -> dict[str, Any]:
        """Return rates behind the first frame (its compilation does not count), gaps in milliseconds, and seconds by cause."""
        total = sum(self._gaps)
        per_s = lambda number: number / total if total else None
        gaps = 1000 * np.array(self._gaps or [np.nan])
        return {
            "latent_frames": len(self._gaps) + (self._last is not None),
            "first_frame_s": self.first_frame_s,
            "latent_frames_per_s": per_s(len(self._gaps)),
            "pixel_frames_per_s": per_s(self._num_pixel_frames),
            "gap_ms": {"p50": np.quantile(gaps, 0.5), "p95": np.quantile(gaps, 0.95), "max": gaps.max()},
            "seconds": dict(self._seconds),
        }
