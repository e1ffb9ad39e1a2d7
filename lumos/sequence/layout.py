"""Slot 1, the sequence layout: prompt + video grid -> one flat sequence, and back.

A layout is static: NumPy int arrays built once. Text is right-aligned against the video (padding on the left),
so the video starts at the same index in every row whatever the caption's length; rotary attention sees only
position differences, so shifting a whole row by its padding changes nothing. Dropping the text of a row
(classifier-free guidance) is then the choice of a later first visible key, not another sequence.

    compact   [text x P] [T frames of H*W codes]
    lumos1    [text x P] sep video_start duration fps {image_start h w (W codes, new_line) x H image_end} x T video_end sep
              (released weights; Lumos-1 section 3.1)
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import Config
from lumos.errors import UserError
from lumos.sequence import vocabulary
from lumos.sequence.vocabulary import Vocabulary

# Pixel-scale factors of MM-RoPE positions: a latent cell spans 4 frames x 8 rows x 8 columns (Lumos-1 section 3.2).
T_SCALE, H_SCALE, W_SCALE = 4, 8, 8


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


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """One static sequence shape. Arrays are int32 [L] unless noted.

    group: tokens of one group see each other; everything else is causal in sequence index.
    frame: latent frame of a token, -1 outside frames.
    """

    vocabulary: Vocabulary
    grid: tuple[int, int, int]
    num_text: int  # text slots, at the start
    drop_to: int  # first index that stays visible when the text is dropped
    template: np.ndarray  # ids of markers, 0 at text and visual slots
    group: np.ndarray
    frame: np.ndarray
    positions: Positions
    visual_index: np.ndarray  # [T*H*W] sequence index of each grid cell, raster order
    content_index: np.ndarray  # [T, cells] what corruption may mask in a frame (codes, and new_lines in lumos1)
    frame_start: np.ndarray  # [T] first index of each frame block
    frame_length: int

    @property
    def length(self) -> int:
        return len(self.template)

    @property
    def prefix_length(self) -> int:
        """Number of tokens before the first frame block."""
        return int(self.frame_start[0])

    def assemble(self, text_BP: jax.Array, tokens_BTHW: jax.Array) -> jax.Array:
        """Return token ids [B, L] from text ids (right-aligned) and visual codes in [0, codebook)."""
        batch = tokens_BTHW.shape[0]
        ids_BL = jnp.broadcast_to(jnp.asarray(self.template), (batch, self.length))
        ids_BL = ids_BL.at[:, : self.num_text].set(text_BP)
        codes = tokens_BTHW.reshape(batch, -1) + self.vocabulary.visual_start
        return ids_BL.at[:, self.visual_index].set(codes)

    def codes(self, ids_BL: jax.Array) -> jax.Array:
        """Return visual codes [B, T, H, W] of assembled sequences: the inverse of `assemble`."""
        codes = ids_BL[:, self.visual_index] - self.vocabulary.visual_start
        return codes.reshape(-1, *self.grid)

    def first_key(self, text_length_B: jax.Array, dropped_B: jax.Array | None = None) -> jax.Array:
        """Return the index of the first visible key per row, int32 [B]: after the padding, or after a dropped text."""
        first = self.num_text - text_length_B
        return first if dropped_B is None else jnp.where(dropped_B, self.drop_to, first)


def compact(ids: Vocabulary, num_text: int, grid: tuple[int, int, int]) -> Layout:
    """Build the compact layout: codes only, no markers."""
    num_frames, rows, columns = grid
    cells = rows * columns
    t, y, x = np.indices(grid).reshape(3, -1)
    frame = np.concatenate([np.full(num_text, -1), t])
    return _build(
        ids, grid, num_text, drop_to=num_text, template=np.zeros(num_text + num_frames * cells),
        frame=frame, is_code=frame >= 0, is_content=frame >= 0,
        y=np.concatenate([np.zeros(num_text), y]), x=np.concatenate([np.zeros(num_text), x]),
    )  # fmt: skip


def lumos1(
    ids: Vocabulary, num_text: int, grid: tuple[int, int, int], *, fps: int, duration: int, size_unit: int = 4
) -> Layout:
    """Build the layout of the released models. Sizes are written in units of `size_unit` latent cells."""
    v, (num_frames, rows, columns) = ids, grid
    if rows % size_unit or columns % size_unit:
        raise UserError(f"grid {grid}: rows and columns must be multiples of {size_unit} in the lumos1 style")
    markers = [v.mask, v.separator, v.image_start, v.image_end, v.new_line, v.video_start, v.video_end]
    numbers = [v.number_zero + number for number in (rows // size_unit, columns // size_unit, duration, fps)]
    if (
        len(set(markers)) < 7
        or set(markers) & set(numbers)
        or not 0 <= min(markers + numbers) <= max(markers + numbers) < v.visual_start
    ):
        raise UserError(
            f"markers {markers} (config.sequence.special_tokens) and number tokens {numbers} (number_zero + size, duration, fps) must be "
            f"different ids below config.sequence.visual_start={v.visual_start}"
        )
    row = [0] * columns + [v.new_line]
    block = [v.image_start, v.number_zero + rows // size_unit, v.number_zero + columns // size_unit]
    block += row * rows + [v.image_end]
    head = [0] * num_text + [v.separator, v.video_start, v.number_zero + duration, v.number_zero + fps]
    template = np.array(head + block * num_frames + [v.video_end, v.separator])
    cell_y, cell_x = np.indices((rows, columns + 1)).reshape(2, -1)
    in_block = np.zeros(len(block), bool)
    in_block[3:-1] = True

    def spread(values):  # per content token of a frame -> per token of the sequence
        one = np.zeros(len(block))
        one[in_block] = values
        return np.concatenate([np.zeros(len(head)), np.tile(one, num_frames), np.zeros(2)])

    frame = np.repeat([-1, *range(num_frames), -1], [len(head), *[len(block)] * num_frames, 2])
    is_content = spread(np.ones(rows * (columns + 1))).astype(bool)
    is_code = spread(cell_x < columns).astype(bool)
    return _build(
        v, grid, num_text, drop_to=num_text + 1, template=template, frame=frame, is_code=is_code,
        is_content=is_content, y=spread(cell_y), x=spread(cell_x),
    )  # fmt: skip


def _build(ids, grid, num_text, *, drop_to, template, frame, is_code, is_content, y, x) -> Layout:
    index = np.arange(len(template))
    offset = int(index[is_content][0])

    def scaled(values, scale):
        return np.where(is_content, values * scale + offset, index).astype(np.int32)

    starts = np.array([np.argmax(frame == f) for f in range(grid[0])], np.int32)
    return Layout(
        vocabulary=ids,
        grid=tuple(grid),
        num_text=num_text,
        drop_to=drop_to,
        template=template.astype(np.int32),
        # Unique negative groups make everything outside frames causal.
        group=np.where(frame >= 0, frame, -1 - index).astype(np.int32),
        frame=frame.astype(np.int32),
        positions=Positions(
            text=index.astype(np.int32),
            t=scaled(frame, T_SCALE),
            h=scaled(y, H_SCALE),
            w=scaled(x, W_SCALE),
            is_content=is_content.astype(np.int32),
        ),
        visual_index=index[is_code].astype(np.int32),
        content_index=index[is_content].reshape(grid[0], -1).astype(np.int32),
        frame_start=starts,
        frame_length=int((frame == 0).sum()),
    )


def make_layout(config: Config, grid: tuple[int, int, int] | None = None) -> Layout:
    """Build the layout of a run (of another grid, if given). `model.text_vocab` and `visual_vocab` must be resolved."""
    c, grid = config.sequence, tuple(grid or config.sequence.grid)
    if not config.model.visual_vocab or not (config.model.text_vocab or c.style == "lumos1"):
        raise ValueError("model.text_vocab and model.visual_vocab must be resolved before a layout is built")
    if c.style == "lumos1":
        special = dict(zip(vocabulary.RELEASED_SPECIAL, c.special_tokens)) or vocabulary.RELEASED_SPECIAL
        v = vocabulary.lumos1(config.model.visual_vocab, c.visual_start, c.number_zero, special)
        fps, duration = timing(config, grid[0])
        return lumos1(v, c.text_length, grid, fps=fps, duration=duration, size_unit=c.size_unit)
    return compact(vocabulary.compact(config.model.text_vocab, config.model.visual_vocab), c.text_length, grid)


def timing(config: Config, num_frames: int) -> tuple[int, int]:
    """Return the frames per second and the seconds that the lumos1 style writes for a clip of so many latent frames.

    A single frame is an image: both are 1, as in the released data. `sequence.duration` is that of `sequence.grid`; other
    lengths last as long as their frames, in whole seconds.
    """
    c = config.sequence
    if num_frames == 1:
        return 1, 1
    if num_frames == c.grid[0] and c.duration:
        return c.fps, c.duration
    frames = 1 + (num_frames - 1) * config.tokenizer.temporal_compression
    return c.fps, max(1, round(frames / c.fps))
