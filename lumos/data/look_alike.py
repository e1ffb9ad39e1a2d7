"""Clips that look alike, by perceptual hashes of a few of their frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from lumos.data import media
from lumos.data.decoder import read_clip
from lumos.errors import UserError

FRAMES = 4  # of a clip that are hashed, in the middles of as many equal parts of it
BITS = 64  # of a hash
_SIDE = 64  # pixels of a frame that is hashed


def hashes_of(row: dict[str, Any]) -> list[int] | None:
    """Return the perceptual hashes of a clip's frames; None where it cannot be read."""
    try:
        import imagehash
    except ImportError as error:
        raise UserError("--near_duplicates needs imagehash; pip install 'lumos-video[filter]'") from error
    from PIL import Image

    frames = [(2 * i + 1) * row["frames"] // (2 * FRAMES) for i in range(FRAMES)]
    size = {"own_fps": row["fps"], "height": _SIDE, "width": _SIDE}
    found = {}
    try:
        with media.fetched(media.of_row(row)) as clip:
            for frame in dict.fromkeys(frames):
                start = row.get("start", 0.0) + frame / (row["fps"] or 1.0)
                picture = Image.fromarray(read_clip(clip, start=start, num_frames=1, **size)[0])
                bits = np.packbits(np.asarray(imagehash.phash(picture).hash).reshape(-1))
                found[frame] = int.from_bytes(bits.tobytes())
    except UserError:
        return None
    return [found[frame] for frame in frames]


class Seen:
    """Clips by their hashes, to find one that is like another: whose frames differ in at most `distance` bits on the average.

    Then some frame differs in no more, and of `distance + 1` parts of its hash at least one is the same: only clips that share such
    a part are compared.
    """

    def __init__(self, distance: int):
        edges = np.linspace(0, BITS, min(distance, BITS - 1) + 2).astype(int).tolist()
        self._parts = [(np.uint64(start), np.uint64((1 << (end - start)) - 1)) for start, end in zip(edges, edges[1:])]
        self._most, self._number = distance * FRAMES, 0
        self._hashes_NF = np.empty((1024, FRAMES), np.uint64)
        self._clips: dict[tuple[int, int, int], _Numbers] = {}  # by frame, part and what stands in it

    def has_like(self, hashes: list[int]) -> bool:
        hashes_F = np.array(hashes, np.uint64)
        found = [self._clips[key].values for key in self._keys(hashes_F) if key in self._clips]
        if not found:
            return False
        others_NF = self._hashes_NF[np.concatenate(found)]
        return bool((np.bitwise_count(others_NF ^ hashes_F).sum(1) <= self._most).any())

    def add(self, hashes: list[int]) -> None:
        hashes_F = np.array(hashes, np.uint64)
        if self._number == len(self._hashes_NF):
            self._hashes_NF = np.concatenate([self._hashes_NF, np.empty_like(self._hashes_NF)])
        self._hashes_NF[self._number] = hashes_F
        for key in self._keys(hashes_F):
            self._clips.setdefault(key, _Numbers()).append(self._number)
        self._number += 1

    def _keys(self, hashes_F: np.ndarray) -> list[tuple[int, int, int]]:
        parts = enumerate(self._parts)
        return [(f, p, int(value)) for p, (start, mask) in parts for f, value in enumerate(hashes_F >> start & mask)]


class _Numbers:
    """An array of numbers that grows."""

    def __init__(self):
        self._values, self._length = np.empty(4, np.int32), 0

    def append(self, value: int) -> None:
        if self._length == len(self._values):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._values[self._length] = value
        self._length += 1

    @property
    def values(self) -> np.ndarray:
        return self._values[: self._length]
