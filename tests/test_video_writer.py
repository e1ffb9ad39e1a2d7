"""Writing: names of every kind, the rate of a GIF, and what can be known before the work."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_video import frame_numbers, numbered_video

from lumos.data.video import probe, read_clip
from lumos.data.video_writer import check_writable, write_video
from lumos.errors import UserError

NAMES = [
    "12:30:00", "a[1]", "[a-z]*", "what?", "100%", "%03d", "a=3,b=4", "-out", "--", "two\nlines", "tab\t", " blank ", "file:x",
    "concat:a|b", "data:x", "größe", "雪", "'quoted'", '"', "back\\slash", "$HOME", "a;b&c", "#", "x" * 251, os.fsdecode(b"caf\xe9"),
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_any_name_is_written_and_read(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    frames = 1 if suffix == ".png" else 3
    for name in NAMES:
        for path in (Path(name + suffix), tmp_path / "sub" / (name + suffix)):
            check_writable(path, 8)
            write_video(path, numbered_video(frames), 8)
            assert probe(path).frames == frames
            assert frame_numbers(read_clip(path, height=32, width=48)) == list(range(frames))
    for folder in (tmp_path, tmp_path / "sub"):
        assert {path.name for path in folder.iterdir() if path.is_file()} == {name + suffix for name in NAMES}


def delays(path) -> list[int]:
    """Return the delays of a GIF in hundredths of a second, as Pillow reads them."""
    with Image.open(path) as image:
        return [image.seek(i) or round(image.info["duration"] / 10) for i in range(image.n_frames)]


@pytest.mark.parametrize("fps", [0.5, 7, 7.5, 8, 12, 15, 16, 23.976, 24, 25, 30, 40, 48, 50])
def test_a_gif_lasts_as_long_as_it_should(tmp_path, fps):
    for frames in (5, 17, 50):
        write_video(tmp_path / "v.gif", numbered_video(frames), fps)
        times = np.cumsum([0] + delays(tmp_path / "v.gif"))
        assert len(times) == frames + 1
        assert np.abs(times - 100 * np.arange(frames + 1) / fps).max() <= 0.5 + 1e-9  # every frame, and so the whole
        assert min(delays(tmp_path / "v.gif")) >= 2  # less is slow motion in browsers
        info = probe(tmp_path / "v.gif")
        assert info.frames == info.frames_at(fps) == frames


@pytest.mark.parametrize("check", [check_writable, lambda path, fps: write_video(path, numbered_video(2), fps)])
def test_what_cannot_be_written_is_said_in_one_line(tmp_path, check):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    for path, fps, reason in [
        ("v.webm", 8, "suffix must be one of .mp4, .gif, .png"),
        ("v", 8, "suffix must be one of"),
        ("v.gif", 60, ".gif has 0.002 to 50 frames a second, not 60; write .mp4"),
        ("v.gif", 0, ".gif has 0.002 to 50 frames a second, not 0"),
        ("v.mp4", 0, ".mp4 has 0.002 to 1000 frames a second, not 0"),
        ("v.mp4", -8, "not -8"),
        ("v.mp4", float("nan"), "not nan"),
        ("v.mp4", float("inf"), "not inf"),
        ("v.gif", 0.001, "a second, not 0.001"),
        ("folder.mp4", 8, "folder.mp4: "),
        ("file/v.mp4", 8, "Not a directory"),
        ("x" * 252 + ".mp4", 8, "File name too long"),
        ("nul\0.mp4", 8, "null byte|null character"),
    ]:
        with pytest.raises(UserError, match=reason) as caught:
            check(tmp_path / path, fps)
        assert "\n" not in str(caught.value) and str(caught.value).startswith("cannot write ")
    assert sorted(tmp_path.iterdir()) == before


def test_a_check_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b" / "v.mp4", 24)
    check_writable(tmp_path / "v.gif", 50)
    assert not list(tmp_path.iterdir())
    (tmp_path / "v.gif").write_bytes(b"kept")
    check_writable(tmp_path / "v.gif", 50)
    assert (tmp_path / "v.gif").read_bytes() == b"kept"


def test_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match="cannot write .*v.mp4: Permission denied"):
        check_writable(tmp_path / "v.mp4", 24)
