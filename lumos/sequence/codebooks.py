"""Slot 1, arrangements of tokens that have several codes for each latent cell (`tokenizer.composition`)."""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos.sequence.arrangement import Arrangement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts(Arrangement, name="parts"):
    """The codes of a cell lie side by side (compositions "grouped" and "residual"): of each frame first all first codes,
    then all second ones, ... (X-Dancer, arXiv 2502.17414 section 3.2)."""

    num: int = 2  # codes of a cell, as many as tokenizer.parts
    compositions = ("grouped", "residual")

    def __post_init__(self):
        if self.num < 1:
            raise ValueError(f"num={self.num} must be at least 1")

    def stages(self, grid):
        if grid[2] % self.num:
            raise ValueError(f"{self.num} codes a cell do not divide rows of {grid[2]} tokens")
        t, _, x = np.indices(grid)
        return t * self.num + x % self.num


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers(Arrangement, name="layers"):
    """The codes of an area lie side by side, 1, 4, 16, ... of ever finer layers (composition "layers"): coarse to fine
    (HiTVideo, arXiv 2503.11513 section 3.2)."""

    num: int = 2  # layers, as many as tokenizer.parts
    # frame: all layers of a frame, then those of the next one; layer: one layer of the whole clip, then the next layer
    first: str = "frame"
    compositions = ("layers",)

    def __post_init__(self):
        if self.num < 1:
            raise ValueError(f"num={self.num} must be at least 1")
        if self.first not in ("frame", "layer"):
            raise ValueError(f"first={self.first!r}: allowed: frame, layer")

    def stages(self, grid):
        sizes = 4 ** np.arange(self.num)
        if grid[2] % sizes.sum():
            raise ValueError(
                f"areas of {sizes.sum()} tokens ({self.num} layers) do not divide rows of {grid[2]} tokens"
            )
        t, _, x = np.indices(grid)
        layer = np.repeat(np.arange(self.num), sizes)[x % sizes.sum()]
        return t * self.num + layer if self.first == "frame" else layer * grid[0] + t

    def parents(self, grid):
        of_area, first = [0], 0  # of the tokens of an area
        for layer in range(1, self.num):
            row, column = np.divmod(np.arange(4**layer), 2**layer)
            of_area += (first + row // 2 * 2 ** (layer - 1) + column // 2).tolist()
            first += 4 ** (layer - 1)
        y, x = np.indices(grid[1:])
        return (y * grid[2] + x - x % len(of_area) + np.array(of_area)[x % len(of_area)]).reshape(-1)
