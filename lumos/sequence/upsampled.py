"""Slot 4, the kernel "upsampled": hidden cells show the code of the coarser cell that stands for them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from lumos.sequence.corruption import Kernel
from lumos.sequence.layout import Layout


def coarser(layout: Layout) -> np.ndarray:
    """Return the cell that stands for each cell, in raster order, int32 [T * H * W]: its parent in the same frame if that is of
    an earlier stage, else the parent one frame before; -1 = there is none."""
    num_frames, per_frame = layout.grid[0], layout.grid[1] * layout.grid[2]
    stage_TP = layout.tokens.stage[layout.visual_index].reshape(num_frames, per_frame)
    cell_TP = np.arange(num_frames * per_frame).reshape(num_frames, per_frame)
    parent_TP, stages_TP = cell_TP[:, layout.parents], stage_TP[:, layout.parents]
    before_TP = np.where(cell_TP < per_frame, -1, parent_TP - per_frame)
    return np.where(stages_TP < stage_TP, parent_TP, before_TP).reshape(-1).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upsampled(Kernel, name="upsampled"):
    """The code of the parent on the coarser scale (next-scale prediction: G3PT, arXiv 2409.06322; VAR, arXiv 2404.02905), on the
    coarsest scale that of the same cell in the frame before; [MASK] where there is none. Generation: sampler "next_scale"."""

    def __call__(self, key, ids_BL, chosen_BL, ids, context=None):
        layout, from_J = context.layout, coarser(context.layout)
        seen = layout.visual_index if layout.clean_index is None else layout.clean_index
        shown_BJ = jnp.where(from_J < 0, ids.mask, ids_BL[:, seen[from_J]])
        cells = layout.visual_index
        return ids_BL.at[:, cells].set(jnp.where(chosen_BL[:, cells], shown_BJ, ids_BL[:, cells]))
