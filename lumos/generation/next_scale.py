"""Slot 6, a sampler for models that were trained on upsampled codes in place of hidden ones (the kernel 'upsampled')."""

from __future__ import annotations

import dataclasses

from lumos.generation.sampler import OneShot


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextScale(OneShot, name="next_scale"):
    """All cells of a group are drawn in one pass, in which they show the newest codes in the places of their parents (next-scale
    prediction: G3PT, arXiv 2409.06322; VAR, arXiv 2404.02905)."""

    masks, kernels = False, ("upsampled",)

    def begin(self, keys_BW, num_codes, coarse_BWC):
        return coarse_BWC
