"""Manifests: what is found, how captions are found, what is refused and why."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from test_video import make_damaged, numbered_video

from lumos.config import DataConfig
from lumos.data.index import index
from lumos.data.manifest import fingerprint, read_manifest
from lumos.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from lumos.data.video_writer import write_video
from lumos.errors import UserError

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"
DATA = DataConfig()


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    """Three clips with the three kinds of caption, and an image."""
    clips = tmp_path / "clips"
    write_video(clips / "b" / "two.mp4", numbered_video(12), fps=12)
    write_video(clips / "a.gif", numbered_video(5), fps=10)
    write_video(clips / "c.mp4", numbered_video(9), fps=8)
    write_video(clips / "still.png", numbered_video(1), fps=1)
    (clips / "b" / "two.txt").write_text("a red  circle\nmoves \n")
    (clips / "a.json").write_text(json.dumps({"caption": "größer", "source": "x"}))
    (clips / "notes.txt").write_text("no clip has this name")
    return clips


def test_folder_with_captions_beside_the_clips(folder, tmp_path):
    summary = index(folder, tmp_path / "clips.jsonl", DATA)
    rows = read_manifest(summary.manifest)
    assert [row["id"] for row in rows] == ["a.gif", "b/two.mp4", "c.mp4", "still.png"]
    assert [row["caption"] for row in rows] == ["größer", "a red circle moves", "", ""]
    assert [row["frames"] for row in rows] == [5, 12, 9, 1]
    assert rows[1] | {"path": "", "bytes": 0} == {
        "path": "",
        "id": "b/two.mp4",
        "caption": "a red circle moves",
        "duration": 1.0,
        "fps": 12.0,
        "width": 48,
        "height": 32,
        "frames": 12,
        "bytes": 0,
    }
    assert (summary.accepted, summary.rejected, summary.without_caption) == (4, 0, 2)
    assert summary.seconds == pytest.approx(0.5 + 1.0 + 9 / 8)
    assert summary.rejected_list.read_text() == ""
    assert str(summary).startswith(f"{tmp_path}/clips.jsonl: 4 clips, 2.6 s, 2 without caption; fingerprint ")
    assert [Path(row["path"]) for row in rows] == [folder / row["id"] for row in rows]


def test_the_manifest_moves_with_its_clips(folder, tmp_path):
    index(folder, folder / "manifest.jsonl", DATA)
    assert read_lines(folder / "manifest.jsonl")[1]["path"] == "b/two.mp4"
    moved = folder.rename(tmp_path / "elsewhere")
    assert all(Path(row["path"]).is_file() for row in read_manifest(moved / "manifest.jsonl"))


def test_damaged_files_are_listed_with_the_reason(folder, tmp_path):
    reasons = make_damaged(folder)
    summary = index(folder, tmp_path / "m.jsonl", DATA)
    assert (summary.accepted, summary.rejected) == (4, len(reasons))
    rejected = {Path(row["path"]).name: row["reason"] for row in read_lines(tmp_path / "m.rejected.jsonl")}
    assert rejected.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in rejected[name]
        assert str(folder) not in rejected[name]  # the path has its own column


def test_same_files_same_manifest(folder, tmp_path):
    first = index(folder, tmp_path / "1.jsonl", DATA)
    second = index(folder, tmp_path / "2.jsonl", dataclasses.replace(DATA, num_threads=7))
    assert first.manifest.read_bytes() == second.manifest.read_bytes()
    assert first.fingerprint == second.fingerprint == fingerprint(read_lines(first.manifest))
    (folder / "c.txt").write_text("new caption")
    assert index(folder, tmp_path / "3.jsonl", DATA).fingerprint != first.fingerprint


def test_glob_and_single_file(folder, tmp_path):
    summary = index(f"{folder}/**/*.mp4", tmp_path / "m.jsonl", DATA)
    assert [row["id"] for row in read_manifest(summary.manifest)] == ["b/two.mp4", "c.mp4"]
    summary = index(folder / "c.mp4", tmp_path / "m.jsonl", DATA)
    assert [row["id"] for row in read_manifest(summary.manifest)] == ["c.mp4"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists(folder, tmp_path, suffix):
    rows = [
        {"path": "c.mp4", "caption": "third, with a comma", "split": "train"},
        {"path": "b/two.mp4", "caption": "", "split": "validation"},
        {"path": "absent.mp4", "caption": "x", "split": "train"},
        {"path": "c.mp4", "caption": "again", "split": "train"},
        {"path": "notes.txt", "caption": "x", "split": "train"},
    ]
    path = folder / f"list{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    summary = index(path, tmp_path / "m.jsonl", DATA)
    good = read_manifest(summary.manifest)
    assert [(row["id"], row["caption"], row["split"]) for row in good] == [
        ("c.mp4", "third, with a comma", "train"),
        ("b/two.mp4", "", "validation"),  # a caption column, even empty, wins over the file beside the clip
    ]
    assert [row["reason"] for row in read_lines(summary.rejected_list)] == [
        "no such file",
        "the id 'c.mp4' was given before",
        f"suffix '.txt' is none of {', '.join(VIDEO_SUFFIXES + IMAGE_SUFFIXES)}",
    ]


def test_limits(folder, tmp_path):
    tight = dataclasses.replace(DATA, limits=(32 * 48, 0.9, 20.0))
    write_video(folder / "large.png", np.zeros((1, 40, 48, 3), np.uint8), fps=1)
    summary = index(folder, tmp_path / "m.jsonl", tight)
    assert [row["id"] for row in read_manifest(summary.manifest)] == ["a.gif", "still.png"]
    assert [row["reason"] for row in read_lines(summary.rejected_list)] == [
        "1.0 s is more than 0.9 (data.limits)",
        "1.1 s is more than 0.9 (data.limits)",
        "48x40 is more than 1536 pixels",
    ]


def test_errors(folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no clips in .*nothing"):
        index(tmp_path / "nothing", tmp_path / "m.jsonl", DATA)
    with pytest.raises(UserError, match="absent.csv: no such file"):
        index(tmp_path / "absent.csv", tmp_path / "m.jsonl", DATA)
    (folder / "bad.csv").write_text("title,note\na,b\n")
    with pytest.raises(UserError, match="bad.csv:1: no column for the path among .title., .note."):
        index(folder / "bad.csv", tmp_path / "m.jsonl", DATA)
    (folder / "bad.jsonl").write_text('{"path": "c.mp4"}\n{"path": \n')
    with pytest.raises(UserError, match="bad.jsonl:2 is not JSON"):
        index(folder / "bad.jsonl", tmp_path / "m.jsonl", DATA)
    (folder / "gone.csv").write_text("path\nx.mp4\n")
    with pytest.raises(UserError, match="none of 1 files can be used, e.g. no such file; see .*m.rejected.jsonl"):
        index(folder / "gone.csv", tmp_path / "m.jsonl", DATA)
    (tmp_path / "other.jsonl").write_text('{"path": "c.mp4"}\n')
    with pytest.raises(UserError, match="other.jsonl:1 lacks caption, duration"):
        read_manifest(tmp_path / "other.jsonl")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real clips here")
def test_real_clips(tmp_path):
    summary = index(REAL / "captions.csv", tmp_path / "real.jsonl", DATA)
    assert (summary.accepted, summary.rejected, summary.without_caption) == (23, 0, 0)
    frames = {row["id"]: row["frames"] for row in read_manifest(summary.manifest)}
    assert (frames["drive/drive_0.mp4"], frames["other/bottles.mp4"], frames["other/city.mpg"]) == (60, 1189, 190)
