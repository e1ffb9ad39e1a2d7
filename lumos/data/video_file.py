"""Video containers through PyAV (FFmpeg): which stream, which frames are shown, and when.

Time 0 is the first frame that is shown. Frames that an edit list discards, and those that lean on pictures before the
first key frame of the file, are not shown, as in a player.
"""

from __future__ import annotations

import collections
import contextlib
import math
import re
import threading
from collections.abc import Iterator

import av
import av.logging

from lumos.data import media
from lumos.data.images import check_size
from lumos.data.media import Media
from lumos.data.timeline import Frame
from lumos.data.video_picture import Shape
from lumos.errors import UserError

# Content decides how a file is read, whatever it is called. Playlists (hls, dash, concat) would open other files: only
# real containers are read.
_CONTAINERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,gif,asf,flv,ogg,wav,mp3,aac,flac"
# Without an index (program streams), or with pictures that build on all before them (GIF): read from the beginning.
_NO_SEEKING = ("mpeg", "mpegvideo", "gif")
_INTERLACED = (2, 3, 4, 5)  # FFmpeg's AVFieldOrder: top or bottom field coded first, and shown first
_STEPS_BACK = (0, 1, 8)  # seconds to go back where seeking lands behind the wanted frame
# FFmpeg's own decoders drop the transparency of WebM.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

_logging_lock = threading.Lock()


