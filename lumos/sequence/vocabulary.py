"""Token ids: one table shared by text, special tokens and visual codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

_ROUND = 128  # table rows are rounded up to this, so that the vocabulary axis shards evenly


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Where each kind of token lives. Visual code c has id `visual_start + c`."""

    size: int
    visual_start: int
    visual_size: int
    pad: int
    mask: int
    # Markers of the lumos1 style; -1 in the compact style, which writes none of them.
    separator: int = -1
    image_start: int = -1
    image_end: int = -1
    new_line: int = -1
    video_start: int = -1
    video_end: int = -1
    number_zero: int = -1  # the id of number token 0 (sizes, duration, fps)
    start: int = -1  # what stands before the first codes where codes are predicted from earlier ones
    memory: int = -1  # of memory tokens, which stand for several codes
    stream_starts: tuple[int, ...] = ()  # the id of code 0 of each stream beside the video
    stream_sizes: tuple[int, ...] = ()  # and how many codes it has
    stream_tokens: tuple[int, ...] = ()  # and how many tokens in each frame

    @property
    def visual_end(self) -> int:
        return self.visual_start + self.visual_size


def compact(
    text_size: int, visual_size: int, *, start: bool = False, memory: bool = False, streams: tuple[int, ...] = ()
) -> Vocabulary:
    """Text ids first, then the mask token, the visual codes, a start and a memory token if there are, and the codes of streams.

    `streams` are the codebook sizes of the streams beside the video.
    """
    visual_start = text_size + 1
    end = visual_start + visual_size + start + memory
    starts = tuple(end + sum(streams[:i]) for i in range(len(streams)))
    size = -(-(end + sum(streams)) // _ROUND) * _ROUND
    return Vocabulary(
        size=size, visual_start=visual_start, visual_size=visual_size, pad=0, mask=text_size,
        start=end - 1 - memory if start else -1, memory=end - 1 if memory else -1, stream_starts=starts,
        stream_sizes=tuple(streams),
    )  # fmt: skip


# Marker ids of the released Lumos-1 models, in the order of config.sequence.special_tokens.
RELEASED_SPECIAL = {
    "image_start": 8_197,
    "image_end": 8_196,
    "new_line": 8_803,
    "separator": 8_710,
    "video_start": 9_004,
    "video_end": 9_005,
    "mask": 9_003,
}


def lumos1(
    visual_size: int = 64_000,
    visual_start: int = 65_536,
    number_zero: int = 8_804,
    special: Mapping[str, int] = RELEASED_SPECIAL,
) -> Vocabulary:
    """Return the vocabulary of the released Lumos-1 models (129,536 ids with the Cosmos codebook)."""
    return Vocabulary(
        size=visual_start + visual_size,
        visual_start=visual_start,
        visual_size=visual_size,
        pad=0,
        number_zero=number_zero,
        **special,
    )
