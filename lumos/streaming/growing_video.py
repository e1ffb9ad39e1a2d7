"""An .mp4 that plays while it grows: fragments of a second each, in the file as soon as they are full."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace

from lumos.data.video_writer import check_writable, comment_of
from lumos.errors import UserError

_X264 = {"crf": "16", "preset": "veryfast", "tune": "zerolatency"}  # it is encoded beside the making of the video


class GrowingVideo:
    """A file that takes frames, uint8 [F, Y, X, 3], until it is closed. What was written before a process dies can be played."""

    def __init__(self, path: str | Path, fps: float, metadata: Mapping[str, str] | None = None):
        """Raises UserError where the file cannot be written."""
        self.path, self._fps = Path(path), fps
        if self.path.suffix.lower() != ".mp4":
            raise UserError(f"cannot write {path}: a video that grows must end in .mp4")
        check_writable(self.path, fps)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(self.path.absolute()), "w", options=options)
        self._container.metadata["comment"] = comment_of(dict(metadata or {}))
        self._stream = None

    def __enter__(self) -> GrowingVideo:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, video_FYX3: np.ndarray) -> None:
        """Add frames; all have one size."""
        height, width = video_FYX3.shape[1:3]
        if self._stream is None:
            gop = str(max(round(self._fps), 1))
            rate = Fraction(self._fps).limit_denominator(1001)
            self._stream = self._container.add_stream(
                "libx264", rate=rate, options=_X264 | {"g": gop, "keyint_min": gop}
            )
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
            self._stream.pix_fmt, self._stream.colorspace = "yuv420p", Colorspace.SMPTE170M
        padded = np.pad(video_FYX3, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        for frame_YX3 in padded:
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame_YX3, format="rgb24")))

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
