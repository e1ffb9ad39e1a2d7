"""Prompts of the released Lumos-1 models: the instruction sentence, resolutions, and token ids in and out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lumos.errors import UserError
from lumos.sequence.tokens import T_SCALE
from lumos.sequence.vocabulary import Vocabulary

# What the models were trained to follow; the caption stands after a line break and a space.
TEMPLATE = (
    "Generate a video with a resolution of {width}x{height}, consisting of {frames} frames at {fps} frames per second, "
    "according to the following prompt:\n {caption}"
)
# Width and height in pixels of the released sizes (stage names 256p, 384p, 480p); any multiple of 32 works as well.
RESOLUTIONS = {"256p": (448, 256), "384p": (672, 384), "480p": (768, 480)}
_TEXT_ROUND = 16  # text slots are rounded up to this: fewer programs to compile


def instruction(caption: str, *, width: int, height: int, fps: int, duration: int) -> str:
    """Return the text of a prompt. An image has fps and duration 1. Raises UserError for a size they cannot write."""
    if width % 32 or height % 32 or min(width, height) < 32:
        raise UserError(f"{width}x{height} pixels: Lumos-1 writes sizes in units of 32; use multiples of 32")
    return TEMPLATE.format(width=width, height=height, frames=fps * duration, fps=fps, caption=caption)


def num_latent_frames(fps: int, duration: int) -> int:
    """Return how many latent frames `duration` seconds at `fps` frames per second are."""
    return math.ceil((fps * duration - 1) / T_SCALE) + 1


@dataclasses.dataclass(frozen=True)
class Prompt:
    """text_BP: ids of the text, padded on the left; length_B: how many are text; given_BTHW: codes of given frames."""

    text_BP: np.ndarray
    length_B: np.ndarray
    given_BTHW: np.ndarray
    fps: int | None  # what the prompt itself says, if it goes on into a video
    duration: int | None
    is_single: bool


def read(prompt_ids, given_frames, size: tuple[int, int], v: Vocabulary, size_unit: int) -> Prompt:
    """Split prompts into text and given frames. Raises UserError."""
    is_single = len(prompt_ids) == 0 or np.ndim(prompt_ids[0]) == 0
    rows = [np.asarray(row, np.int64).reshape(-1) for row in ([prompt_ids] if is_single else prompt_ids)]
    texts, videos = zip(*(_split(row, v) for row in rows))
    # A row that starts at video_start has no separator either: one less than no text hides it.
    length_B = np.array(
        [len(text) if len(row) == 0 or row[0] != v.video_start else -1 for row, text in zip(rows, texts)], np.int32
    )
    slots = -(-max(int(length_B.max()), 1) // _TEXT_ROUND) * _TEXT_ROUND
    text_BP = np.full((len(rows), slots), v.pad, np.int32)
    for row, text in enumerate(texts):
        text_BP[row, slots - len(text) :] = text
        if len(text) and not 0 <= text.min() <= text.max() < v.size:
            raise UserError(
                f"prompt {row}: ids from {text.min()} to {text.max()} do not fit the vocabulary of {v.size}"
            )
    heads = {tuple(video[1:3] - v.number_zero) for video in videos if len(video) >= 3}
    frames = [_frames(video[3:], size, v, size_unit) for video in videos]
    if len(heads) > 1 or len({len(part) for part in frames}) > 1:
        raise UserError("prompts of one batch must give equally many frames, at one fps and duration")
    given_BTHW = np.stack(frames)
    if given_frames is not None:
        if given_BTHW.shape[1]:
            raise UserError("the prompt already holds frames: leave out given_frames")
        given_BTHW = _codes(given_frames, len(rows), size, v)
    duration, fps = (int(number) for number in heads.pop()) if heads else (None, None)
    return Prompt(text_BP, length_B, given_BTHW, fps, duration, is_single)


def _split(row: np.ndarray, v: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Return (text without its separators and padding, the rest from video_start on)."""
    starts = np.flatnonzero(row == v.video_start)
    text, video = (row[: starts[0]], row[starts[0] :]) if len(starts) else (row, row[:0])
    if not len(video):
        used = np.flatnonzero(text != v.pad)
        text = text[: used[-1] + 1] if len(used) else text[:1]
    while len(text) and text[-1] == v.separator:
        text = text[:-1]
    return text, video


def _frames(video: np.ndarray, size: tuple[int, int], v: Vocabulary, size_unit: int) -> np.ndarray:
    """Return the codes [T', H, W] of the frame blocks at the start of `video`."""
    rows, columns = size
    head = [v.image_start, v.number_zero + rows // size_unit, v.number_zero + columns // size_unit]
    length, frames = rows * (columns + 1) + 4, []
    while len(video) and video[0] == v.image_start:
        block, video = video[:length], video[length:]
        if list(block[:3]) != head or len(block) < length or block[-1] != v.image_end:
            raise UserError(f"a frame of the prompt is not a whole frame of {rows} x {columns} latent cells")
        frames.append(block[3:-1].reshape(rows, columns + 1)[:, :-1])
    if np.any(~np.isin(video, [v.video_end, v.separator, v.pad])):
        raise UserError("the prompt holds something else than whole frames after video_start")
    codes = np.array(frames, np.int64).reshape(-1, rows, columns) - v.visual_start
    return _checked(codes, v)


def _codes(given, batch: int, size: tuple[int, int], v: Vocabulary) -> np.ndarray:
    given = np.asarray(given)
    given = np.broadcast_to(given, (batch, *given.shape[-3:])) if given.ndim == 3 else given
    if given.ndim != 4 or given.shape[0] != batch or given.shape[2:] != tuple(size):
        raise UserError(f"given_frames {list(given.shape)} must be [batch {batch}, frames, {size[0]}, {size[1]}]")
    if given.size and given.min() >= v.visual_start >= v.visual_size:
        given = given - v.visual_start
    return _checked(given, v)


def _checked(codes: np.ndarray, v: Vocabulary) -> np.ndarray:
    if codes.size and not 0 <= codes.min() <= codes.max() < v.visual_size:
        raise UserError(
            f"codes of given frames run from {codes.min()} to {codes.max()}; allowed: 0 to {v.visual_size - 1}"
        )
    return codes.astype(np.int32)
