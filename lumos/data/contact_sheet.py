"""One picture of many clips: a row per clip, frames left to right, the caption above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

_CAPTION_HEIGHT = 16


def contact_sheet(
    videos: Sequence[np.ndarray], captions: Sequence[str], *, num_frames: int = 8, scale: int = 0
) -> Image.Image:
    """Draw clips uint8 [F, Y, X, 3] as rows of evenly spaced frames. `scale` 0 enlarges small frames to about 96 pixels."""
    height, width = videos[0].shape[1:3]
    scale = scale or max(1, round(96 / height))
    columns = min(num_frames, max(len(video) for video in videos))
    row_height = height * scale + _CAPTION_HEIGHT + 4
    sheet = Image.new("RGB", (columns * (width * scale + 2), row_height * len(videos)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (video, caption) in enumerate(zip(videos, captions)):
        top = row * row_height
        draw.text((2, top + 1), caption, fill="black")
        for column, index in enumerate(np.linspace(0, len(video) - 1, columns).round().astype(int)):
            frame = Image.fromarray(video[index]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(frame, (column * (width * scale + 2), top + _CAPTION_HEIGHT))
    return sheet
