"""Video files in, through PyAV (FFmpeg) and Pillow.

A still image is a video of one frame; animated PNG and WebP are videos. Times are seconds after the first frame that is
shown, sizes are those of the picture as a player shows it (square pixels, upright, cropped), and every array is uint8
RGB (sRGB or BT.709 as stored). What `probe` promises, `read_clip` gives.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lumos.data import images, media, timeline
from lumos.data.media import Media, Member
from lumos.data.timeline import Frame, frames_within, select
from lumos.data.video_file import open_video
from lumos.data.video_picture import Fit, check_picture
from lumos.errors import UserError

# Which files of a folder are taken for clips. How one is read says its content.
VIDEO_SUFFIXES = (
    ".mp4", ".webm", ".avi", ".mkv", ".mov", ".mpg", ".gif", ".m4v", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".mpeg",
)  # fmt: skip
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".apng")
# Frames by which times within a clip may differ from those of a constant rate: containers round them.
_JITTER = 0.5


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    frames: int
    duration: float  # seconds from the first frame to the end of the last; an image has 0
    fps: float  # average rate; an image has 0
    width: int  # as shown
    height: int
    rotation: int  # degrees counterclockwise that the file asks for; width and height are after it
    codec: str

    def frames_at(self, fps: float) -> int:
        """Return how many frames the file gives when resampled to `fps` (0 = its own rate)."""
        return int(timeline.frames_at(*(np.array([x]) for x in (self.frames, self.duration, self.fps)), fps)[0])


def probe(path: str | Path | Member, max_pixels: int = 0) -> VideoInfo:
    """Read the facts of a video or image, and check that it can be read as they say.

    A picture of more than `max_pixels` (0 = any) is refused before anything is decoded. The first frame is decoded, all
    packets are read; where they do not tell which frames are shown and when, all frames are decoded.

    Raises:
      UserError: the file is missing, damaged, cut short, too large, has no video, or nothing that can be shown rightly.
    """
    path = media.of(path)
    if images.is_image(path):
        return _probe_image(path, max_pixels)
    with open_video(path, max_pixels) as video:
        first = next(video.frames(), None)
        if first is None:
            raise UserError(f"{path}: no frame can be decoded")
        picture, stream = first.picture, video.stream
        check_picture(path, picture)
        height, width = video.shape.shown_size(picture)
        # Again: the header of the file may lie, and pixels need not be square.
        images.check_size(path, picture.width, picture.height, max_pixels)
        images.check_size(path, width, height, max_pixels)
        declared, codec = float(stream.average_rate or stream.guessed_rate or 0), stream.codec_context.name
    with open_video(path) as video:
        # Packets of interlaced streams may be fields.
        frames, duration = video.measure(decode=picture.interlaced_frame)
    # A single frame without a duration lasts one period.
    duration = duration or frames / (declared or 1.0)
    # Screen recorders write absurd rates: a declared one must agree with the count and the duration.
    fps = declared if declared and abs(declared * duration - frames) < 0.25 else frames / duration
    return VideoInfo(frames, duration, fps, width, height, picture.rotation, codec)


def read_clip(
    path: str | Path | Member,
    *,
    start: float = 0.0,
    num_frames: int | None = None,
    fps: float = 0.0,
    height: int,
    width: int,
    own_fps: float = 0.0,
) -> np.ndarray:
    """Decode a clip, resampled in time and fitted to a size.

    Decoding begins at the last keyframe before `start`. Frame i is the one whose presentation time is nearest to
    `start + i / fps`; with `fps=0` frames follow each other as in the file, from the one nearest to `start`. Pictures
    are scaled (antialiased) until they cover height x width, then cut at the centre.

    Args:
      start: seconds after the first frame.
      num_frames: length of the result; None takes all frames to the end of the file.
      fps: frames per second of the result; 0 keeps those of the file.
      own_fps: average rate of the file (`VideoInfo.fps`), by default what its header says. Where frames do not follow at
        it, the rate varies: with `fps=0` the clip then begins at frame number `start * VideoInfo.fps`.

    Returns:
      uint8 [F, Y, X, 3].

    Raises:
      UserError: the file is damaged, has no video, or ends before the clip does.
    """
    path = media.of(path)
    size = (height, width)
    clip, own_rate = _read(path, start, num_frames, fps, size, own_fps)
    if fps == 0 and start > 0 and (len(clip) < (num_frames or 1) or not own_rate):
        # Of a file with a variable rate a manifest means the order of the frames, counted with the average rate.
        info = probe(path)
        first = round(start * info.fps)
        if first + (num_frames or 1) <= info.frames:
            clip, _ = _read(path, 0.0, num_frames, fps, size, own_fps, skip=first)
    if len(clip) < (num_frames or 1):
        wanted = "no frame" if num_frames is None else f"only {len(clip)} of {num_frames} frames"
        raise UserError(f"{path}: {wanted} from {start:.2f} s on (cut short, or start too late)")
    return np.stack(clip)


def _probe_image(path: Media, max_pixels: int) -> VideoInfo:
    frames, duration, size = 0, 0.0, (0, 0)
    for frame in images.read_frames(path, max_pixels):
        frames, duration, size = frames + 1, frame.time + frame.duration, frame.picture.size
    fps = frames / duration if duration else 0.0
    return VideoInfo(frames, duration, fps, *size, rotation=0, codec=images.image_format(path))


def _read(
    path: Media,
    start: float,
    num_frames: int | None,
    fps: float,
    size: tuple[int, int],
    own_fps: float,
    skip: int = 0,
) -> tuple[list[np.ndarray], bool]:
    """Return up to `num_frames` fitted pictures, without the first `skip` of the file, and whether (for all that can be
    seen here) they follow each other at the file's average rate.
    """
    if not images.is_image(path):
        with open_video(path) as video:
            frames = _checked(path, video.frames(start))
            average = own_fps or float(video.stream.average_rate or 0)
            return _collect(frames, Fit(*size, video.shape), start, num_frames, fps, skip, average)
    frames = images.read_frames(path)
    first = next(frames)
    if first.duration == 0:  # a still
        if (num_frames or 1) > 1:
            raise UserError(f"{path}: an image has one frame, {num_frames} are needed")
        return [images.fit(first.picture, *size)], True
    return _collect(
        itertools.chain([first], frames), lambda image: images.fit(image, *size), start, num_frames, fps, skip, own_fps
    )


def _checked(path: Media, frames: Iterator[Frame]) -> Iterator[Frame]:
    for i, frame in enumerate(frames):
        if i == 0:
            check_picture(path, frame.picture)
        yield frame


def _collect(
    frames: Iterable[Frame],
    fit: Callable[[Any], np.ndarray],
    start: float,
    num_frames: int | None,
    fps: float,
    skip: int,
    average: float,
) -> tuple[list[np.ndarray], bool]:
    end = start

    def watched() -> Iterator[Frame]:
        nonlocal end
        for frame in itertools.islice(frames, skip, None):
            end = frame.time + frame.duration
            yield frame

    clip, previous, times = [], None, []
    for frame in itertools.islice(select(watched(), start, fps), num_frames):
        # A rate above that of the file repeats frames: fit each one once.
        clip.append(clip[-1] if frame is previous else fit(frame.picture))
        times.append(frame.time)
        previous = frame
    own_rate = all(abs((time - times[0]) * average - i) < _JITTER for i, time in enumerate(times))
    # To the end of the file means as many as a manifest promises.
    return clip[: frames_within(end - start, fps)] if num_frames is None and fps else clip, own_rate
