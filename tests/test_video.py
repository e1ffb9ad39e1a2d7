"""Decoding and writing: exact frames at exact times, seeking, sizes, rotation, damage."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lumos.data.video import probe, read_clip
from lumos.data.video_writer import write_video
from lumos.errors import UserError

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"


def numbered_video(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame i is grey of level 16 + 4 i, so that a decoded frame says which one it was."""
    levels = (16 + 4 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def frame_numbers(video_FYX3: np.ndarray) -> list[int]:
    return np.rint((video_FYX3.mean(axis=(1, 2, 3)) - 16) / 4).astype(int).tolist()


def write_with_keyframes(path, video_FYX3, fps, codec="libx264", rotation=0, **options):
    """Encode with B-frames and a keyframe every 8 frames, which write_video does not do."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "8", "bf": "2", **options})
        stream.height, stream.width, stream.pix_fmt = *video_FYX3.shape[1:3], "yuv420p"
        stream.bit_rate = 8_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in video_FYX3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    write_with_keyframes(path, numbered_video(48), 24)
    return path


def test_probe(numbered):
    info = probe(numbered)
    assert (info.frames, info.fps, info.width, info.height, info.rotation) == (48, 24.0, 48, 32, 0)
    assert info.duration == pytest.approx(2.0)
    assert [info.frames_at(fps) for fps in (0, 24, 12, 8, 30)] == [48, 48, 24, 16, 60]


@pytest.mark.parametrize(
    "start, fps, expected",
    [
        (0.0, 0, [0, 1, 2, 3, 4]),
        (0.5, 0, [12, 13, 14, 15, 16]),
        (1.75, 0, [42, 43, 44, 45, 46]),
        (0.5, 24, [12, 13, 14, 15, 16]),
        (0.5, 8, [12, 15, 18, 21, 24]),
        (0.26, 8, [6, 9, 12, 15, 18]),  # 0.26 s is frame 6.24
        (1.0, 48, [24, 24, 25, 25, 26]),  # ties go to the earlier frame
        (1.0, 5, [24, 29, 34, 38, 43]),  # 24, 28.8, 33.6, 38.4, 43.2
    ],
)
def test_frames_are_those_nearest_to_the_wanted_times(numbered, start, fps, expected):
    clip = read_clip(numbered, start=start, num_frames=5, fps=fps, height=32, width=48)
    assert frame_numbers(clip) == expected


@pytest.mark.parametrize("suffix, codec", [(".mkv", "libx264"), (".mpg", "mpeg2video"), (".avi", "mpeg4")])
def test_other_containers(tmp_path, suffix, codec):
    path = tmp_path / f"clip{suffix}"
    write_with_keyframes(path, numbered_video(48), 24, codec, bf="0")
    info = probe(path)
    assert (info.frames, round(info.fps)) == (48, 24)
    assert info.duration == pytest.approx(2.0, abs=0.05)
    clip = read_clip(path, start=1.25, num_frames=6, fps=12, height=32, width=48)
    assert frame_numbers(clip) == [30, 32, 34, 36, 38, 40]


@pytest.mark.parametrize("start", [0.1, 0.5, 1.0, 1.5])
def test_seeking_equals_decoding_from_the_start(numbered, start):
    first = round(start * 24)
    whole = read_clip(numbered, num_frames=48, height=32, width=48)
    clip = read_clip(numbered, start=start, num_frames=8, height=32, width=48)
    np.testing.assert_array_equal(clip, whole[first : first + 8])


@pytest.mark.skipif(not REAL.is_dir(), reason="no real clips here")
@pytest.mark.parametrize("name", ["drive/drive_0.mp4", "gesture/again.mkv", "other/city.mpg"])
def test_seeking_in_real_clips(name):
    info = probe(REAL / name)
    whole = read_clip(REAL / name, num_frames=info.frames, height=36, width=64)
    for first in (1, info.frames // 2, info.frames - 4):
        clip = read_clip(REAL / name, start=first / info.fps, num_frames=4, height=36, width=64)
        np.testing.assert_array_equal(clip, whole[first : first + 4])


def test_a_clip_past_the_end_is_an_error(numbered):
    assert frame_numbers(read_clip(numbered, start=1.5, num_frames=12, height=32, width=48))[-1] == 47
    with pytest.raises(UserError, match="numbered.mp4: only 12 of 13 frames from 1.50 s"):
        read_clip(numbered, start=1.5, num_frames=13, height=32, width=48)
    with pytest.raises(UserError, match="only 6 of 7 frames"):
        read_clip(numbered, start=1.5, num_frames=7, fps=12, height=32, width=48)


def test_fit_covers_and_cuts_the_centre(tmp_path):
    """A wide picture with a red left, green centre and blue right keeps its centre."""
    picture = np.zeros((1, 64, 192, 3), np.uint8)
    for third in range(3):
        picture[:, :, 64 * third : 64 * (third + 1), third] = 255
    for suffix in (".png", ".mp4"):
        write_video(tmp_path / f"wide{suffix}", picture, fps=8)
        square = read_clip(tmp_path / f"wide{suffix}", num_frames=1, height=32, width=32)
        assert square.shape == (1, 32, 32, 3)
        assert np.all(np.abs(square[0, :, 4:28].astype(int) - (0, 255, 0)) < 12)
        whole = read_clip(tmp_path / f"wide{suffix}", num_frames=1, height=32, width=96)
        assert np.all(np.abs(whole[0, 16, [4, 48, 91]].astype(int) - 255 * np.eye(3, dtype=int)) < 12)


def test_scaling_down_is_antialiased(tmp_path):
    """One-pixel stripes average to grey; without a low-pass filter they would alias to black or white."""
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    for suffix in (".png", ".mp4"):
        write_video(tmp_path / f"stripes{suffix}", stripes[: 1 if suffix == ".png" else 2], fps=8)
        small = read_clip(tmp_path / f"stripes{suffix}", num_frames=1, height=16, width=16)
        assert np.all(np.abs(small[0, 2:-2, 2:-2].astype(int) - 127) < 16)


def test_rotation_tag_is_applied(tmp_path):
    picture = np.zeros((2, 32, 64, 3), np.uint8)
    picture[:, :, :32] = 255  # white left half
    write_with_keyframes(tmp_path / "turned.mp4", picture, 8, rotation=90)
    info = probe(tmp_path / "turned.mp4")
    assert (info.width, info.height, abs(info.rotation)) == (32, 64, 90)
    clip = read_clip(tmp_path / "turned.mp4", num_frames=1, height=64, width=32)
    expected = np.rot90(picture[0], info.rotation // 90)  # counterclockwise
    assert np.abs(clip[0].astype(int) - expected).mean() < 8


@pytest.mark.parametrize("shape", [(5, 32, 48, 3), (3, 33, 47, 3), (1, 16, 16, 3)])
def test_mp4_round_trip(tmp_path, shape):
    rng = np.random.default_rng(0)
    coarse = (rng.integers(40, 216, (shape[0], 4, 4, 1)) + rng.integers(-20, 20, (shape[0], 4, 4, 3))).astype(np.uint8)
    video = np.stack([np.asarray(Image.fromarray(c).resize((shape[2], shape[1]), Image.BICUBIC)) for c in coarse])
    write_video(tmp_path / "v.mp4", video, fps=7.5, metadata={"prompt": "a red circle"})
    info = probe(tmp_path / "v.mp4")
    assert (info.frames, info.fps) == (shape[0], 7.5)
    assert (info.height, info.width) == (shape[1] + shape[1] % 2, shape[2] + shape[2] % 2)
    back = read_clip(tmp_path / "v.mp4", num_frames=shape[0], height=info.height, width=info.width)
    error = back[:, : shape[1], : shape[2]].astype(float) - video
    assert np.sqrt(np.mean(error**2)) < 4  # colour is stored at half size
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.metadata["comment"] == "prompt: a red circle"
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_gif_and_png(tmp_path):
    video = numbered_video(10)
    write_video(tmp_path / "v.gif", video, fps=10, metadata={"prompt": "grey"})
    assert probe(tmp_path / "v.gif").frames == 10
    assert frame_numbers(read_clip(tmp_path / "v.gif", start=0.3, num_frames=4, height=32, width=48)) == [3, 4, 5, 6]
    with Image.open(tmp_path / "v.gif") as image:
        assert image.info["comment"] == b"prompt: grey"

    write_video(tmp_path / "sheet.png", video, fps=10, metadata={"prompt": "größer"})
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (8 * 48, 2 * 32)
        assert image.text["prompt"] == "größer"
        sheet = np.asarray(image)
    np.testing.assert_array_equal(sheet[32:, 48:96], video[9])
    assert not sheet[32:, 96:].any()

    write_video(tmp_path / "one.png", video[:1], fps=10)
    np.testing.assert_array_equal(read_clip(tmp_path / "one.png", num_frames=1, height=32, width=48), video[:1])
    with pytest.raises(UserError, match="one.png: an image has one frame"):
        read_clip(tmp_path / "one.png", num_frames=2, height=32, width=48)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    write_video(tmp_path / "v.GIF", numbered_video(2), fps=8)  # any case
    (tmp_path / "v.GIF").rename(tmp_path / "v.gif")
    before = (tmp_path / "v.gif").read_bytes()
    monkeypatch.setattr(Image.Image, "save", lambda self, path, **_: (Path(path).write_bytes(b"half"), fail()))
    with pytest.raises(UserError, match="cannot write .*v.gif: No space left"):
        write_video(tmp_path / "v.gif", numbered_video(4), fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["v.gif"]
    assert (tmp_path / "v.gif").read_bytes() == before
    with pytest.raises(UserError, match="suffix must be one of .mp4, .gif, .png"):
        write_video(tmp_path / "v.webm", numbered_video(2), fps=8)


def make_damaged(folder: Path) -> dict[str, str]:
    """Write files that cannot be used; return name -> part of the reason."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    good = folder / "source.mp4"
    write_with_keyframes(good, noise, 24)
    data = good.read_bytes()
    good.unlink()
    (folder / "cut_index.mp4").write_bytes(data[: len(data) // 2])  # its index, at the end, is lost
    write_video(good, noise, 24)  # index first
    (folder / "cut_frames.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    good.unlink()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return {
        "cut_index.mp4": "damaged or not a video",
        "cut_frames.mp4": "cut short",
        "empty.mp4": "the file is empty",
        "text.mp4": "damaged or not a video",
        "sound.mp4": "no video stream",
        "broken.png": "damaged or not an image",
    }


def test_damaged_files_are_named_with_the_reason(tmp_path):
    for name, reason in make_damaged(tmp_path).items():
        with pytest.raises(UserError, match=f"{name}: {reason}") as caught:
            probe(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("cut_frames.mp4", "cut_index.mp4", "sound.mp4", "text.mp4"):
        with pytest.raises(UserError, match=name):
            read_clip(tmp_path / name, num_frames=24, height=32, width=32)
    with pytest.raises(UserError, match="absent.mp4: no such file"):
        probe(tmp_path / "absent.mp4")
