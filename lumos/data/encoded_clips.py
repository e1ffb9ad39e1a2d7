"""Clips in pixels beside tokens: cut as any others, and encoded by the tokenizer of the run when a batch needs them.

What a clip becomes depends on the clip and its cut alone: it is encoded by itself, whatever batch it is in. Encoding costs a pass of the
tokenizer for every example; `lumos tokenize` pays that once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lumos.config import Config, TokenizerConfig
from lumos.data.buckets import Bucket
from lumos.errors import UserError
from lumos.geometry import frame_size, num_frames, token_grid


def in_pixels(config: Config) -> Config:
    """Return the config of a run on tokens as one of clips that its tokenizer encodes to the grids of its buckets. Raises UserError."""
    if config.tokenizer.body == "holistic" or config.sequence.streams:
        what = "config.sequence.streams" if config.sequence.streams else "a holistic tokenizer"
        raise UserError(
            f"config.data.path: clips in pixels beside tokens do not go with {what}; run `lumos tokenize` on them first"
        )
    buckets = tuple(_shape(config.tokenizer, grid) for grid in config.data.buckets)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source="clips", buckets=buckets))


def _shape(tokenizer: TokenizerConfig, grid_THW: tuple[int, int, int]) -> tuple[int, int, int]:
    frames, rows, columns = grid_THW
    return num_frames(tokenizer, frames), *frame_size(tokenizer, rows, columns)


class EncodedClips:
    """A source of clips that says the sizes of their tokens, and loads the pixels which become those of a bucket.

    Args:
      clips: opened with the config of `in_pixels`.
    """

    def __init__(self, clips: Any, tokenizer: TokenizerConfig):
        self.name, self.fps, self.facts, self.room, self.fetch = (
            clips.name,
            clips.fps,
            clips.facts,
            clips.room,
            clips.fetch,
        )
        self._clips, self._tokenizer = clips, tokenizer
        frames_N, heights_N, widths_N = clips.sizes.T
        space, (_, rows, columns) = tokenizer.spatial_compression, token_grid(tokenizer, (1, 1 << 20, 1 << 20))
        self.sizes = np.empty_like(clips.sizes)
        self.sizes[:, 0] = 1 + (frames_N - 1) // tokenizer.temporal_compression
        # As near as whole tokens are to the shape of the picture, by which a clip is given its bucket.
        for axis, (pixels_N, tokens) in enumerate(((heights_N, rows), (widths_N, columns)), 1):
            self.sizes[:, axis] = np.maximum(1, np.rint(pixels_N.astype(np.float64) / space * (tokens / (1 << 20))))

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], str | list[str]]:
        frames, height, width = shape = _shape(self._tokenizer, bucket.latent_THW)
        return self._clips.load(
            index, Bucket(frames, height, width, bucket.batch_size, bucket.latent_THW, shape), where
        )
