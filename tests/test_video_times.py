"""How many frames a file has, and when: what `probe` promises is what `read_clip` gives, in every container."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from test_video import frame_numbers, numbered_video

from lumos.config import Config, DataConfig
from lumos.data.buckets import plan_buckets
from lumos.data.index import index
from lumos.data.sources import open_sources
from lumos.data.video import VideoInfo, probe, read_clip
from lumos.errors import UserError

NTSC_FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)

# suffix, FFmpeg's name of the container, codec, B-frames
CONTAINERS = [
    ("mp4", "mp4", "libx264", 2), ("m4v", "mp4", "mpeg4", 2), ("mov", "mov", "mjpeg", 0), ("mkv", "matroska", "libx264", 2),
    ("webm", "webm", "libvpx-vp9", 0), ("avi", "avi", "mpeg4", 2), ("avi", "avi", "libx264", 2), ("avi", "avi", "ffv1", 0),
    ("mpg", "mpeg", "mpeg2video", 2), ("mpeg", "mpeg", "mpeg2video", 0), ("ts", "mpegts", "libx264", 2),
    ("m2ts", "mpegts", "mpeg2video", 2), ("wmv", "asf", "wmv2", 0), ("flv", "flv", "libx264", 2), ("flv", "flv", "flv", 0),
    ("3gp", "3gp", "mpeg4", 0), ("ogv", "ogg", "libvpx", 0), ("gif", "gif", "gif", 0),
]  # fmt: skip


def write(path, frames, rate, container, codec, b_frames, *, times=None, size=(64, 48), **options):
    """Encode noise around the levels 16 + 4 i, key frames 8 apart; `times` are in thousandths of a second."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-12, 13, (frames, size[1] // 2, size[0], 1))
    noise = np.concatenate([noise, -noise], axis=1)  # the mean stays
    pixels = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options={"g": "8", "bf": str(b_frames), **options})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, pixels, 40_000_000
        stream.codec_context.max_b_frames = b_frames
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, frame in enumerate((numbered_video(frames, size[1], size[0]) + noise).astype(np.uint8)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = times[i], Fraction(1, 1000)
            output.mux(stream.encode(picture))
        output.mux(stream.encode())


def assert_kept(path, frames, numbers=None, constant=True):
    """Everything that the file's facts promise can be read, from every start, and is the right frame."""
    info = probe(path)
    assert info.frames == frames
    assert (
        VideoInfo(**{**vars(info), "duration": round(info.duration, 4), "fps": round(info.fps, 4)}).frames_at(0)
        == frames
    )
    for fps in (0, info.fps, 8, 24, 30):
        promised = info.frames_at(fps)
        whole = read_clip(path, fps=fps, height=48, width=64)
        assert len(whole) == promised, fps
        if fps in (0, info.fps)[: 1 + constant] and numbers is not None:
            assert frame_numbers(whole) == numbers
        for first in {promised // 2, promised - 1} - {0}:
            start = first / (fps or info.fps)
            rest = read_clip(path, start=start, num_frames=promised - first, fps=fps, height=48, width=64)
            assert frame_numbers(rest) == frame_numbers(whole[first:]), (fps, first)
    return info


@pytest.mark.parametrize("suffix, container, codec, b_frames", CONTAINERS)
def test_every_frame_is_counted_and_read(tmp_path, suffix, container, codec, b_frames):
    for rate, frames in [(12, 5), (NTSC_FILM, 17), (24, 17), (25, 33), (NTSC, 9), (30, 34), (50, 17), (60, 21)]:
        path = tmp_path / f"{frames}_{float(rate):.2f}.{suffix}"
        write(path, frames, rate, container, codec, b_frames)
        info = assert_kept(path, frames, list(range(frames)))
        if codec != "gif":  # FFmpeg writes its delays in whole hundredths of a second
            assert info.fps == pytest.approx(float(rate), rel=2e-3)
            assert info.frames_at(float(rate)) == frames


def test_manifests_written_before_give_the_right_counts():
    """They hold four digits of the duration, of times that the container had rounded."""
    for fps in (12, float(NTSC_FILM), 24, 25, float(NTSC), 30, 48, 50, 60):
        for frames in range(2, 130):
            for shortened in (0, 0.0012):
                row = VideoInfo(frames, round(frames / fps - shortened, 4), round(fps, 4), 8, 8, 0, "")
                assert row.frames_at(fps) == row.frames_at(round(fps, 4)) == row.frames_at(0) == frames
                assert row.frames_at(fps / 2) == frames // 2 and row.frames_at(2 * fps) == 2 * frames
                # The frame that begins in the last quarter of a period is not promised.
                assert row.frames_at(7) <= np.ceil(frames / fps * 7)


def test_a_rate_that_agrees_with_nothing_is_replaced_by_the_measured_one(tmp_path):
    write(tmp_path / "v.mkv", 20, 24, "matroska", "libx264", 0, times=np.arange(20) * 50)
    info = assert_kept(tmp_path / "v.mkv", 20, list(range(20)))
    assert info.fps == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("suffix, container, codec", [("mkv", "matroska", "libx264"), ("mp4", "mp4", "mpeg4")])
def test_variable_rate(tmp_path, suffix, container, codec):
    """A slow half and a quick half: windows by order hold what the manifest promises, windows by time the right frames."""
    path = tmp_path / f"v.{suffix}"
    times = np.cumsum([0] + [200] * 10 + [40] * 20)
    write(path, 31, 24, container, codec, 2, times=times)
    info = probe(path)
    assert info.frames == 31 and info.duration == pytest.approx((times[-1] + 40) / 1000, abs=0.06)
    for first in range(0, 31 - 8 + 1):  # also where many windows begin within one slow frame
        clip = read_clip(path, start=first / info.fps, num_frames=8, height=48, width=64, own_fps=info.fps)
        assert frame_numbers(clip) == list(range(first, first + 8))
    for fps in (5, 12.5, 30):
        clip = read_clip(path, fps=fps, height=48, width=64)
        assert len(clip) == info.frames_at(fps)
        wanted = [np.abs(times / 1000 - (i / fps - 1e-5)).argmin() for i in range(len(clip))]
        assert np.abs(np.subtract(frame_numbers(clip), wanted)).max() <= 1  # ties, and times rounded to the container's
        assert np.mean(np.equal(frame_numbers(clip), wanted)) > 0.9


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_a_long_last_frame(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    first, *rest = map(Image.fromarray, numbered_video(8, 48, 64))
    durations = [100] * 7 + [3000]
    first.save(path, save_all=True, append_images=rest, duration=durations, lossless=True)
    info = assert_kept(path, 8, list(range(8)), constant=False)
    assert info.duration == pytest.approx(3.7)
    assert info.frames_at(10) == 37
    clip = read_clip(path, start=0.5, num_frames=32, fps=10, height=48, width=64)
    assert frame_numbers(clip) == [5, 6] + [7] * 30
    with pytest.raises(UserError, match="only 2 of 3 frames from 3.50 s"):
        read_clip(path, start=3.5, num_frames=3, fps=10, height=48, width=64)


def test_a_video_of_one_frame_is_a_still(tmp_path):
    write(tmp_path / "v.mp4", 1, Fraction(1, 5), "mp4", "libx264", 0)
    info = probe(tmp_path / "v.mp4")
    assert (info.frames, info.duration) == (1, 5.0)
    assert info.frames_at(24) == len(read_clip(tmp_path / "v.mp4", fps=24, height=48, width=64)) == 1


def with_edit_list(data: bytes, duration: float, skipped_frames: int) -> bytes:
    """Change the first entry of an mp4's edit list: seconds to show, frames (at 24 per second) to leave out at the start."""
    data, place = bytearray(data), data.index(b"elst") + 12
    timescale = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    tick = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    media_time = struct.unpack_from(">i", data, place + 4)[0] + tick // 24 * skipped_frames
    struct.pack_into(">Ii", data, place, round(duration * timescale), media_time)
    return bytes(data)


def test_edit_lists(tmp_path):
    write(tmp_path / "all.mp4", 48, 24, "mp4", "libx264", 2)
    data = (tmp_path / "all.mp4").read_bytes()
    for name, seconds, skipped in [("trailing", 1.5, 0), ("leading", 1.5, 12), ("inside", 1.0, 7), ("key", 0.75, 8)]:
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(with_edit_list(data, seconds, skipped))
        frames = round(24 * seconds)
        info = assert_kept(path, frames, list(range(skipped, skipped + frames)))
        assert info.duration == pytest.approx(seconds)


def test_a_delayed_start_shows_nothing_before_it(tmp_path):
    """An empty edit, or a first time stamp far from zero: time 0 is the first picture."""
    write(
        tmp_path / "late.mkv",
        20,
        24,
        "matroska",
        "libx264",
        2,
        times=3000 + np.round(np.arange(20) * 1000 / 24).astype(int),
    )
    assert_kept(tmp_path / "late.mkv", 20, list(range(20)))


def test_joined_streams(tmp_path):
    """Where files are read from their beginning all frames come; where clips are sought, the wrong ones would."""
    for suffix, container, codec in [
        ("mpg", "mpeg", "mpeg2video"),
        ("ts", "mpegts", "libx264"),
        ("ts", "mpegts", "mpeg2video"),
    ]:
        for frames in (9, 30):
            path = tmp_path / f"joined.{suffix}"
            write(path, frames, 24, container, codec, 2)
            path.write_bytes(2 * path.read_bytes())
            if suffix == "mpg":
                assert_kept(path, 2 * frames, 2 * list(range(frames)))
            else:
                with pytest.raises(
                    UserError, match=r"joined.ts: after \d.\d\d s its times start again \(joined streams\)"
                ):
                    probe(path)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_that_begins_between_key_frames(tmp_path, codec):
    write(tmp_path / "all.ts", 40, 24, "mpegts", codec, 2, sc_threshold="1000000000")
    with av.open(str(tmp_path / "all.ts")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    first, second = [packet for packet in packets if packet.is_keyframe][1:3]
    path = tmp_path / "cut.ts"
    path.write_bytes((tmp_path / "all.ts").read_bytes()[first.pos + 188 :])
    frames = sum(packet.pts >= second.pts for packet in packets)
    assert 20 < frames < 32
    assert_kept(path, frames, list(range(40 - frames, 40)))


def test_hidden_pictures_are_not_counted(tmp_path):
    """VP8 keeps pictures that only others refer to in packets of their own: here a copy of every third, marked hidden."""
    write(tmp_path / "v.webm", 12, 24, "webm", "libvpx", 0)
    with av.open(str(tmp_path / "v.webm")) as source, av.open(str(tmp_path / "hidden.webm"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(source.demux(video=0)):
            if not packet.size:
                continue
            copy = av.Packet(bytes([bytes(packet)[0] & ~0x10]) + bytes(packet)[1:])
            copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts + 5, packet.dts + 5, packet.time_base, stream
            packet.stream = stream
            output.mux(packet)
            if i % 3 == 2:
                output.mux(copy)
    with av.open(str(tmp_path / "hidden.webm")) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 16
    assert_kept(tmp_path / "hidden.webm", 12)


def test_the_stream_that_players_show(tmp_path):
    """The default one, else the largest; never a cover."""

    def write_two(path, sizes, default=None, cover=None):
        with av.open(str(path), "w") as output:
            streams = []
            for i, (width, height) in enumerate(sizes):
                stream = output.add_stream("mjpeg" if i == cover else "libx264", rate=24)
                stream.width, stream.height = width, height
                stream.pix_fmt = "yuvj420p" if i == cover else "yuv420p"
                flags = av.stream.Disposition
                stream.disposition = flags.attached_pic if i == cover else flags.default if i == default else 0
                streams.append(stream)
            for i, stream in enumerate(streams):
                for frame in numbered_video(1 if i == cover else 5, *sizes[i][::-1]):
                    output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                output.mux(stream.encode())

    sizes = [(32, 32), (96, 64), (64, 48)]
    for default, shown in [(0, 0), (2, 2), (None, 1)]:
        write_two(tmp_path / "v.mkv", sizes, default)
        info = probe(tmp_path / "v.mkv")
        assert (info.width, info.height) == sizes[shown]
    write_two(tmp_path / "cover.mp4", [(96, 64), (32, 32)], default=1, cover=0)
    info = probe(tmp_path / "cover.mp4")
    assert (info.width, info.height, info.frames) == (32, 32, 5)


def test_seeking_in_a_long_file_decodes_only_what_it_needs(tmp_path):
    """A transport stream has no index; the frames are right, and few are decoded."""
    write(tmp_path / "long.ts", 56, 24, "mpegts", "libx264", 2)
    whole = read_clip(tmp_path / "long.ts", height=48, width=64)
    for first in range(1, 56, 6):
        clip = read_clip(tmp_path / "long.ts", start=first / 24, num_frames=1, height=48, width=64)
        np.testing.assert_array_equal(clip, whole[first : first + 1])


def test_pictures_of_xvid_that_hold_nothing():
    """FFmpeg gives them the times of their neighbours (AVI stores none); the right times are those of the slots."""
    path = Path(__file__).parent / "cases" / "xvid_empty_pictures.avi"
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    info = probe(path)
    assert (info.frames, info.fps, info.duration) == (len(shown), pytest.approx(24), pytest.approx(len(shown) / 24))
    assert_kept(path, len(shown))
    for i, picture in enumerate(shown):
        clip = read_clip(path, start=i / 24, num_frames=1, fps=24, height=48, width=64)
        assert np.abs(clip[0] - picture).mean() < 8, i


def test_pictures_that_hold_for_two_slots_of_avi(tmp_path):
    """As when H.264 is copied into AVI: 48 slots a second, every second one empty."""
    for codec in ("libx264", "mpeg4"):
        path = tmp_path / f"{codec}.avi"
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=48, options={"bf": "2", "g": "8"})
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 40_000_000
            for i, frame in enumerate(numbered_video(17, 48, 64)):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture.pts, picture.time_base = 2 * i, Fraction(1, 48)
                output.mux(stream.encode(picture))
            output.mux(stream.encode())
        info = probe(path)
        assert (info.frames, info.fps, info.frames_at(24)) == (17, pytest.approx(24), 17)
        clip = read_clip(path, num_frames=17, fps=24, height=48, width=64)
        assert frame_numbers(clip) == list(range(17))


def test_bare_mpeg1_with_b_frames(tmp_path):
    path = tmp_path / "v.mpeg"
    write(path, 17, 24, "mpeg1video", "mpeg1video", 2)
    info = assert_kept(path, 17, list(range(17)))
    assert (info.fps, info.duration) == (pytest.approx(24), pytest.approx(17 / 24))


def test_clips_of_a_variable_rate_are_the_same_decoded_anew_or_kept(tmp_path):
    write(tmp_path / "v.mp4", 31, 24, "mp4", "libx264", 2, times=np.cumsum([0] + [200] * 10 + [40] * 20))
    index(tmp_path, tmp_path / "m.jsonl", DataConfig(num_threads=1))
    clips = []
    for cache_gb in (0.0, 1.0):
        data = DataConfig(source="clips", path=str(tmp_path / "m.jsonl"), buckets=((9, 48, 64),), cache_gb=cache_gb)
        config = Config(data=data)
        ((source, _),) = open_sources(config, "train")
        bucket = plan_buckets(config.data, config.tokenizer)[0]
        clips.append([source.load(0, bucket, where)[0]["video"] for where in (0, 1 / 3, 2 / 3, 1)])
    for anew, kept in zip(*clips):
        np.testing.assert_array_equal(anew, kept)
    assert sorted({n for clip in clips[0] for n in frame_numbers(clip)}) == list(range(31))
