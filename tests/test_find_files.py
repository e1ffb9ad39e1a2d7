"""Finding clips: links, names of every kind, what is no data, and manifests that can be read back."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import rejected
from test_index import read_lines
from test_video import numbered_video

from lumos import cli
from lumos.config import DataConfig
from lumos.data import decoder
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.sources import parse_paths
from lumos.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from lumos.data.video_writer import write_video
from lumos.errors import UserError

DATA = DataConfig()


def make(path: Path, grey: int = 90) -> Path:
    write_video(path, np.full((1, 16, 16, 3), grey, np.uint8), 1)
    return path


def found(source, out) -> list[str]:
    """Index a source; return the ids, having read every file that the manifest names."""
    summary = index(source, out, DATA)
    rows = read_manifest(summary.manifest)
    for row in rows:
        assert decoder.read_clip(row["path"], num_frames=1, height=16, width=16).shape == (1, 16, 16, 3)
    assert len({row["id"] for row in rows}) == len(rows)
    return [row["id"] for row in rows]


# Links ---------------------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_and_cycles_end(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    make(root / "a.png")
    make(other / "deep" / "b.png")
    (root / "linked").symlink_to(other)  # absolute
    (root / "again").symlink_to("linked")  # another name of the same
    (root / "self").symlink_to(".")
    (root / "up").symlink_to("..")  # would lead to everything beside the folder
    (other / "deep" / "back").symlink_to(root)
    (other / "deep" / "all").symlink_to("/")
    (root / "round").symlink_to("round")
    make(tmp_path / "unasked.png")
    summary = index(root, tmp_path / "m.jsonl", DATA)
    assert [row["id"] for row in read_manifest(summary.manifest)] == ["a.png", "again/deep/b.png"]
    assert summary.passed_over == {"linked folders that are read elsewhere, or above": 5}
    assert "passed over: 5 linked folders" in str(summary)
    assert found(f"{root}/**/*.png", tmp_path / "m.jsonl") == ["a.png", "again/deep/b.png"]


def test_a_file_under_two_names_is_used_once_under_its_own(tmp_path):
    root = tmp_path / "root"
    make(root / "z.png")
    (root / "a.png").symlink_to("z.png")
    (root / "b").mkdir()
    (root / "b" / "c.png").symlink_to("../a.png")
    os.link(root / "z.png", root / "hard.png")  # a file of its own
    assert found(root, tmp_path / "m.jsonl") == ["hard.png", "z.png"]
    assert {row["path"]: row["reason"] for row in read_lines(tmp_path / "m.rejected.jsonl")} == {
        str(root / "a.png"): "the same file as z.png",
        str(root / "b" / "c.png"): "the same file as z.png",
    }
    (root / "list.csv").write_text("path,caption\nz.png,one\na.png,another\n")  # a list means what it says
    assert found(root / "list.csv", tmp_path / "m.jsonl") == ["z.png", "a.png"]


@pytest.mark.parametrize("place", ["snapshots/rev/m.jsonl", "m.jsonl", "../m.jsonl"])
def test_links_to_blobs_without_a_suffix_keep_their_name(tmp_path, place):
    """The cache of the Hugging Face hub: names are links, contents lie elsewhere under their hash."""
    cache = tmp_path / "cache"
    for folder in ("snapshots/rev", "blobs"):
        (cache / folder).mkdir(parents=True)
    make(tmp_path / "x.png").rename(cache / "blobs" / "abc123")
    (cache / "blobs" / "def456").write_text("a dog")
    (cache / "snapshots" / "rev" / "clip.png").symlink_to("../../blobs/abc123")
    (cache / "snapshots" / "rev" / "clip.txt").symlink_to("../../blobs/def456")
    assert found(cache / "snapshots" / "rev", cache / place) == ["clip.png"]
    (row,) = read_lines(cache / place)
    above = (cache / place).parent.resolve()
    assert row["path"] == (cache / "snapshots" / "rev" / "clip.png").relative_to(above).as_posix()
    assert row["caption"] == "a dog"
    assert found(cache / "snapshots" / "rev" / "clip.png", tmp_path / "other" / "m.jsonl") == ["clip.png"]
    assert read_lines(tmp_path / "other" / "m.jsonl")[0]["path"] == str(cache / "snapshots" / "rev" / "clip.png")


def test_manifests_and_lists_behind_links_find_their_clips(tmp_path):
    real = tmp_path / "real"
    make(real / "clips" / "a.png")
    (tmp_path / "link").symlink_to(real)
    for source in (real / "clips", tmp_path / "link" / "clips", tmp_path / "link" / ".." / "real" / "clips"):
        for folder in (real, tmp_path / "link", tmp_path / "link" / "clips" / ".."):
            assert found(source, folder / "m.jsonl") == ["a.png"]
            assert read_lines(folder / "m.jsonl")[0]["path"] == "clips/a.png"
    (tmp_path / "elsewhere.jsonl").symlink_to(real / "m.jsonl")
    assert Path(read_manifest(tmp_path / "elsewhere.jsonl")[0]["path"]).samefile(real / "clips" / "a.png")
    (real / "list.csv").write_text("path,caption\nclips/a.png,x\n")
    (tmp_path / "list.csv").symlink_to(real / "list.csv")
    assert found(tmp_path / "list.csv", tmp_path / "m.jsonl") == ["clips/a.png"]


def test_a_linked_folder_keeps_its_name_in_the_manifest(tmp_path):
    make(tmp_path / "disk1" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "part").symlink_to(tmp_path / "disk1")
    assert found(tmp_path / "set", tmp_path / "set" / "m.jsonl") == ["part/a.png"]
    assert read_lines(tmp_path / "set" / "m.jsonl")[0]["path"] == "part/a.png"


def test_broken_links_are_named(tmp_path):
    make(tmp_path / "clips" / "good.png")
    make(tmp_path / "clips" / "captioned.png")
    (tmp_path / "clips" / "gone.mp4").symlink_to("../blobs/123")
    (tmp_path / "clips" / "round.mp4").symlink_to("round.mp4")
    (tmp_path / "clips" / "captioned.txt").symlink_to("nowhere.txt")
    summary = index(tmp_path / "clips", tmp_path / "m.jsonl", DATA)
    assert summary.accepted == 1
    told = rejected(summary)
    assert told["gone.mp4"] == "a link to ../blobs/123, which is not there"
    assert "symbolic links" in told["round.mp4"]
    assert "captioned.txt is a link to a file that is not there" in told["captioned.png"]


# What is no data -----------------------------------------------------------------------------------------------------


def test_hidden_system_and_unfinished_files_are_passed_over_and_counted(tmp_path):
    clips = tmp_path / "clips"
    make(clips / "good.png")
    for name in (
        ".ipynb_checkpoints/a.png", ".Trash-1000/files/a.png", "@eaDir/a.png", ".thumbnails/a.png", "__MACOSX/a.png", "b/@eaDir/a.png",
        "lost+found/a.png", "$RECYCLE.BIN/a.png", "._good.png", ".good.1234.png", "b/._x.mp4", "x.mp4.download/a.png",
    ):  # fmt: skip
        path = clips / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((clips / "good.png").read_bytes())
    for name in (
        "x.mp4.part",
        "x.crdownload",
        "x.tmp",
        "x.mp4.incomplete",
        "x.MP4.PART",
        "x.mp4~",
        ".DS_Store",
        "n.txt",
        "x.npz",
    ):
        (clips / name).write_bytes(b"x")
    summary = index(clips, tmp_path / "m.jsonl", DATA)
    assert (summary.accepted, summary.rejected) == (1, 0)
    assert summary.passed_over == {
        ".ipynb_checkpoints/": 1, ".Trash-1000/": 1, "@eaDir/": 2, ".thumbnails/": 1, "__MACOSX/": 1, "lost+found/": 1,
        "$RECYCLE.BIN/": 1, "x.mp4.download/": 1, "._*": 2, ".*": 1, "*.part": 2, "*.crdownload": 1, "*.tmp": 1,
        "*.incomplete": 1, "*~": 1,
    }  # fmt: skip
    assert "; passed over: 2 ._*, 2 @eaDir/, 2 *.part, 1 " in str(summary) and ", 9 others; fingerprint" in str(summary)
    for pattern in ("**/*.png", "*.png", "[!x]*.png"):
        assert found(f"{clips}/{pattern}", tmp_path / "m.jsonl") == ["good.png"]
    with pytest.raises(UserError, match="no clips in .*passed over: 1 .RECYCLE.BIN/, 1 @eaDir/"):
        index(f"{clips}/*/*.png", tmp_path / "m.jsonl", DATA)
    # A folder that is named is meant.
    assert found(clips / ".ipynb_checkpoints", tmp_path / "m.jsonl") == ["a.png"]
    assert found(f"{clips}/.ipynb_checkpoints/*.png", tmp_path / "m.jsonl") == ["a.png"]
    assert found(clips / "._good.png", tmp_path / "m.jsonl") == ["._good.png"]
    with pytest.raises(UserError, match="no clips in .*; passed over: 1 ._[*], 1 @eaDir/"):
        index(clips / "b", tmp_path / "m.jsonl", DATA)


def test_media_of_other_formats_are_rejected_and_other_files_are_no_clips(tmp_path):
    make(tmp_path / "clips" / "good.png")
    for name in ("a.rm", "b.VOB", "c.tif", "d.heic", "e.avif", "f.bmp", "notes.txt", "x.json", "y.npz", "README"):
        (tmp_path / "clips" / name).write_bytes(b"x")
    summary = index(tmp_path / "clips", tmp_path / "m.jsonl", DATA)
    assert rejected(summary) == {
        name: f"suffix '{Path(name).suffix.lower()}' is not read; convert it, to .mp4 or .png"
        for name in ("a.rm", "b.VOB", "c.tif", "d.heic", "e.avif", "f.bmp")
    }


def test_the_output_is_no_input_of_the_next_run(tmp_path):
    make(tmp_path / "a.png")
    first = index(tmp_path, tmp_path / "m.jsonl", DATA)
    assert index(tmp_path, tmp_path / "m.jsonl", DATA) == first


def test_pipes_sockets_and_devices_do_not_hang(tmp_path, monkeypatch):
    clips = tmp_path / "clips"
    make(clips / "good.png")
    for name in ("pipe.mp4", "pipe.png", "good.txt"):
        os.mkfifo(clips / name)
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s.mp4")  # the path of a socket must be short
        os.rename(f"{short}/s.mp4", clips / "socket.mp4")
        (clips / "null.mp4").symlink_to("/dev/null")
        summary = index(clips, tmp_path / "m.jsonl", DATA)
    assert rejected(summary) == {
        "pipe.mp4": "a named pipe, not a file", "pipe.png": "a named pipe, not a file", "socket.mp4": "a socket, not a file",
        "null.mp4": "a device, not a file",
    }  # fmt: skip
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(UserError, match="list.csv: not a file"):
        index(tmp_path / "list.csv", tmp_path / "m.jsonl", DATA)


def test_files_that_vanish_meanwhile_are_rejected(tmp_path, monkeypatch):
    make(tmp_path / "clips" / "a.png")
    make(tmp_path / "clips" / "b.png")
    probe = decoder.probe
    monkeypatch.setattr(
        decoder, "probe", lambda path, pixels: (probe(path, pixels), path.name == "a.png" and path.unlink())[0]
    )
    assert index(tmp_path / "clips", tmp_path / "m.jsonl", DATA).accepted == 2
    make(tmp_path / "clips" / "a.png")
    monkeypatch.setattr(
        decoder, "probe", lambda path, pixels: (path.name == "a.png" and path.unlink(), probe(path, pixels))[1]
    )
    assert rejected(index(tmp_path / "clips", tmp_path / "m.jsonl", DATA)) == {"a.png": "no such file"}


def test_a_folder_that_cannot_be_read_is_rejected(tmp_path):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        make(folder / "clips" / "good.png")
        make(folder / "clips" / "closed" / "a.png")
        (folder / "out").mkdir(mode=0o777)
        (folder / "out").chmod(0o777)
        (folder / "clips" / "closed").chmod(0)
        user = os.geteuid()
        try:
            if not user:
                os.seteuid(65534)
            summary = index(folder / "clips", folder / "out" / "m.jsonl", DATA)
            assert rejected(summary) == {"closed": "the folder cannot be read (Permission denied)"}
        finally:
            os.seteuid(user)
            (folder / "clips" / "closed").chmod(0o755)


# Names ---------------------------------------------------------------------------------------------------------------

ODD_NAMES = (
    "[a].png", "a[1-3].png", "what?.png", "*.png", "**.png", "a=2.png", "a,b.png", "two\nlines.png", "-dash.png", "--out=x.png",
    "12:30:00.png", "concat:a|b.png", "file:x.png", "with blank .png", " lead.png", "größe 日本 🎈.png", "100%.png", "%03d.png", "~.png",
    "$HOME.png", "a;b&c.png", "'\".png", "back\\slash.png", "#1.png", "{a,b}.png", "tab\t.png", "a.b.c.png", "UPPER.PNG",
)  # fmt: skip


def test_odd_names_are_found_by_folder_pattern_list_and_alone(tmp_path):
    clips = tmp_path / "clips [1] a=b,c*"
    for name in ODD_NAMES:
        make(clips / "x.png").rename(clips / name)
        clips.joinpath(name).with_suffix(".txt").write_text(f"caption of {name}")
    assert set(found(clips, tmp_path / "m.jsonl")) == set(ODD_NAMES)
    captions = {row["id"]: row["caption"] for row in read_manifest(tmp_path / "m.jsonl")}
    assert captions["a=2.png"] == "caption of a=2.png"
    assert set(found(f"{clips}/*.[pP][nN][gG]", tmp_path / "m.jsonl")) <= set(ODD_NAMES)
    for name in ODD_NAMES:  # what exists is meant as it is, not as a pattern
        assert found(clips / name, tmp_path / "m.jsonl") == [name]
    (clips / "list[1].jsonl").write_text(
        "".join(json.dumps({"path": name, "caption": "x"}) + "\n" for name in ODD_NAMES)
    )
    assert found(clips / "list[1].jsonl", tmp_path / "m.jsonl") == list(ODD_NAMES)
    assert found(f"{clips}/a[[]1-3].png", tmp_path / "m.jsonl") == ["a[1-3].png"]


def test_every_odd_folder_is_input_and_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ODD_NAMES:
        folder = Path(name).with_suffix("")
        make(tmp_path / folder / "a.png")
        arguments = [f"--input={folder}", f"--out={folder}/out put/m[1],=.jsonl"]
        assert cli.main(["data", "index", *arguments]) == 0, (name, capsys.readouterr().err)
        (path,) = [row["path"] for row in read_manifest(tmp_path / folder / "out put/m[1],=.jsonl")]
        assert Path(path).samefile(tmp_path / folder / "a.png")
        assert parse_paths(f"{folder}/out put/m[1],=.jsonl") == [(f"{folder}/out put/m[1],=.jsonl", 1.0)]


def test_a_folder_called_like_a_list_is_a_folder(tmp_path):
    make(tmp_path / "set.csv" / "a.png")
    make(tmp_path / "clip.mp4" / "b.png")
    assert found(f"{tmp_path}/set.csv/", tmp_path / "m.jsonl") == ["a.png"]
    assert found(tmp_path, tmp_path / "m.jsonl") == ["clip.mp4/b.png", "set.csv/a.png"]


def test_patterns(tmp_path):
    for name in ("a/x.png", "a/b/y.png", "a/b/c/z.png", "q/x.png", "top.png"):
        make(tmp_path / "in" / name)
    for pattern, expected in {
        "**/*.png": ["a/b/c/z.png", "a/b/y.png", "a/x.png", "q/x.png", "top.png"],
        "**": ["a/b/c/z.png", "a/b/y.png", "a/x.png", "q/x.png", "top.png"],
        "*/*.png": ["a/x.png", "q/x.png"],
        "a/**/*.png": ["b/c/z.png", "b/y.png", "x.png"],
        "*/b/**/[yz].png": ["a/b/c/z.png", "a/b/y.png"],
        "**/b/**/*.png": ["a/b/c/z.png", "a/b/y.png"],
        "?.png": None,
    }.items():
        if expected is None:
            with pytest.raises(UserError, match="no clips in"):
                index(f"{tmp_path}/in/{pattern}", tmp_path / "m.jsonl", DATA)
        else:
            assert found(f"{tmp_path}/in/{pattern}", tmp_path / "m.jsonl") == expected, pattern


def test_names_that_are_not_utf8_come_back_as_the_same_bytes(tmp_path):
    clips = os.fsencode(tmp_path) + b"/clips"
    os.mkdir(clips)
    good = make(tmp_path / "good.png").read_bytes()
    video = tmp_path / "v.mp4"
    write_video(video, numbered_video(5), 8)
    os.mkdir(clips + b"/f\xfclder")
    names = {
        b"caf\xe9.png": good,
        b"\xff\xfe.mp4": video.read_bytes(),
        b"f\xfclder/a.png": good,
        b"bad\xe9.mp4": b"not a video",
    }
    for name, data in names.items():
        Path(os.fsdecode(clips + b"/" + name)).write_bytes(data)
    Path(os.fsdecode(clips + b"/caf\xe9.txt")).write_text("a café")
    summary = index(tmp_path / "clips", tmp_path / "m.jsonl", DATA)
    summary.manifest.read_bytes().decode("utf-8")
    rows = read_manifest(summary.manifest)
    assert {os.fsencode(row["path"]) for row in rows} == {clips + b"/" + name for name in names if name[:3] != b"bad"}
    assert {row["id"]: row["caption"] for row in rows}["caf\\udce9.png"] == "a café"
    for row in rows:
        row["id"].encode()
        assert len(decoder.read_clip(row["path"], num_frames=1, height=16, width=16)) == 1
    (bad,) = read_lines(summary.rejected_list)
    assert os.fsencode(bad["path"]) == clips + b"/bad\xe9.mp4" and bad["reason"].isprintable()


def test_nothing_that_is_printed_ends_in_a_traceback(tmp_path):
    """A terminal that knows ASCII alone, and names that no terminal knows."""
    clips = tmp_path / "größe"
    make(clips / "a.png").rename(os.fsdecode(os.fsencode(clips) + b"/a\xe9\n.png"))
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    for out, code in ((f"{clips}/m\n.jsonl", 0), (os.fsdecode(b"m\xe9.jsonl"), 2), (f"{clips}/a/b.jsonl", 0)):
        command = [sys.executable, "-m", "lumos", "data", "index", f"--input={clips}", f"--out={out}"]
        result = subprocess.run(command, capture_output=True, env=environment, timeout=120)
        assert result.returncode == code and b"Traceback" not in result.stderr, result.stderr
        assert result.stderr.count(b"\n") == (code != 0)


def test_errors_of_sources(tmp_path):
    for source, message in {
        "": "--input is empty",
        tmp_path / "nothing.mp4": "nothing.mp4: no such file or folder",
        tmp_path / "*.mp4": "no clips in",
        tmp_path / "*.csv": "no clips in|no such file",
        tmp_path / "notes.txt": "suffix '.txt' is neither that of a clip .* nor a list .*.csv, .tsv, .jsonl, .parquet",
    }.items():
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(UserError, match=message):
            index(source, tmp_path / "m.jsonl", DATA)


def test_every_suffix_that_is_read_is_known_as_a_medium():
    from lumos.data.find_files import _MEDIA

    assert set(VIDEO_SUFFIXES + IMAGE_SUFFIXES) <= _MEDIA
