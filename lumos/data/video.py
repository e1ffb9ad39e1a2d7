"""Video files in and out, through PyAV (FFmpeg) and Pillow.

A still image is a video of one frame. Times are seconds after the first frame of the file, sizes are those of
the upright picture (rotation tags applied), and every array is uint8 RGB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from lumos.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".mpg", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# Content decides how a file is read, whatever it is called. Playlists (hls, dash, concat) would open other files, and
# Pillow would run Ghostscript for PostScript: only real containers and images are read.
_CONTAINERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,gif,asf,flv,ogg,wav,mp3,aac,flac"
_IMAGES = ("PNG", "JPEG", "WEBP")
# One thread, for files that do not depend on the number of cores. With x264's macroblock tree the same frames encoded
# again gave other bytes.
_X264 = {"crf": "12", "threads": "1", "x264-params": "mbtree=0"}

# What Pillow raises on files that are no images, are cut short, or unpack to an absurd size.
_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    frames: int
    duration: float  # seconds; an image has 0
    fps: float  # average rate; an image has 0
    width: int
    height: int
    rotation: int  # degrees counterclockwise that the file asks for; width and height are after it
    codec: str

    def frames_at(self, fps: float) -> int:
        """Return how many frames the file gives when resampled to `fps` (0 = its own rate)."""
        return self.frames if fps == 0 or self.frames == 1 else int(self.duration * fps + 1e-6)


def probe(path: str | Path, max_pixels: int = 0) -> VideoInfo:
    """Read the facts of a video or image and check that both of its ends can be read.

    A picture of more than `max_pixels` (0 = any) is refused before anything is decoded.

    The first frame is decoded. Where the header counts the frames (mp4, mov) the last packet is read too, so that a
    file cut short is found; elsewhere the packets are counted.

    Raises:
      UserError: the file is missing, damaged, cut short, too large, or has no video.
    """
    path = Path(path)
    if is_image(path):
        image = _open_image(path, max_pixels)
        return VideoInfo(1, 0.0, 0.0, image.width, image.height, 0, image.format_description)
    with _open(path, max_pixels) as (container, stream):
        first = next(_decode(container, stream), None)
        if first is None:
            raise UserError(f"{path}: no frame can be decoded")
        declared = float(stream.average_rate or stream.guessed_rate or 0)
        if stream.frames and stream.duration:
            frames, duration = stream.frames, float(stream.duration * stream.time_base)
            _check_last_packet(container, stream, path)
        else:
            frames, duration = _count_packets(path, first.duration)
        # A single frame without a duration lasts one period.
        duration = duration or frames / (declared or 1.0)
        # Screen recorders write absurd rates: a declared one must agree with the count and the duration.
        measured = frames / duration
        fps = declared if abs(measured - declared) < 0.1 * measured else measured
        sideways = first.rotation % 180 != 0
        width, height = (first.height, first.width) if sideways else (first.width, first.height)
        _check_size(path, width, height, max_pixels)  # again: the header of the file may lie
        return VideoInfo(frames, duration, fps, width, height, first.rotation, stream.codec_context.name)


def read_clip(
    path: str | Path, *, start: float = 0.0, num_frames: int | None = None, fps: float = 0.0, height: int, width: int
) -> np.ndarray:
    """Decode a clip, resampled in time and fitted to a size.

    Decoding begins at the last keyframe before `start`. Frame i is the one whose presentation time is nearest to
    `start + i / fps`; with `fps=0` frames follow each other as in the file, from the one nearest to `start`. Pictures
    are scaled (antialiased) until they cover height x width, then cut at the centre.

    Args:
      start: seconds after the first frame.
      num_frames: length of the result; None takes all frames to the end of the file.
      fps: frames per second of the result; 0 keeps those of the file.

    Returns:
      uint8 [F, Y, X, 3].

    Raises:
      UserError: the file is damaged, has no video, or ends before the clip does.
    """
    path = Path(path)
    if is_image(path):
        if (num_frames or 1) > 1:
            raise UserError(f"{path}: an image has one frame, {num_frames} are needed")
        image = ImageOps.fit(_open_image(path), (width, height), method=Image.Resampling.LANCZOS)
        return np.asarray(image)[None]
    clip, previous = [], None
    with _open(path) as (container, stream):
        fit = _Fit(height, width)
        frames = _select(_frames_from(container, stream, start), stream, start, fps)
        for frame in itertools.islice(frames, num_frames):
            # A rate above that of the file repeats frames: fit each one once.
            clip.append(clip[-1] if frame is previous else fit(frame))
            previous = frame
    if len(clip) < (num_frames or 1):
        wanted = "no frame" if num_frames is None else f"only {len(clip)} of {num_frames} frames"
        raise UserError(f"{path}: {wanted} from {start:.2f} s on (cut short, or start too late)")
    return np.stack(clip)


def write_video(
    path: str | Path, video_FYX3: np.ndarray, fps: float, metadata: Mapping[str, str] | None = None
) -> None:
    """Write uint8 [F, Y, X, 3] as .mp4, .gif or .png, atomically (a temporary file, then a rename).

    mp4 is H.264 at a quality without visible loss, padded to even sizes by repeating the edge. png is one image, or for
    several frames a contact sheet, eight to a row. `metadata` (for example the prompt) goes into the comment of an mp4
    or gif and into the text chunks of a png, one `key: value` line each.

    Raises:
      UserError: unknown suffix, or a folder that cannot be written.
    """
    path = Path(path)
    if video_FYX3.dtype != np.uint8 or video_FYX3.ndim != 4 or video_FYX3.shape[3] != 3 or not len(video_FYX3):
        raise ValueError(f"write_video wants uint8 [F, Y, X, 3], got {video_FYX3.dtype} {video_FYX3.shape}")
    writers = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_png}
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise UserError(f"cannot write {path}: the suffix must be one of {', '.join(writers)}")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writers[suffix](temporary, video_FYX3, fps, dict(metadata or {}))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def is_image(path: str | Path) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


# Reading -------------------------------------------------------------------------------------------------------------


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if max_pixels and width * height > max_pixels:
        raise UserError(f"{path}: {width}x{height} is more than {max_pixels} pixels")


def _open_image(path: Path, max_pixels: int = 0) -> Image.Image:
    try:
        with Image.open(path, formats=_IMAGES) as image:
            _check_size(path, *image.size, max_pixels)
            upright = ImageOps.exif_transpose(image).convert("RGB")
            upright.format_description = (image.format or "image").lower()
            return upright
    except _IMAGE_ERRORS as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "damaged or not an image"
        raise UserError(f"{path}: {reason}") from error


@contextlib.contextmanager
def _open(path: Path, max_pixels: int = 0) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open the first real video stream; FFmpeg errors inside the block become UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    try:
        # Absolute, so that no file name is taken for a protocol ("concat:a|b").
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        with av.open(str(path.absolute()), container_options=options) as container:
            # Sound files carry their cover art as a video stream.
            covers = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & covers]
            if not streams:
                raise UserError(f"{path}: no video stream")
            stream = streams[0]
            _check_size(path, stream.codec_context.width, stream.codec_context.height, max_pixels)
            # The pipeline runs one clip per thread; threads inside a decoder would only fight with them.
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.error.FFmpegError, EOFError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: damaged or not a video ({reason})") from error


def _decode(container, stream) -> Iterator[av.VideoFrame]:
    """Yield the frames that have a presentation time; one without cannot be placed in a clip."""
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield frame


def _time(frame: av.VideoFrame, stream: av.VideoStream) -> float:
    """Return seconds after the first frame of the file."""
    return float((frame.pts - (stream.start_time or 0)) * frame.time_base)


def _check_last_packet(container, stream, path: Path) -> None:
    end = (stream.start_time or 0) + stream.duration
    container.seek(end, stream=stream, any_frame=True)
    packet = next(container.demux(stream), None)
    if packet is None or not packet.size:
        raise UserError(f"{path}: cut short (the header promises {stream.frames} frames, the last cannot be read)")


def _count_packets(path: Path, frame_duration: int) -> tuple[int, float]:
    """Return the number of frames and the seconds from the first to the end of the last."""
    with _open(path) as (container, stream):
        times = [packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None]
        if not times:
            return 1, 0.0
        period = frame_duration or (max(times) - min(times)) / max(len(times) - 1, 1)
        return len(times), float((max(times) - min(times) + period) * stream.time_base)


def _frames_from(container, stream, start: float) -> Iterator[av.VideoFrame]:
    """Decode from the last keyframe at or before `start`."""
    # MPEG program streams have no index: seeking lands anywhere, and with the wrong times.
    if start > 0 and container.format.name != "mpeg":
        container.seek(int(start / stream.time_base) + (stream.start_time or 0), stream=stream)
        frames = _decode(container, stream)
        first = next(frames, None)
        if first is not None and _time(first, stream) <= start:
            yield first
            yield from frames
            return
        # Landed too late (a poor index, frames before the first keyframe): decode from the beginning.
        container.seek(stream.start_time or 0, stream=stream)
    yield from _decode(container, stream)


def _select(frames, stream, start: float, fps: float) -> Iterator[av.VideoFrame]:
    """Yield the frame nearest to each wanted time; the last frame of the file lasts one period."""
    period = float(1 / stream.average_rate) if stream.average_rate else 0.0
    if fps == 0:
        yield from (frame for frame in frames if _time(frame, stream) >= start - period / 2)
        return
    wanted = (start + i / fps for i in itertools.count())
    target, last = next(wanted), None
    for frame in frames:
        now = _time(frame, stream)
        while now >= target:
            # Ties go to the earlier frame, also when rounding splits them.
            nearer_before = last is not None and target - _time(last, stream) <= now - target + 1e-6
            yield last if nearer_before else frame
            target = next(wanted)
        last = frame
    while last is not None and target < _time(last, stream) + period - 1e-6:
        yield last
        target = next(wanted)


class _Fit:
    """Convert frames to RGB, cover height x width, cut the centre. Keeps FFmpeg's scaler between frames."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.scaler = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        sideways = frame.rotation % 180 != 0
        height, width = (self.width, self.height) if sideways else (self.height, self.width)
        scale = max(height / frame.height, width / frame.width)
        scaled_height, scaled_width = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
        rgb = self.scaler.reformat(
            frame, scaled_width, scaled_height, "rgb24", interpolation="AREA" if scale < 1 else "BICUBIC", threads=1
        ).to_ndarray()
        top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
        return np.rot90(rgb[top : top + height, left : left + width], frame.rotation // 90)


# Writing -------------------------------------------------------------------------------------------------------------


def _comment(metadata: dict[str, str]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in metadata.items())


def _write_mp4(path: Path, video_FYX3: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    _, height, width, _ = video_FYX3.shape
    # 4:2:0 colour needs even sizes.
    padded = np.pad(video_FYX3, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        if metadata:
            container.metadata["comment"] = _comment(metadata)
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=_X264)
        stream.height, stream.width, stream.pix_fmt = padded.shape[1], padded.shape[2], "yuv420p"
        # FFmpeg converts RGB with the BT.601 matrix; untagged, players of large videos would assume BT.709.
        stream.colorspace = Colorspace.SMPTE170M
        for frame_YX3 in padded:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_YX3, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, video_FYX3: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    first, *rest = (Image.fromarray(frame_YX3) for frame_YX3 in video_FYX3)
    first.save(
        path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, comment=_comment(metadata).encode()
    )


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