@contextlib.contextmanager
def open_video(path: Media, max_pixels: int = 0) -> Iterator[VideoFile]:
    """Open the video stream that a player would show; FFmpeg errors inside the block become UserError."""
    media.check(path)
    try:
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        with av.open(media.for_ffmpeg(path), container_options=options) as container:
            stream = _choose_stream(container)
            if stream is None:
                raise UserError(f"{path}: no video stream")
            check_size(path, stream.codec_context.width, stream.codec_context.height, max_pixels)
            yield VideoFile(path, container, stream)
    except (av.error.FFmpegError, EOFError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: damaged or not a video ({reason})") from error


class VideoFile:
    """An open video stream; `shape` is how the container wants its pictures shown."""

    def __init__(self, path: Media, container: av.container.InputContainer, stream: av.VideoStream):
        self.path, self.stream = path, stream
        self._container, self._decoder = container, _decoder(path, stream)
        self._tick = float(stream.time_base)
        self._period = float(1 / stream.average_rate) if stream.average_rate else 0.0
        # AVI and bare MPEG streams store no presentation times, and FFmpeg's guess from the types of the pictures may be
        # wrong. They leave the decoder in their order, one for each packet: where pictures are reordered freely the first
        # one has the time of the first packet, else that of the packet that makes it leave.
        guessed = container.format.name in ("avi", "mpegvideo") and stream.codec_context.has_b_frames
        self._guessed_times = guessed and stream.codec_context.name in ("h264", "hevc")
        self._time_on_leaving = guessed and not self._guessed_times
        self._decode_times: collections.deque[int] = collections.deque()
        # Where a container stores no durations, FFmpeg begins to guess them when it reads a file again. Those of AVI are
        # one slot each, also where a picture holds for several.
        self._has_durations: bool | None = False if container.format.name == "avi" else None
        self._can_seek = container.format.name not in _NO_SEEKING and not self._guessed_times
        self.shape = Shape(
            float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1),
            _crop_of_container(container, stream),
            # Of codecs with pictures that say it themselves, the container knows less.
            stream.codec_context.codec.intra_only and stream.codec_context.field_order in _INTERLACED,
            # Of raw AVI pixels the fourth byte is mostly unused, and then 0.
            container.format.name == "avi" and stream.codec_context.name == "rawvideo",
        )

    def frames(self, start: float = 0.0) -> Iterator[Frame]:
        """Decode from the last key frame at or before `start` seconds.

        Raises:
          UserError: the times of the frames go back (joined streams), and seeking would find the wrong ones.
        """
        zero = self._first_pts() if start > 0 and self._can_seek else None
        if zero is not None:
            target = zero + int(start / self._tick)
            for seconds in _STEPS_BACK:
                landed = False
                pictures = self._decode_from(max(zero, target - int(seconds / self._tick)))
                for frame in self._timed(pictures, zero, latest=target):
                    landed = True
                    yield frame
                if landed:
                    return
        if start > 0:
            # A poor index, or times that only decoding tells: from the beginning.
            with open_video(self.path) as again:
                yield from again.frames()
        else:
            yield from self._timed(self._decode())

    def measure(self, decode: bool = False) -> tuple[int, float]:
        """Return how many frames are shown, and the seconds from the first to the end of the last.

        The packets tell; where they cannot be trusted (times missing or in disorder, damage), all is decoded, and with
        `decode` anyway. Call it on a file that has just been opened.

        Raises:
          UserError: the file is cut short, or the times of its frames go back (joined streams).
        """
        # Files that are read from the beginning for every clip may as well be read once here.
        found = None if decode or not self._can_seek else self._count_packets()
        if found is None:
            with open_video(self.path) as again:
                return _count_frames(again.frames())
        return found

    def _count_packets(self) -> tuple[int, float] | None:
        count, end, dts, doubtful = 0, 0, -math.inf, False
        first_key = first = before_last = last = last_duration = None
        for packet, pts in self._stamped_packets():
            doubtful |= pts is None or packet.is_corrupt
            if pts is None:
                continue
            if first_key is None:
                if not packet.is_keyframe:
                    continue
                first_key = pts
            # Streams may have been joined: else all that comes before a key frame is shown before it.
            doubtful |= packet.is_keyframe and last is not None and pts < last
            if packet.dts is not None:
                doubtful |= packet.dts < dts
                dts = packet.dts
            end = max(end, pts + self._duration(packet))
            if packet.is_discard or pts < first_key or self._is_hidden(packet):
                continue
            count += 1
            first = pts if first is None else min(first, pts)
            if last is None or pts >= last:
                before_last, last, last_duration = last, pts, self._duration(packet)
            else:
                before_last = pts if before_last is None else max(before_last, pts)
        self._check_end(end)
        if doubtful or not count:
            return None
        last_duration = last_duration or (0 if before_last is None else last - before_last)
        return count, (last - first + last_duration) * self._tick or self._period

    def _check_end(self, end: int) -> None:
        """Check that the packets reach as far as a header that counts them (mp4, mov) says."""
        if not self.stream.frames or not self.stream.duration:
            return
        missing = (self.stream.start_time or 0) + self.stream.duration - end
        if missing * self._tick > 1.5 * self._period:
            raise UserError(
                f"{self.path}: cut short (the header promises {self.stream.frames} frames, the last cannot be read)"
            )

    def _packets(self) -> Iterator[av.Packet]:
        for packet in self._container.demux(self.stream):
            if packet.size:  # not a frame that was dropped (AVI), or the end
                if self._has_durations is None:
                    self._has_durations = bool(packet.duration)
                yield packet

    def _stamped_packets(self) -> Iterator[tuple[av.Packet, int | None]]:
        if not self._time_on_leaving:
            yield from ((packet, self._stamp(packet)) for packet in self._packets())
            return
        before, period = None, 0
        for packet in self._packets():
            if before is not None:
                period = packet.dts - before.dts
                yield before, packet.dts
            before = packet
        if before is not None:
            yield before, before.dts + period

    def _is_hidden(self, packet: av.Packet) -> bool:
        """Return whether a packet is a picture that others refer to and nobody sees (VP8's golden frames)."""
        return self.stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10

    def _first_pts(self) -> int | None:
        """Return the time stamp of the first frame that is shown, or None where only decoding tells."""
        first_key = lowest = None
        for packet in self._packets():
            if packet.pts is None:
                return None
            if first_key is None and packet.is_keyframe:
                first_key = packet.pts
            # Nothing that is decoded later is shown earlier.
            if lowest is not None and packet.dts is not None and packet.dts >= lowest:
                break
            if first_key is not None and packet.pts >= first_key and not packet.is_discard:
                lowest = packet.pts if lowest is None else min(lowest, packet.pts)
        return lowest

    def _decode_from(self, pts: int) -> Iterator[tuple[int | None, av.VideoFrame]]:
        try:
            self._container.seek(pts, stream=self.stream)
        except av.error.FFmpegError:
            return
        self._decoder.flush_buffers()
        yield from self._decode()

    def _decode(self) -> Iterator[tuple[int | None, av.VideoFrame]]:
        """Yield (time stamp, picture) from the next key frame on, without pictures that belong before it."""
        first_key, begun = None, False
        self._decode_times.clear()
        for packet in self._packets():
            if not begun:
                if not packet.is_keyframe:
                    continue
                first_key, begun = self._stamp(packet), True
            if self._guessed_times:
                self._decode_times.append(packet.dts)
            yield from self._stamped(self._decoder.decode(packet), first_key)
        if begun:
            yield from self._stamped(self._decoder.decode(None), first_key)

    def _stamped(
        self, pictures: list[av.VideoFrame], first_key: int | None
    ) -> Iterator[tuple[int | None, av.VideoFrame]]:
        for picture in pictures:
            pts = picture.dts if self._time_on_leaving else picture.pts
            if self._guessed_times:
                pts = self._decode_times.popleft() if self._decode_times else None
            if first_key is None or pts is None or pts >= first_key:
                yield pts, picture

    def _duration(self, shown: av.Packet | av.VideoFrame) -> int:
        return shown.duration or 0 if self._has_durations else 0

    def _stamp(self, packet: av.Packet) -> int | None:
        return packet.dts if self._guessed_times else packet.pts

    def _timed(
        self, pictures: Iterator[tuple[int | None, av.VideoFrame]], zero: int | None = None, latest: int | None = None
    ) -> Iterator[Frame]:
        """Give every picture its time; one without a time stamp follows the one before it.

        `zero` is the time stamp of the first frame of the file, by default the first one here. Nothing comes if the first
        one here is after `latest`.
        """
        before, following = None, 0.0
        for pts, picture in pictures:
            if before is None and latest is not None:
                # A last frame without a duration needs one before it.
                margin = 0 if self._duration(picture) else 1 / self._tick
                if pts is None or pts > latest - margin:
                    return
            zero = (pts or 0) if zero is None else zero
            time = following if pts is None else (pts - zero) * self._tick
            before = time if before is None else before
            if time < before:  # streams were joined
                if self._can_seek:
                    raise UserError(
                        f"{self.path}: after {following:.2f} s its times start again (joined streams); "
                        "write it as one stream, or cut it there"
                    )
                zero, time = pts - round(following / self._tick), following
            # The last picture of a file may have no duration: then as long as the one before it.
            duration = self._duration(picture) * self._tick or time - before or self._period
            before, following = time, time + duration
            yield Frame(time, duration, picture)


