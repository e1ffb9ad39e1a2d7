"""Manifests of lines and of columns: the same rows, the same batches; written in parts by several processes."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import make_config
from test_video import numbered_video

from lumos.config import DataConfig, TokenizerConfig
from lumos.data import index as index_module
from lumos.data import order, sources
from lumos.data.buckets import assign, assign_all, count_sizes, plan_buckets
from lumos.data.candidate import Candidate
from lumos.data.index import index
from lumos.data.manifest import Rows, fingerprint, hash_of, open_manifest, read_manifest
from lumos.data.manifest_writer import ManifestWriter
from lumos.data.pipeline import make_pipeline
from lumos.data.timeline import frames_at, frames_within
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.info.kinds import describe

DATA = DataConfig()


def rows_of(number: int, **more) -> list[dict]:
    """Return made-up rows of several sizes, lengths and rates."""
    rng = np.random.default_rng(number)
    rows = []
    for i in range(number):
        frames, fps = int(rng.integers(1, 90)), float(rng.choice([8, 23.976, 24, 30]))
        width, height = (int(value) for value in rng.choice([[64, 48], [48, 64], [96, 96], [1280, 720]]))
        facts = {"duration": round(frames / fps, 4), "fps": fps, "width": width, "height": height, "frames": frames}
        rows.append({"path": f"c/{i}.mp4", "id": f"c/{i}.mp4", "caption": f"a clip {i} ü", **facts, "bytes": i} | more)
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    with ManifestWriter(path, set().union(*rows)) as writer:
        for row in rows:
            writer.write(row)
    assert writer.fingerprint == fingerprint(rows)
    return path


@pytest.mark.parametrize("splits", [("train", "validation", None), (None,)])
def test_columns_hold_what_lines_hold(tmp_path, splits):
    rows = rows_of(50)
    for i, row in enumerate(rows):
        row |= {} if splits[i % len(splits)] is None else {"split": splits[i % len(splits)]}
    rows[7]["path"] = "c/odd\udcff name.mp4"  # bytes that are not UTF-8
    lines, columns = (open_manifest(write(tmp_path / f"m{suffix}", rows)) for suffix in (".jsonl", ".arrow"))
    for manifest in (lines, columns):
        assert [manifest.stored_row(i) for i in range(50)] == list(manifest.stored_rows()) == rows
        assert fingerprint(Rows(manifest)) == fingerprint(rows)
        assert manifest.row(7)["path"] == f"{tmp_path}/c/odd\udcff name.mp4"
        assert manifest.column("hash").tolist() == [hash_of(row["id"]) for row in rows]
        for split in ("train", "validation"):
            chosen = sources.rows_of_split(manifest, split)
            wanted = [row for row in rows if row.get("split") == split] if "train" in splits else _held_out(rows, split)
            assert [row["id"] for row in chosen] == [row["id"] for row in wanted]
            assert [chosen[i]["id"] for i in range(len(chosen))] == [row["id"] for row in chosen]
            assert chosen.column("frames").tolist() == [row["frames"] for row in wanted]
    a, b = (describe(path) for path in (lines.path, columns.path))
    for name in a.keys() - {"path", "size_of_manifest_bytes"}:
        assert a[name] == b[name], name


def _held_out(rows, split):
    """The rule as it was written down first: the first four bytes of the hash of an id, as a share."""
    import hashlib

    draw = lambda row: int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:4]) < 0.05 * 2**32
    chosen = [row for row in rows if draw(row) == (split != "train")]
    return chosen or rows


def test_batches_are_those_of_the_lines(tmp_path, monkeypatch):
    """Whatever the format, and whatever the step at which a run begins."""
    rows = rows_of(300)
    monkeypatch.setattr(sources, "read_clip", _fake_clip)
    batches = {}
    for suffix in (".jsonl", ".arrow"):
        config = make_config(
            "clips", write(tmp_path / f"m{suffix}", rows), buckets=((5, 32, 48), (9, 48, 32)), cache_gb=0.0, fps=12.0
        )
        for step in (0, 10**6):
            options = {"process_index": 0, "process_count": 1, "start_step": step}
            with make_pipeline(config, "train", **options) as pipeline:
                batches[suffix, step] = [next(pipeline) for _ in range(3)]
    for step in (0, 10**6):
        for one, other in zip(batches[".jsonl", step], batches[".arrow", step]):
            assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(batches[".arrow", 0][0]["video"], batches[".arrow", 10**6][0]["video"])


def _fake_clip(path, *, start=0.0, num_frames, fps, own_fps, height, width):
    seed = hash_of(f"{Path(path).name} {start} {own_fps}")
    return np.random.default_rng(seed).integers(0, 255, (num_frames, height, width, 3), dtype=np.uint8)


def test_sizes_and_buckets_of_many_are_those_of_one():
    """Arrays against the rule for one clip, also beyond one block."""
    rng = np.random.default_rng(0)
    frames_N, fps_N = rng.integers(1, 200, 4000), rng.choice([8.0, 23.976, 24.0, 25.0], 4000)
    duration_N = np.where(rng.random(4000) < 0.5, np.round(frames_N / fps_N, 4), frames_N / fps_N)
    for fps in (0.0, 8.0, 24.0, 29.97):
        one = [
            frames
            if fps == 0 or frames == 1 or (abs(fps - own) < 1e-3 and abs(d * fps - frames) < 1)
            else frames_within(d, fps)
            for frames, d, own in zip(frames_N.tolist(), duration_N.tolist(), fps_N.tolist())
        ]
        assert frames_at(frames_N, duration_N, fps_N, fps).tolist() == one
    config = make_config("clips", "x", buckets=((5, 32, 48), (17, 32, 48), (9, 48, 32), (1, 64, 64)))
    buckets = plan_buckets(config.data, TokenizerConfig())[:3]
    sizes_N3 = rng.integers(1, 100, (4000, 3)).astype(np.int32)
    sizes_N3[::7, 1:] = (3000, 4000)
    expected = [assign(*size, buckets) for size in sizes_N3.tolist()]
    assert assign_all("x", sizes_N3, buckets).tolist() == [-1 if choice is None else choice for choice in expected]
    values, counts = np.unique(sizes_N3, axis=0, return_counts=True)
    assert count_sizes(sizes_N3) == dict(zip(map(tuple, values.tolist()), counts.tolist()))
    assert order.group([], buckets) == []


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[: len(data) // 2], "not a manifest in columns"),
        (lambda data: b"", "no such file|mmap|empty"),
        (lambda data: b"path,caption\na,b\n" * 9, "not a manifest in columns"),
    ],
)
def test_damaged_columns_are_refused_in_one_line(tmp_path, damage, message):
    path = write(tmp_path / "m.arrow", rows_of(9))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        read_manifest(path)


def test_columns_that_make_no_sense_are_refused(tmp_path):
    bad = rows_of(3)
    bad[1]["frames"] = 0
    rows = read_manifest(write(tmp_path / "m.arrow", bad))
    with pytest.raises(UserError, match="frames from 0 to"):
        rows.column("frames")
    outside = rows_of(2, path="../x.mp4")
    with pytest.raises(UserError, match="leads out of the folder"):
        read_manifest(write(tmp_path / "o.arrow", outside))[0]
    with pytest.raises(UserError, match="absent.arrow: no such file"):
        read_manifest(tmp_path / "absent.arrow")


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path):
    """Nine clips of which one is damaged, and a list that names one of them twice."""
    for i in range(9):
        write_video(tmp_path / f"{i}.mp4", numbered_video(3 + i % 2, 32, 32), 12)
    (tmp_path / "4.mp4").write_bytes(b"nothing")
    names = [f"{i}.mp4" for i in (0, 1, 2, 3, 1, 4, 5, 6, 7, 8)]
    (tmp_path / "list.csv").write_text("path,caption\n" + "".join(f"{name},clip {name}\n" for name in names))
    return tmp_path


def read_all(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), out.with_suffix(".rejected.jsonl").read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".arrow"])
def test_parts_of_any_size_make_the_same_manifest(clips, suffix):
    whole = index(clips / "list.csv", clips / f"whole{suffix}", DATA)
    assert (whole.accepted, whole.rejected) == (8, 2)
    for size in (1, 3, 10):
        parts = index(clips / "list.csv", clips / f"parts{suffix}", DATA, files_per_part=size)
        assert read_all(parts.manifest) == read_all(whole.manifest) and parts.fingerprint == whole.fingerprint
    assert not list(clips.glob(".*"))


def _index(folder: Path, slow: float = 0.0) -> None:
    check = index_module.check
    index_module.check = lambda candidate, data: time.sleep(slow) or check(candidate, data)
    index(folder / "list.csv", folder / "m.jsonl", DataConfig(num_threads=1), files_per_part=2)


def test_processes_share_the_parts_and_may_die(clips, monkeypatch):
    """Two at a time, of which one is killed in the middle; what it had done is not done again."""
    expected = read_all(index(clips / "list.csv", clips / "whole.jsonl", DATA).manifest)
    fork = multiprocessing.get_context("fork")
    first = fork.Process(target=_index, args=(clips, 0.1))
    first.start()
    folder = clips / ".m.jsonl.parts"
    while len(list(folder.glob("*.jsonl"))) < 2:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    done = len(list(folder.glob("*.jsonl")))
    looked_at: list[Candidate] = []
    check = index_module.check
    monkeypatch.setattr(
        index_module, "check", lambda candidate, data: looked_at.append(candidate) or check(candidate, data)
    )
    second = fork.Process(target=_index, args=(clips, 0.02))
    second.start()
    summary = index(clips / "list.csv", clips / "m.jsonl", DATA, files_per_part=2)
    second.join()
    assert second.exitcode == 0 and read_all(clips / "m.jsonl") == expected
    assert (summary.accepted, summary.rejected) == (8, 2) and len(looked_at) <= 10 - 2 * done


def test_another_source_begins_anew(clips):
    folder = clips / ".m.jsonl.parts"
    folder.mkdir()
    (folder / "plan").write_text("of something else")
    (folder / "000000.jsonl").write_text(json.dumps({"file": "x", "reason": "old"}) + "\n")
    assert index(clips / "list.csv", clips / "m.jsonl", DATA).accepted == 8
