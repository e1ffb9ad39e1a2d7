"""Writing videos: .mp4, .gif, and .png for one frame or a contact sheet."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lumos import files
from lumos.errors import UserError

# One thread, for files that do not depend on the number of cores. With x264's macroblock tree the same frames encoded
# again gave other bytes.
_X264 = {"crf": "12", "threads": "1", "x264-params": "mbtree=0"}
# A GIF holds a frame for up to 655 s, in hundredths of a second, and browsers show one of a single hundredth for ten.
_RATES = {".gif": (0.002, 50), ".mp4": (0.002, 1000)}

_numbers = itertools.count()  # of temporary files


def check_writable(path: Path, fps: float) -> None:
    """Check, before the work, that `write_video` will be able to write `path` at this rate. Nothing is left behind.

    Raises:
      UserError: unknown suffix, a folder that cannot be made or written, a path that is a folder, or a rate that the
        format cannot have.
    """
    path = Path(path)
    _writer(path, fps)
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # the system says whether it takes the name
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def write_video(
    path: str | Path, video_FYX3: np.ndarray, fps: float, metadata: Mapping[str, str] | None = None
) -> None:
    """Write uint8 [F, Y, X, 3] as .mp4, .gif or .png, atomically (a temporary file, then a rename).

    mp4 is H.264 at a quality without visible loss, padded to even sizes by repeating the edge. gif holds every frame for
    a whole number of hundredths of a second; together they last as long as they should. png is one image, or for
    several frames a contact sheet, eight to a row. `metadata` (for example the prompt) goes into the comment of an mp4
    or gif and into the text chunks of a png, one `key: value` line each.

    Raises:
      UserError: unknown suffix, a folder that cannot be written, or a rate that the format cannot have.
    """
    if files.is_remote(path):
        with files.written(files.path(path)) as local:
            return write_video(local, video_FYX3, fps, metadata)
    path = Path(path)
    if video_FYX3.dtype != np.uint8 or video_FYX3.ndim != 4 or video_FYX3.shape[3] != 3 or not len(video_FYX3):
        raise ValueError(f"write_video wants uint8 [F, Y, X, 3], got {video_FYX3.dtype} {video_FYX3.shape}")
    check_writable(path, fps)
    # Absolute, so that FFmpeg takes no name for a protocol (12:30:00.mp4); short, as the name itself may be the longest
    # that there can be.
    temporary = path.absolute().with_name(f".lumos-{os.getpid()}-{next(_numbers)}{path.suffix.lower()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _writer(path, fps)(temporary, video_FYX3, fps, dict(metadata or {}))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _writer(path: Path, fps: float):
    """Return the function that writes a file of this name. Raises UserError."""
    writers = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_png}
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise UserError(f"cannot write {path}: the suffix must be one of {', '.join(writers)}")
    if suffix in _RATES and not _RATES[suffix][0] <= fps <= _RATES[suffix][1]:
        low, high = _RATES[suffix]
        advice = "; write .mp4" if suffix == ".gif" and fps > high else ""
        raise UserError(f"cannot write {path}: {suffix} has {low} to {high} frames a second, not {fps:g}{advice}")
    return writers[suffix]


def comment_of(metadata: dict[str, str]) -> str:
    """Return what a file says of itself, one `key: value` line each."""
    return "\n".join(f"{key}: {value}" for key, value in metadata.items())


def _write_mp4(path: Path, video_FYX3: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    _, height, width, _ = video_FYX3.shape
    # 4:2:0 colour needs even sizes.
    padded = np.pad(video_FYX3, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        if metadata:
            container.metadata["comment"] = comment_of(metadata)
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=_X264)
        stream.height, stream.width, stream.pix_fmt = padded.shape[1], padded.shape[2], "yuv420p"
        # FFmpeg converts RGB with the BT.601 matrix; untagged, players of large videos would assume BT.709.
        stream.colorspace = Colorspace.SMPTE170M
        for frame_YX3 in padded:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_YX3, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, video_FYX3: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    first, *rest = (Image.fromarray(frame_YX3) for frame_YX3 in video_FYX3)
    # Each frame ends at the hundredth nearest to its time, so that roundings do not add up.
    ends = [round(100 * i / fps) for i in range(len(video_FYX3) + 1)]
    milliseconds = [10 * (end - begin) for begin, end in itertools.pairwise(ends)]
    comment = comment_of(metadata).encode()
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0, comment=comment)


def _write_png(path: Path, video_FYX3: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    frames, height, width, _ = video_FYX3.shape
    columns = min(frames, 8)
    rows = math.ceil(frames / columns)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:frames] = video_FYX3
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    text = PngInfo()
    for key, value in metadata.items():
        text.add_itxt(key, value)
    Image.fromarray(sheet).save(path, pnginfo=text)
