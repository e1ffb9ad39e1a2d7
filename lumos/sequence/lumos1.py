"""The sequence of the released Lumos-1 models (Lumos-1 section 3.1): frames wrapped in markers, rows ended by new_line.

[text x P] sep video_start duration fps {image_start h w (W codes, new_line) x H image_end} x T video_end sep
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos.sequence import vocabulary
from lumos.sequence.arrangement import Arrangement
from lumos.sequence.layout import Grid, Layout
from lumos.sequence.tokens import CODE, LINE_END, MARKER, TEXT, make_tokens
from lumos.sequence.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lumos1(Arrangement, name="lumos1"):
    """Frame by frame with the markers and token ids of the released models."""

    size_unit: int = 4  # latent cells per unit of the size tokens
    visual_start: int = 65_536  # token id of visual code 0
    number_zero: int = 8_804  # token id of the number 0 (sizes, duration, fps)
    # Ids of image_start, image_end, new_line, separator, video_start, video_end, mask; () = those of the released models
    special_tokens: tuple[int, ...] = ()

    def __post_init__(self):
        if len(self.special_tokens) not in (0, 7):
            raise ValueError(
                f"special_tokens={self.special_tokens} must hold 7 ids (image_start, image_end, new_line, separator, video_start, "
                "video_end, mask), or none for those of the released models"
            )
        if self.size_unit < 1 or min(self.visual_start, self.number_zero) < 0:
            raise ValueError("size_unit must be at least 1, visual_start and number_zero at least 0")

    def check(self, grid):
        _check_size(grid, self.size_unit)

    def vocabulary(self, text_vocab, visual_vocab, *, start, streams, memory=False):
        if start or streams or memory:
            raise ValueError(
                "the sequence of the released models has no start or memory tokens and no streams; use 'compact'"
            )
        special = dict(zip(vocabulary.RELEASED_SPECIAL, self.special_tokens)) or vocabulary.RELEASED_SPECIAL
        return vocabulary.lumos1(visual_vocab, self.visual_start, self.number_zero, special)

    def layout(self, ids, num_text, grid, *, timing=(1, 1), copies=1, start="none", streams=(), memory=()):
        if copies != 1 or start != "none" or streams or memory:
            raise ValueError("the sequence of the released models is one copy of the video alone; use 'compact'")
        return build(ids, num_text, grid, fps=timing[0], duration=timing[1], size_unit=self.size_unit)


def build(ids: Vocabulary, num_text: int, grid: Grid, *, fps: int, duration: int, size_unit: int = 4) -> Layout:
    """Build the layout. Sizes are written in units of `size_unit` latent cells. Raises ValueError."""
    _check_size(grid, size_unit)
    v, (num_frames, rows, columns) = ids, grid
    markers = [v.mask, v.separator, v.image_start, v.image_end, v.new_line, v.video_start, v.video_end]
    numbers = [v.number_zero + number for number in (rows // size_unit, columns // size_unit, duration, fps)]
    if (
        len(set(markers)) < 7
        or set(markers) & set(numbers)
        or not 0 <= min(markers + numbers) <= max(markers + numbers) < v.visual_start
    ):
        raise ValueError(
            f"markers {markers} (special_tokens) and number tokens {numbers} (number_zero + size, duration, fps) must be "
            f"different ids below visual_start={v.visual_start}"
        )
    row = [0] * columns + [v.new_line]
    frame = [v.image_start, v.number_zero + rows // size_unit, v.number_zero + columns // size_unit]
    frame += row * rows + [v.image_end]
    head = [0] * num_text + [v.separator, v.video_start, v.number_zero + duration, v.number_zero + fps]
    template = np.array(head + frame * num_frames + [v.video_end, v.separator], np.int32)

    cell_y, cell_x = np.indices((rows, columns + 1)).reshape(2, -1)
    kind_of_cell = np.where(cell_x < columns, CODE, LINE_END)

    def spread(values, outside):  # per cell of a frame -> per token of the sequence
        one = np.concatenate([[outside] * 3, values, [outside]])
        return np.concatenate([[outside] * len(head), np.tile(one, num_frames), [outside] * 2])

    index = np.arange(len(template))
    t = np.repeat([-1, *range(num_frames), -1], [len(head), *[len(frame)] * num_frames, 2])
    kind = spread(kind_of_cell, MARKER)
    kind[:num_text] = TEXT
    # A frame has one stage, the index of its first token; everything else is causal.
    stage = np.where(t >= 0, len(head) + t * len(frame), index)
    tokens = make_tokens(kind=kind, index=index, t=t, y=spread(cell_y, 0), x=spread(cell_x, 0), stage=stage, group=t)
    return Layout(
        vocabulary=ids,
        grid=tuple(grid),
        num_text=num_text,
        drop_to=num_text + 1,
        template=template,
        tokens=tokens,
        visual_index=np.flatnonzero(kind == CODE).astype(np.int32),
        content_index=np.flatnonzero(kind >= CODE).reshape(num_frames, -1).astype(np.int32),
    )


def _check_size(grid: Grid, size_unit: int) -> None:
    if grid[1] % size_unit or grid[2] % size_unit:
        raise ValueError(
            f"grid {tuple(grid)}: rows and columns must be multiples of {size_unit} in the layout 'lumos1'"
        )
