"""From token ids back to structure: what the lumos1 style says about positions and visibility, read from the ids.

A `Layout` builds sequences of one shape; this module reads any sequence of the released models: text alone, an image,
several frames, rows of unequal text length, padding, a row without text. Two rules of the reference implementation
differ and are kept: rotary positions go by the size tokens that follow an image start (content tokens may be masked),
visibility goes by the start and end markers, and, in a row with a complete video, only by those inside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lumos.errors import UserError
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.tokens import H_SCALE, T_SCALE, W_SCALE, Positions
from lumos.sequence.vocabulary import Vocabulary


class Parsed(NamedTuple):
    """positions: int32 [B, L] each. frame_BL: frame of a content token, else -1. keys: what each token may see."""

    positions: Positions
    frame_BL: np.ndarray
    keys: KeyRanges


def parse(ids_BL: np.ndarray, vocabulary: Vocabulary, size_unit: int) -> Parsed:
    """Read positions and visibility from token ids of the lumos1 style, each row on its own.

    Args:
      ids_BL: integers [B, L]; padding (id 0) comes last. A frame that is cut off at the end of a row is read as far
        as it goes.
      size_unit: latent cells per unit of the size tokens.

    Raises:
      UserError: a size token is not a number token, or a stray marker makes a frame's tokens discontiguous.
    """
    ids_BL = np.asarray(ids_BL)
    if ids_BL.ndim != 2 or not np.issubdtype(ids_BL.dtype, np.integer):
        raise UserError(f"token ids must be integers [batch, length], got {ids_BL.dtype} {list(ids_BL.shape)}")
    starts_BL = ids_BL == vocabulary.image_start
    count_BL = np.cumsum(starts_BL, axis=1)
    positions, frame_BL = _positions(ids_BL, starts_BL, count_BL, vocabulary, size_unit)
    end_BL = _visible_end(ids_BL, count_BL, vocabulary)
    return Parsed(positions, frame_BL, KeyRanges(np.zeros_like(end_BL)[None], end_BL[None]))


def _positions(ids_BL, starts_BL, count_BL, v: Vocabulary, size_unit: int):
    length = ids_BL.shape[1]
    index_BL = np.broadcast_to(np.arange(length), ids_BL.shape)
    start_BL = np.maximum.accumulate(np.where(starts_BL, index_BL, -1), axis=1)

    def size(offset):  # in latent cells, of the frame that a token belongs to
        at = np.minimum(start_BL + offset, length - 1)
        number = np.take_along_axis(ids_BL, np.maximum(at, 0), axis=1) - v.number_zero
        known = (start_BL >= 0) & (start_BL + offset < length)
        if np.any(known & (number < 1)):
            row, column = np.argwhere(known & (number < 1))[0]
            raise UserError(
                f"row {row}: token {ids_BL[row, at[row, column]]} at index {at[row, column]} is not a size token "
                f"(ids above {v.number_zero})"
            )
        return np.where(known, number * size_unit, 0)

    rows_BL, columns_BL = size(1), size(2) + 1  # a row ends in a new_line token
    offset_BL = index_BL - start_BL - 3
    is_content_BL = (start_BL >= 0) & (offset_BL >= 0) & (offset_BL < rows_BL * columns_BL)
    frame_BL = np.where(is_content_BL, count_BL - 1, -1).astype(np.int32)
    # One offset for all frames of a row: the index of its first content token.
    first_B1 = np.argmax(is_content_BL, axis=1)[:, None]

    def place(coordinate, scale):
        return np.where(is_content_BL, coordinate * scale + first_B1, index_BL).astype(np.int32)

    y_BL, x_BL = np.divmod(offset_BL, columns_BL)
    positions = Positions(
        text=index_BL.astype(np.int32),
        t=place(count_BL - 1, T_SCALE),
        h=place(y_BL, H_SCALE),
        w=place(x_BL, W_SCALE),
        is_content=is_content_BL.astype(np.int32),
    )
    return positions, frame_BL


def _segment(ids_BL, start: int, end: int) -> np.ndarray:
    """Return the tokens from a start marker to its end marker, both included; an open segment runs to the end."""
    is_start, is_end = ids_BL == start, ids_BL == end
    return (np.cumsum(is_start, axis=1) > np.cumsum(is_end, axis=1)) | is_start | is_end


def _visible_end(ids_BL, count_BL, v: Vocabulary) -> np.ndarray:
    """Return one past the last key that each token sees: the end of its frame, or itself (causal)."""
    in_frame_BL = _segment(ids_BL, v.image_start, v.image_end)
    has_video_B = np.any(ids_BL == v.video_start, axis=1) & np.any(ids_BL == v.video_end, axis=1)
    in_frame_BL &= _segment(ids_BL, v.video_start, v.video_end) | ~has_video_B[:, None]
    index_L = np.arange(ids_BL.shape[1])
    end_BL = np.broadcast_to(index_L + 1, ids_BL.shape).astype(np.int32)
    for row, (in_frame_L, count_L) in enumerate(zip(in_frame_BL, count_BL)):
        where = np.flatnonzero(in_frame_L)
        frames, first, size = np.unique(count_L[where], return_index=True, return_counts=True)
        last = where[first + size - 1]
        if np.any(last - where[first] + 1 != size):
            raise UserError(f"row {row}: a stray image or video marker splits a frame; remove it from the text")
        end_BL[row, where] = np.repeat(last + 1, size)
    return end_BL
