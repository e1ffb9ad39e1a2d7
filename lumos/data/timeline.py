"""When frames are shown: which of them stand at wanted times, and how many a video of a length gives at a rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

# Containers round times (Matroska to 1 ms, GIF to 10 ms) and manifests round durations, so that a whole number of
# frames may look a little less than it is: so much of a frame may be missing from the last one.
_MISSING = 0.25
_EPSILON = 1e-6


class Frame(NamedTuple):
    time: float  # seconds after the first frame that is shown
    duration: float  # seconds until the next one, or until the end
    picture: Any  # av.VideoFrame, or an upright PIL image in sRGB


def frames_within(duration: float, fps: float) -> int:
    """Return how many frames a video of `duration` seconds gives at `fps`; at least one."""
    # Manifests hold four digits: the same number must come out before and after that.
    return max(1, math.floor(round(duration, 4) * fps + _MISSING))


def frames_at(frames_N: np.ndarray, duration_N: np.ndarray, own_fps_N: np.ndarray, fps: float) -> np.ndarray:
    """Return how many frames files give when resampled to `fps`, given what they have; a still gives one."""
    if fps == 0:
        return frames_N
    own_rate_N = (np.abs(fps - own_fps_N) < 1e-3) & (np.abs(duration_N * fps - frames_N) < 1)
    # NumPy's rounding may differ from that of `frames_within` in the last bit, where there is something to round.
    rounded_N = np.round(duration_N, 4)
    more_digits_N = rounded_N != duration_N
    rounded_N[more_digits_N] = [round(duration, 4) for duration in duration_N[more_digits_N].tolist()]
    resampled_N = np.maximum(1, np.floor(rounded_N * fps + _MISSING)).astype(np.int64)
    return np.where((frames_N == 1) | own_rate_N, frames_N, resampled_N)


def select(frames: Iterable[Frame], start: float, fps: float) -> Iterator[Frame]:
    """Yield the frame nearest to each of start, start + 1 / fps, ... until the end of the last frame.

    Ties go to the earlier frame. With `fps=0` frames follow each other as in the file, from the one nearest to `start`.
    A video of a single frame is a still: it gives that frame once, however long it lasts.
    """
    if fps == 0:
        yield from _from_nearest(frames, start)
        return
    wanted = (start + i / fps for i in itertools.count())
    target, last, count = next(wanted), None, 0
    for frame in frames:
        while frame.time >= target:
            yield last if last is not None and _is_nearer(last, frame, target) else frame
            target = next(wanted)
        last, count = frame, count + 1
    still = count == 1 and last.time == 0
    while last is not None and target < last.time + last.duration - _EPSILON and not (still and target > 0):
        yield last
        target = next(wanted)


def _from_nearest(frames: Iterable[Frame], start: float) -> Iterator[Frame]:
    last, begun = None, False
    for frame in frames:
        if begun:
            yield frame
        elif frame.time >= start:
            begun = True
            if last is not None and _is_nearer(last, frame, start):
                yield last
            yield frame
        last = frame
    if not begun and last is not None and start < last.time + last.duration - _EPSILON:
        yield last


def _is_nearer(before: Frame, after: Frame, time: float) -> bool:
    # Ties go to the earlier frame, also when rounding splits them.
    return time - before.time <= after.time - time + _EPSILON
