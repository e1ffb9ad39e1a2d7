"""Frames too large for memory: encode and decode overlapping tiles and blend them.

Not exact where something spans the frame (spatial attention, norms over frames) or where a tile cuts a convolution's
reach; `benchmarks/tiling.py` measures the error. Latents are blended before they are quantised, pixels after decoding,
both with a linear ramp over the overlap.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lumos.errors import UserError


def apply_tiled(run: Callable, x: np.ndarray, tile: int, overlap: int, scale: float) -> np.ndarray:
    """Run `run` on square tiles of `x [B, T, H, W, C]` and blend its results.

    `tile` and `overlap` are sides in units of `x`; `scale` is how many units of the result one unit of `x` becomes along
    rows and columns (8 for a decoder, 1 / 8 for an encoder). Both sides must map to whole units.
    """
    if not 0 <= overlap <= tile // 2 or tile < 1:
        raise UserError(f"tiles of {tile} with an overlap of {overlap}: the overlap must lie in [0, {tile // 2}]")
    if any(round(size * scale) != size * scale for size in (tile, overlap, tile - overlap)):
        raise UserError(f"tiles of {tile} with an overlap of {overlap} do not map to whole cells at scale {scale}")
    total = weights = None
    for top, rows in _places(x.shape[2], tile, overlap):
        for left, columns in _places(x.shape[3], tile, overlap):
            part = np.asarray(run(x[:, :, top : top + rows, left : left + columns]), np.float32)
            if total is None:
                shape = (*part.shape[:2], round(x.shape[2] * scale), round(x.shape[3] * scale), part.shape[-1])
                total, weights = np.zeros(shape, np.float32), np.zeros((*shape[2:4], 1), np.float32)
            blend = round(overlap * scale)
            weight = np.outer(_ramp(part.shape[2], blend), _ramp(part.shape[3], blend))[..., None]
            y, z = round(top * scale), round(left * scale)
            total[:, :, y : y + part.shape[2], z : z + part.shape[3]] += part * weight
            weights[y : y + part.shape[2], z : z + part.shape[3]] += weight
    return total / weights


def _places(size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Return (start, length) of tiles that cover `size`; the last one is moved back to end with it."""
    if size <= tile:
        return [(0, size)]
    step = tile - overlap
    starts = [*range(0, size - tile, step), size - tile]
    return [(start, tile) for start in starts]


def _ramp(size: int, overlap: int) -> np.ndarray:
    """Return weights that rise from the border over the overlap and are 1 inside; never 0."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1
    return np.minimum(distance / (overlap + 1), 1).astype(np.float32)
