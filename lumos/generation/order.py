"""Slot 5, the order: how many tokens of a group stay unknown after each iteration."""

from __future__ import annotations

import math

import numpy as np


def cosine(num_cells: int, steps: int) -> np.ndarray:
    """Return the unknown count after each of `steps` iterations, int32 [steps], ending in 0.

    MaskGIT's cosine schedule with Lumos-1's rule (section 3.4): max(1, min(unknown - 1, floor(N cos(pi/2 (s+1)/S)))).
    """
    counts, unknown = [], num_cells
    for s in range(1, steps):
        unknown = max(1, min(unknown - 1, math.floor(num_cells * math.cos(math.pi / 2 * s / steps))))
        counts.append(unknown)
    return np.array([*counts, 0], np.int32)


def reference_targets(num_cells: int, steps: int) -> np.ndarray:
    """Return floor(N cos(pi/2 (s+1)/S)) of each step in float32, int32 [steps]: where the released sampler aims.

    Single precision decides it: at two thirds of the steps 2 N cos is just below N.
    """
    ratio = (np.arange(1, steps + 1) / steps).astype(np.float32)
    cosines = np.cos(ratio * np.float32(math.pi) * np.float32(0.5))
    return np.floor(np.float32(num_cells) * cosines).astype(np.int32)


def history_mask(num_cells: int, ratio: float, *, always: bool = False) -> np.ndarray:
    """Return which content cells of a finished frame are masked before it enters the cache, bool [cells].

    A fixed periodic pattern, the same for all frames like a training tube: cells round(i n / m), m = round(ratio n).
    With `always`, ratio 0 masks one cell, as the released code does.
    """
    mask = np.zeros(num_cells, bool)
    if ratio > 0 or always:
        count = max(1, round(ratio * num_cells))
        mask[np.rint(np.arange(count) * num_cells / count).astype(int)] = True
    return mask
