"""One table of per-token integers, shared by layouts (whole sequences) and by the slots of the decoding cache.

Who sees whom (`sequence.rule`), what predicts what (`sequence.targets`) and where a token stands (`coordinates`) follow
from these integers alone, so a token means the same in training and in the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Kinds. From CODE on, tokens are cells of the video and have coordinates in time and space.
TEXT, MARKER, CODE, LINE_END, START, STREAM, MEMORY = range(7)  # what may be hidden lies before STREAM

# Pixel-scale factors of MM-RoPE coordinates: a latent cell spans 4 frames x 8 rows x 8 columns (Lumos-1 section 3.2).
T_SCALE, H_SCALE, W_SCALE = 4, 8, 8


class Tokens(NamedTuple):
    """int32 arrays of one shape, [L] in a layout, [B or 1, S] in a cache.

    kind: TEXT, MARKER (start, size and end tokens), CODE, LINE_END, START (before the first codes of a video), STREAM,
      MEMORY (for k x k cells of a frame, `sequence.memory`).
    index: place in the natural order: text, then the video in raster order with its markers.
    t, y, x: latent frame, row and column; t is -1 outside of frames.
    stream: 0 is the video; others are tokens that come with each frame (actions, audio); -1, -2, ... the rungs of
      memory tokens.
    copy: 0 clean, 1 noisy (training on two copies).
    stage: rank in the order of generation; later stages see earlier ones.
    group: which tokens a plan generates together; -1 for what is given.
    segment: scene of a token; -1 belongs to all.
    valid: 0 where there is no token (padding, an empty slot).
    """

    kind: np.ndarray
    index: np.ndarray
    t: np.ndarray
    y: np.ndarray
    x: np.ndarray
    stream: np.ndarray
    copy: np.ndarray
    stage: np.ndarray
    group: np.ndarray
    segment: np.ndarray
    valid: np.ndarray

    def at(self, index) -> Tokens:
        """Return the tokens that `index` selects on the last axis."""
        return Tokens(*(field[..., index] for field in self))

    @property
    def is_cell(self):
        return self.kind >= CODE


class Positions(NamedTuple):
    """Rotary coordinates per token, int32 [L] or [B, L]: 1-D index, then t, h, w where is_content is true."""

    text: np.ndarray
    t: np.ndarray
    h: np.ndarray
    w: np.ndarray
    is_content: np.ndarray

    def at(self, index) -> Positions:
        """Return the positions of the tokens `index` selects on the last axis."""
        return Positions(*(a[..., index] for a in self))


def make_tokens(**fields) -> Tokens:
    """Return a table from the fields that are not constant; the others are 0, `group`, `segment` -1 and `valid` 1."""
    length = len(fields["kind"])
    defaults = {"group": -1, "segment": -1, "valid": 1}
    table = {name: np.full(length, defaults.get(name, 0)) for name in Tokens._fields} | fields
    return Tokens(**{name: np.asarray(value).astype(np.int32) for name, value in table.items()})


def coordinates(tokens: Tokens, offset: int) -> Positions:
    """Return the rotary coordinates of tokens: MM-RoPE's scaled cells for codes, the index for all others.

    `offset` is the index of the first cell, where the axes of the video begin (Lumos-1 section 3.2).
    """
    is_cell = tokens.is_cell

    def axis(cell, scale):
        return is_cell * (cell * scale + offset) + (1 - is_cell) * tokens.index

    return Positions(
        text=tokens.index,
        t=axis(tokens.t, T_SCALE),
        h=axis(tokens.y, H_SCALE),
        w=axis(tokens.x, W_SCALE),
        is_content=is_cell * 1,
    )