def _count_frames(frames: Iterator[Frame]) -> tuple[int, float]:
    count, end = 0, 0.0
    for frame in frames:
        count, end = count + 1, frame.time + frame.duration
    return count, end


def _choose_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Return the largest of the streams that the file marks as default, or of all if it marks none."""
    # Sound files carry their cover art as a video stream.
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & pictures]
    default = [s for s in streams if s.disposition & av.stream.Disposition.default]
    return max(default or streams, key=lambda s: s.codec_context.width * s.codec_context.height, default=None)


def _decoder(path: Media, stream: av.VideoStream) -> av.VideoCodecContext:
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    transparent = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    if name is None or not transparent:
        decoder = stream.codec_context
    else:
        try:
            decoder = av.CodecContext.create(name, "r")
        except av.codec.codec.UnknownCodecError:
            raise UserError(f"{path}: it is transparent, which this FFmpeg cannot decode without {name}") from None
        decoder.extradata = stream.codec_context.extradata
    # The pipeline runs one clip per thread; threads inside a decoder would only fight with them.
    decoder.thread_count = 1
    return decoder


def _crop_of_container(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, int, int, int]:
    """Return (left, right, top, bottom) in stored pixels. PyAV shows it nowhere but in FFmpeg's summary of the file."""
    if not container.format.name.startswith(("mov", "matroska")):
        return 0, 0, 0, 0
    with _logging_lock:
        av.logging.set_level(av.logging.INFO)
        try:
            summary = container.dumps_format()
        finally:
            av.logging.set_level(None)
    own = re.search(rf"^  Stream #0:{stream.index}\b.*?(?=^  Stream #0:|\Z)", summary, re.DOTALL | re.MULTILINE)
    crop = own and re.search(r"^      Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", own[0], re.MULTILINE)
    return tuple(map(int, crop.groups())) if crop else (0, 0, 0, 0)
