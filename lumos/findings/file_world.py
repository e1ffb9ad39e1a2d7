"""A world of files: a frame as the bytes of a lossless codec, for models that write files byte by byte."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lumos.findings.measures import generate
from lumos.findings.training import Trained
from lumos.findings.worlds import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileWorld(World):
    """Frames of a plain world, run-length coded in raster order: pairs of a run (1 and more cells) and a code, and zeros to the end.

    A file is one row of `length` bytes. It is valid if its pairs stand before the zeros and its runs fill the frame.
    """

    frames: int = 1
    side: int = 8
    background: str = "plain"
    length: int = 20

    @property
    def grid(self):
        return 1, 1, self.length

    @property
    def num_codes(self):
        return self.side**2 + 1 + super().num_codes

    def tokens_of(self, codes, folder):
        return np.stack([self.encode(video[0]) for video in codes])[:, None, None]

    def cells_of(self, tokens, folder):
        return shown([self.decode(file) for file in tokens[:, 0, 0]], self.side)

    def encode(self, frame: np.ndarray) -> np.ndarray:
        """Return the bytes of a frame, int32 [length]."""
        cells = frame.reshape(-1)
        starts = np.flatnonzero(np.diff(cells, prepend=-1))
        runs = np.diff(np.append(starts, cells.size))
        pairs = np.stack([runs, cells[starts] + self.side**2 + 1], axis=1).reshape(-1)
        return np.pad(pairs, (0, self.length - len(pairs))).astype(np.int32)

    def decode(self, file: np.ndarray) -> np.ndarray | None:
        """Return the frame of a file, int32 [side, side], or None where it is not valid."""
        end = int(np.argmax(np.append(file, 0) == 0))
        runs, codes = file[:end:2], file[1:end:2] - self.side**2 - 1
        good = end % 2 == 0 and not file[end:].any() and (codes >= 0).all() and (runs <= self.side**2).all()
        return np.repeat(codes, runs).reshape(self.side, self.side) if good and runs.sum() == self.side**2 else None


def shown(frames: list[np.ndarray | None], side: int) -> np.ndarray:
    """Return the frames of files as clips of one frame, int32 [N, 1, side, side]; -1 where there is none."""
    broken = np.full((side, side), -1, np.int32)
    return np.stack([broken if frame is None else frame for frame in frames])[:, None]


@dataclasses.dataclass(frozen=True)
class Files:
    """Files from captions alone: NAME/valid, the share that is valid, and NAME/whole, the share that shows a whole block of the caption's
    colour."""

    name: str = "files"

    def __call__(self, trained: Trained) -> dict[str, Any]:
        made = generate(trained, 0)
        is_valid = (made >= 0).all((1, 2, 3))
        is_whole = (trained.world.find(made, trained.clips().colour) >= 0).all((1, 2))
        return {f"{self.name}/valid": float(is_valid.mean()), f"{self.name}/whole": float(is_whole.mean())}


@dataclasses.dataclass(frozen=True)
class FileLength:
    """How long files are: NAME, the mean number of tokens before the zeros."""

    name: str = "length"

    def __call__(self, trained: Trained) -> dict[str, Any]:
        return {self.name: float((np.asarray(trained.batch()["tokens"]) > 0).sum((1, 2, 3)).mean())}
