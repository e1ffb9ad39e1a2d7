"""Slot 1, the arrangement: in which order, and in which groups, the cells of a video are generated.

Each member maps a grid to a stage for every cell. Cells of one stage are generated together and see each other; later
stages see earlier ones. Frame by frame, blocks, planes, regions, scales and other orders of frames differ in these numbers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos.sequence import vocabulary
from lumos.sequence.layout import Grid, Layout, build
from lumos.sequence.vocabulary import Vocabulary
from lumos.slots import Slot


class Arrangement(Slot):
    """How a video becomes a sequence. `compositions`: those of the tokenizer that it goes with; () = any."""

    compositions = ()

    def stages(self, grid: Grid) -> np.ndarray:
        """Return the stage of every cell, int [T, H, W]. Raises ValueError where the grid does not fit."""
        raise NotImplementedError

    def parents(self, grid: Grid) -> np.ndarray:
        """Return the place in a frame whose code stands for each place on a coarser scale, int [H * W]; most have no other."""
        return np.arange(grid[1] * grid[2])

    def check(self, grid: Grid) -> None:
        """Raise ValueError where the grid does not fit."""
        self.stages(grid)

    def vocabulary(
        self, text_vocab: int, visual_vocab: int, *, start: bool, streams: tuple[int, ...], memory: bool = False
    ) -> Vocabulary:
        """Return the token ids; `start`, `memory`: whether there are such tokens, `streams`: codebook sizes of the streams."""
        return vocabulary.compact(text_vocab, visual_vocab, start=start, memory=memory, streams=streams)

    def layout(
        self,
        ids: Vocabulary,
        num_text: int,
        grid: Grid,
        *,
        timing: tuple[int, int] = (1, 1),
        copies: int = 1,
        start: str = "none",
        streams: tuple[int, ...] = (),
        memory: tuple[int, ...] = (),
    ) -> Layout:
        """Build the layout of a grid; see `sequence.layout.build`. Raises ValueError where the grid does not fit.

        `timing` is (frames per second, seconds) of the clip, for arrangements that write them into the sequence.
        """
        layout = build(ids, num_text, self.stages(grid), copies=copies, start=start, streams=streams, memory=memory)
        return dataclasses.replace(layout, parents=self.parents(grid))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compact(Arrangement, name="compact"):
    """Blocks in raster order, and nothing but codes."""

    # Latent frames, rows and columns of a block; 0 = all. (1, 0, 0) is frame by frame, (0, 0, 0) everything at once (MaskGIT),
    # (1, 1, 0) row by row (NBP), (1, 1, 1) token by token.
    block: tuple[int, int, int] = (1, 0, 0)

    def __post_init__(self):
        if min(self.block) < 0:
            raise ValueError(f"block={self.block} must be at least 0 (0 = the whole axis)")

    def stages(self, grid):
        sizes = [size or axis for size, axis in zip(self.block, grid)]
        if any(axis % size for size, axis in zip(sizes, grid)):
            raise ValueError(f"block={self.block} does not divide the grid {tuple(grid)}")
        blocks = [axis // size for size, axis in zip(sizes, grid)]
        place = [index // size for index, size in zip(np.indices(grid), sizes)]
        return np.ravel_multi_index(place, blocks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planes(Arrangement, name="planes"):
    """Cells of equal t + y + x together (NAR, arXiv 2503.10696): a grid of T x n x n takes T + 2n - 2 stages."""

    def stages(self, grid):
        return np.indices(grid).sum(axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regions(Arrangement, name="regions"):
    """The first cells of all regions one by one, then the same cell of every region together (PAR, arXiv 2412.15119)."""

    rows: int = 2  # regions along the rows of a frame
    columns: int = 2  # and along its columns

    def __post_init__(self):
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"rows={self.rows} and columns={self.columns} must be at least 1")

    def stages(self, grid):
        num_frames, height, width = grid
        if height % self.rows or width % self.columns:
            raise ValueError(f"{self.rows} x {self.columns} regions do not divide frames of {height} x {width} cells")
        t, y, x = np.indices(grid)
        size_y, size_x = height // self.rows, width // self.columns
        region = y // size_y * self.columns + x // size_x
        place = (y % size_y * size_x + x % size_x) + t * size_y * size_x  # place of the cell in its region
        num_regions = self.rows * self.columns
        return np.where(place == 0, region, num_regions - 1 + place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scales(Arrangement, name="scales"):
    """Coarse to fine: of each frame first the cells at every 2^k-th row and column, then those at half the distance, ..."""

    num_scales: int = 3  # the coarsest one has every 2^(num_scales - 1)-th row and column

    def __post_init__(self):
        if self.num_scales < 1:
            raise ValueError(f"num_scales={self.num_scales} must be at least 1")

    def stages(self, grid):
        t, y, x = np.indices(grid)
        scale = np.full(grid, self.num_scales - 1)
        for k in range(1, self.num_scales):
            scale[(y % 2**k == 0) & (x % 2**k == 0)] = self.num_scales - 1 - k
        return t * self.num_scales + scale

    def parents(self, grid):
        scale_YX, (y, x) = self.stages((1, *grid[1:]))[0], np.indices(grid[1:])
        distance = 2 ** (self.num_scales - np.maximum(scale_YX, 1))  # of the cells of the scale before
        return ((y - y % distance) * grid[2] + x - x % distance).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks(Arrangement, name="ranks"):
    """Frames in another order than time: anchors first and what lies between them later (MMPL), future before present."""

    order: tuple[int, ...] = ()  # latent frames in the order of their generation; () = key frames first, then halves

    def stages(self, grid):
        order = self.order or _halving(grid[0])
        if sorted(order) != list(range(grid[0])):
            raise ValueError(f"order={self.order} must hold each of the {grid[0]} latent frames once")
        return np.broadcast_to(np.argsort(order)[:, None, None], grid)


def _halving(num_frames: int) -> list[int]:
    """Return first, last, and then the middle of every gap, level by level."""
    order, gaps = list(dict.fromkeys([0, num_frames - 1])), [(0, num_frames - 1)]
    while gaps:
        cuts = [(low, (low + high) // 2, high) for low, high in gaps if high - low > 1]
        order += [middle for _, middle, _ in cuts]
        gaps = [gap for low, middle, high in cuts for gap in ((low, middle), (middle, high))]
    return order
