"""Memory tokens: a few tokens a frame that stand for it when it is old (FAR, arXiv 2503.19325 section 3.3).

A rung of size k has one token for every k x k cells of a frame, behind the cells of the frame and of the same stage. They
are computed with the frame, and seen in its place once it is old (the rule "ladder").
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lumos.sequence.tokens import MEMORY


class Rung(NamedTuple):
    """Where the memory tokens of one size are in a sequence. int32. index: [T, M]. cells: [T, M, k * k], those that each stands for."""

    index: np.ndarray
    cells: np.ndarray

    def frames(self, num: int, first: int = 0) -> Rung:
        """Return the rung of the first frames; places count from `first` on."""
        return Rung(self.index[:num] - first, self.cells[:num] - first)


def table(sizes: tuple[int, ...], stage_THW: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return the tokens of each rung, `index` counted from the first cell of their frame. Raises ValueError."""
    num_frames, height, width = stage_THW.shape
    if sizes and (stage_THW != stage_THW[:, :1, :1]).any():
        raise ValueError("memory tokens stand for whole frames, each generated at once: use block=(1, 0, 0)")
    parts, offset = [], height * width
    for rung, k in enumerate(sizes):
        if height % k or width % k:
            raise ValueError(f"config.model.memory={sizes}: {k} does not divide frames of {height} x {width} cells")
        t, y, x = np.indices((num_frames, height // k, width // k)).reshape(3, -1)
        num, per_frame = len(t), len(t) // num_frames
        index = offset + np.arange(num) % per_frame
        parts.append(
            dict(kind=np.full(num, MEMORY), stage=stage_THW[t, 0, 0], t=t, y=k * y, x=k * x, index=index, stream=np.full(num, -1 - rung))
        )  # fmt: skip
        offset += per_frame
    return parts


def rungs(sizes: tuple[int, ...], where: list[np.ndarray], cell_THW: np.ndarray) -> tuple[Rung, ...]:
    """Return the rungs whose tokens are at `where`, [T * M] each; cell_THW: the place of each cell."""
    num_frames, height, width = cell_THW.shape
    out = []
    for k, index in zip(sizes, where):
        cells = cell_THW.reshape(num_frames, height // k, k, width // k, k).transpose(0, 1, 3, 2, 4)
        out.append(Rung(index.reshape(num_frames, -1), cells.reshape(num_frames, -1, k * k)))
    return tuple(out)
