"""Slot 3, targets: which position predicts which token.

Masked models predict in place: the position that holds [MASK] predicts its own code (no shift). Text, where it is
trained at all, is predicted by the position before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lumos.sequence.layout import Layout


class Targets(NamedTuple):
    """Position `source[j]` predicts the token at `target[j]`; int32 [J], static."""

    source: np.ndarray
    target: np.ndarray


def visual(layout: Layout) -> Targets:
    """Return the in-place targets of all visual codes (Lumos-1 section 3.3)."""
    return Targets(layout.visual_index, layout.visual_index)


def text(layout: Layout) -> Targets:
    """Return next-token targets inside the text slots."""
    index = np.arange(layout.num_text, dtype=np.int32)
    return Targets(index[:-1], index[1:])
