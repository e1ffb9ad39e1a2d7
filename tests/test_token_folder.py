"""Token folders: windows that cover every clip, counts that add up, and refusals of data that have changed."""

import dataclasses
import json
import os
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from test_pipeline import make_config
from test_video import frame_numbers, numbered_video

from lumos.config import DataConfig, ShapesConfig, TokenizerConfig
from lumos.data import moving_shapes, sources
from lumos.data.index import index
from lumos.data.records import RecordSource, RecordWriter
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.geometry import latent_shape
from lumos.tokenizers.tokenize import read_manifest, tokenize


class FakeTokenizer:
    """Every token of a clip is the number of its first frame."""

    fingerprint, codebook_size = "fake", 4096

    def __init__(self, first_frame=lambda video_FYX3: frame_numbers(video_FYX3[:1])[0]):
        self.config = TokenizerConfig(temporal_compression=4, spatial_compression=8)
        self.first_frame = first_frame
        self.num_calls = 0

    def token_shape(self, *shape):
        return latent_shape(self.config, *shape)

    def encode(self, video_BFYX3):
        self.num_calls += 1
        shape = self.token_shape(*video_BFYX3.shape[1:4])
        return np.stack([np.full(shape, self.first_frame(video), np.int32) for video in video_BFYX3])


def write_manifest(path, clips, **more):
    """Write a manifest of files that need not exist: {id: frames}."""
    row = {"caption": "a clip", "fps": 12.0, "width": 48, "height": 32, "split": "train"} | more
    rows = [{"path": n, "id": n, "frames": f, "duration": f / row["fps"]} | row for n, f in clips.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(folder, split="train"):
    return list(RecordSource(sorted(folder.glob(f"{split}-*.array_record"))))


# Windows --------------------------------------------------------------------------------------------------------------


def _frames_as_pixels(path, *, start=0.0, num_frames=None, fps=0.0, height, width, own_fps=0.0):
    """Stand in for the decoder: pixels of frame i have the two digits of i, base 256."""
    numbers = np.arange(1000)[round(start * 12) :][:num_frames]
    return np.stack([numbers // 256, numbers % 256, 0 * numbers], axis=1).astype(np.uint8)[:, None, None]


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
@pytest.mark.parametrize("bucket", [1, 5, 9, 17, 33])
def test_windows_cover_every_frame_of_clips_of_any_length(tmp_path, monkeypatch, bucket, cache_gb):
    """As few as can: n = ceil(frames / bucket); the first at frame 0, the last at the end, overlaps as even as whole frames are."""
    lengths = [*range(bucket, 4 * bucket + 40), 301, 511, 999]
    write_manifest(tmp_path / "m.jsonl", {str(length): length for length in lengths})
    monkeypatch.setattr(sources, "read_clip", _frames_as_pixels)
    config = make_config("clips", tmp_path / "m.jsonl", buckets=((bucket, 32, 48),), cache_gb=cache_gb)
    tokenizer = FakeTokenizer(lambda video: int(video[0, 0, 0, 0]) * 256 + int(video[0, 0, 0, 1]))
    tokenizer.token_shape = lambda *shape: (1, 1, 1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_threads=bucket % 3))
    tokenize(config, tokenizer, tmp_path / "out", splits=("train",))
    starts = {}
    for record in records(tmp_path / "out"):
        starts.setdefault(int(record["id"].split("/")[-1].split("@")[0]), []).append(int(record["tokens"].flat[0]))
    assert len({record["id"] for record in records(tmp_path / "out")}) == sum(map(len, starts.values()))
    for number, length in enumerate(lengths):
        found = starts[number]
        assert found[0] == 0 and found[-1] == length - bucket and len(found) == -(-length // bucket)
        assert {f for start in found for f in range(start, start + bucket)} == set(range(length))
        steps = np.diff(found)
        assert len(steps) == 0 or (steps.max() - steps.min() <= 1 and steps.max() <= bucket)


def test_windows_of_real_files(tmp_path):
    """Lengths of which a part used to be lost; where the windows must begin was worked out by hand."""
    expected = {17: [0], 18: [0, 1], 30: [0, 13], 34: [0, 17], 50: [0, 16, 33], 52: [0, 12, 23, 35]}
    for length in expected:
        write_video(tmp_path / f"{length}.mp4", numbered_video(length, 32, 32), 12)
    index(tmp_path, tmp_path / "m.jsonl", DataConfig())
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row | {"split": "train"}) + "\n" for row in rows))
    config = make_config("clips", tmp_path / "m.jsonl", buckets=((17, 32, 32),))
    manifest = tokenize(config, FakeTokenizer(), tmp_path / "out", splits=("train",))
    found = {}
    for record in records(tmp_path / "out"):
        found.setdefault(int(rows[int(record["id"].split("/")[-1].split("@")[0])]["id"][:-4]), []).append(
            int(record["tokens"].flat[0])
        )
    assert found == expected
    assert manifest["records"] == 14 and manifest["splits"]["train"]["windows"] == 14


def test_tokens_beyond_their_bucket_are_named(tmp_path, caplog):
    """Only the end of tokens can be cut, so the rest of a clip is lost unless it is tokenized again."""
    write_manifest(tmp_path / "m.jsonl", {"a": 17, "b": 17, "c": 9})
    tokens = tmp_path / "out"
    shapes = {"a": (5, 4, 6), "b": (5, 4, 6), "c": (3, 4, 6)}
    tokens.mkdir()
    with RecordWriter(tokens / "train-00000-of-00001.array_record") as writer:
        for name, shape in shapes.items():
            grid = np.broadcast_to(np.arange(shape[0], dtype=np.uint32)[:, None, None], shape)
            writer.write({"tokens": grid, "caption": "", "id": name})
    (tokens / "manifest.json").write_text("{}")
    config = make_config("tokens", tokens, buckets=((3, 4, 6),))
    (source, _), *_ = sources.open_sources(config, "train")
    assert [size[0] for size in source.sizes] == [5, 5, 3]
    assert "of 2 clips of 5 latent frames only the first 3 are used" in caplog.text
    (bucket,) = sources.plan_buckets(config.data, config.tokenizer)
    for where in (0.0, 0.5, 1.0):
        assert source.load(0, bucket, where)[0]["tokens"][:, 0, 0].tolist() == [0, 1, 2]


# Counts ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path):
    """Six files of 9 frames, one of 4, one of 20; the manifest says "train" for all but number 5."""
    for i, frames in enumerate([9, 9, 9, 9, 9, 9, 4, 20]):
        write_video(tmp_path / f"{i}.mp4", numbered_video(frames, 32, 32), 12)
    return relist(tmp_path)


def relist(folder, **captions):
    """Index a folder again and give every clip its split and a caption; return the manifest."""
    manifest = index(folder, folder / "m.jsonl", DataConfig()).manifest
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row |= {"split": "validation" if row["id"] == "5.mp4" else "train", "caption": f"clip {row['id']}"}
        row["caption"] = captions.get(f"clip_{row['id'][0]}", row["caption"])
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def edit(manifest, change):
    rows = [change(json.loads(line)) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows if row))


def small(manifest, **data):
    return make_config("clips", manifest, **({"buckets": ((9, 32, 32),), "batch_size": 2} | data))


def test_counts_add_up(clips, tmp_path, caplog):
    (tmp_path / "2.mp4").unlink()
    (tmp_path / "3.mp4").write_bytes(b"gone bad" * 9)  # since it was indexed
    with caplog.at_level("INFO"):
        manifest = tokenize(small(clips), FakeTokenizer(), tmp_path / "out", clips_per_shard=3)
    assert manifest == read_manifest(tmp_path / "out")
    # 0, 1, 4 whole, 7 in three windows; 2 is gone, 3 is another file, 6 is too short.
    assert manifest["splits"] == {
        "train": {
            "clips": 7, "encoded": 4, "skipped": {"too_short": 1, "unreadable": 2}, "windows": 6, "windows_left_out": 2,
        },
        "validation": {
            "clips": 1, "encoded": 1, "skipped": {"too_short": 0, "unreadable": 0}, "windows": 1, "windows_left_out": 0,
        },
    }  # fmt: skip
    assert len(records(tmp_path / "out")) == 6 and manifest["records"] == 7
    assert "split train: 4 of 7 clips" in caplog.text and "1 clips too short, 2 unreadable" in caplog.text
    assert "3.mp4: 72 bytes" in caplog.text
    reasons = "".join(path.read_text() for path in (tmp_path / "out").glob("*.left_out.jsonl"))
    assert "2.mp4" in reasons and "3.mp4" in reasons
    # The same again finds nothing to do, and counts the same.
    tokenizer = FakeTokenizer()
    assert tokenize(small(clips), tokenizer, tmp_path / "out", clips_per_shard=3) == manifest
    assert tokenizer.num_calls == 0


def test_a_clip_with_a_window_that_can_be_read_is_not_unreadable(clips, tmp_path, monkeypatch):
    load = sources.ClipsSource.load

    def broken(self, index, bucket, where):
        if where == 1.0:
            raise UserError("cut short")
        return load(self, index, bucket, where)

    monkeypatch.setattr(sources.ClipsSource, "load", broken)
    found = tokenize(small(clips), FakeTokenizer(), tmp_path / "out", splits=("train",))["splits"]["train"]
    assert found == {
        "clips": 7, "encoded": 6, "skipped": {"too_short": 1, "unreadable": 0}, "windows": 7, "windows_left_out": 1,
    }  # fmt: skip


@pytest.mark.parametrize("split, frames", [("train", 33), ("validation", 13)])
def test_a_split_without_a_clip_that_is_long_enough_is_an_error(clips, tmp_path, split, frames):
    with pytest.raises(UserError) as caught:
        tokenize(small(clips, buckets=((frames, 32, 32), (frames + 4, 32, 32))), FakeTokenizer(), tmp_path / "out")
    message, longest = str(caught.value), {"train": 20, "validation": 9}[split]
    assert f"({split})" in message and "\n" not in message and "choose shorter config.data.buckets" in message
    assert f"the shortest bucket has {frames} frames, the longest clip {longest}" in message
    assert f"--splits={'validation' if split == 'train' else 'train'} leaves" in message
    assert not (tmp_path / "out").exists()


def test_a_split_of_which_nothing_can_be_read_is_an_error_and_is_tried_again(clips, tmp_path):
    (tmp_path / "5.mp4").rename(tmp_path / "away")
    with pytest.raises(UserError, match="none of the clips of split 'validation' can be read; the last: .*5.mp4"):
        tokenize(small(clips), FakeTokenizer(), tmp_path / "out")
    with pytest.raises(UserError, match="unfinished"):
        read_manifest(tmp_path / "out")
    (tmp_path / "away").rename(tmp_path / "5.mp4")
    manifest = tokenize(small(clips), FakeTokenizer(), tmp_path / "out")
    assert manifest["splits"]["validation"]["encoded"] == 1 == len(records(tmp_path / "out", "validation"))


def test_a_systematic_fault_leaves_no_empty_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "read_clip", lambda *_, **__: (_ for _ in ()).throw(UserError("not mounted")))
    write_manifest(tmp_path / "m.jsonl", {str(i): 9 for i in range(8)})
    with pytest.raises(
        UserError, match="none of the 8 clips of train-00000-of-00001.array_record can be read; the last: not mo"
    ):
        tokenize(small(tmp_path / "m.jsonl"), FakeTokenizer(), tmp_path / "out", splits=("train",))
    assert not list((tmp_path / "out").glob("*.array_record*"))


def test_tokens_are_not_tokenized_again(tmp_path):
    with pytest.raises(UserError, match="these are tokenized already"):
        tokenize(make_config("tokens", tmp_path), FakeTokenizer(), tmp_path / "out")


# Changed data ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(clips, tmp_path):
    """A finished token folder of the clips."""
    tokenize(small(clips), FakeTokenizer(), tmp_path / "out", clips_per_shard=2)
    return tmp_path / "out"


def again(clips, folder, **data):
    return tokenize(small(clips, **data), FakeTokenizer(), folder, clips_per_shard=2)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda row: row | {"caption": "new"} if row["id"] in ("1.mp4", "4.mp4") else row,
            r"split 'train': captions changed of 2 of 7 clips \(first '1.mp4': 'clip 1.mp4', now 'new'\)",
        ),
        (lambda row: row | {"caption": "new"} if row["id"] == "5.mp4" else row, "'validation': captions changed of 1 of 1 c"),
        (lambda row: None if row["id"] == "2.mp4" else row, r"split 'train': 1 clip \(first '2.mp4'\) no longer there"),
        (lambda row: row | {"id": "x"} if row["id"] == "3.mp4" else row, r"\(first '3.mp4'\) no.*, 1 clip \(first 'x'\) new"),
        (
            lambda row: row | {"split": "validation"} if row["id"] == "4.mp4" else row,
            r"\(first '4.mp4'\) no longer there; split 'validation': 1 clip \(first '4.mp4'\) new",
        ),
        (lambda row: row | {"bytes": 1} if row["id"] == "6.mp4" else row, r"bytes changed of 1 clip \(first '6.mp4'\)"),
        (lambda row: row | {"frames": 19} if row["id"] == "7.mp4" else row, r"frames changed of 1 clip \(first '7.mp4'\)"),
    ],
)  # fmt: skip
def test_changed_clips_and_captions_are_refused_and_named(clips, folder, half, change, message):
    if half:  # as a kill leaves it
        (folder / "manifest.json").unlink()
        sorted(folder.glob("train-*.array_record"))[1].unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    edit(clips, change)
    with pytest.raises(UserError, match=message) as caught:
        again(clips, folder)
    text = str(caught.value)
    assert "\n" not in text and f"{folder} holds other tokens" in text and "choose another --out or delete it" in text
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_clips_in_another_order_are_refused(clips, folder):
    lines = clips.read_text().splitlines(keepends=True)
    clips.write_text("".join(reversed(lines)))
    with pytest.raises(UserError, match="another order of clips"):
        again(clips, folder)


def test_other_settings_are_named(clips, folder):
    with pytest.raises(UserError, match=r"different buckets: .*\[5, 32, 32\].*different grid"):
        again(clips, folder, buckets=((5, 32, 32),))
    with pytest.raises(UserError, match=r"different data.fps: 0.0, now 12.0"):
        again(clips, folder, fps=12.0)
    with pytest.raises(UserError, match="different splits: train, validation, now train"):
        tokenize(small(clips), FakeTokenizer(), folder, clips_per_shard=2, splits=("train",))
    with pytest.raises(UserError, match="different shards"):
        tokenize(small(clips), FakeTokenizer(), folder, clips_per_shard=3)
    other = FakeTokenizer()
    other.fingerprint = "another"
    with pytest.raises(UserError, match="different tokenizer: fake, now another"):
        tokenize(small(clips), other, folder, clips_per_shard=2)


def test_without_the_list_of_clips_the_fingerprint_still_tells(clips, folder):
    (folder / "plan.clips.jsonl").unlink()
    edit(clips, lambda row: row | {"caption": "new"})
    with pytest.raises(UserError, match="split 'train': other clips"):
        again(clips, folder)


def test_data_may_move(clips, folder, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in [*tmp_path.glob("*.mp4"), clips]:
        shutil.copy2(path, moved)
        path.unlink()
    sorted(folder.glob("train-*.array_record"))[1].unlink()
    manifest = again(moved / "m.jsonl", folder)
    assert manifest["splits"]["train"]["windows"] == 8 == len(records(folder))


def test_weights_of_sources_do_not_matter_but_their_order_does(clips, tmp_path):
    write_video(tmp_path / "more" / "x.mp4", numbered_video(9, 32, 32), 12)
    other = index(tmp_path / "more", tmp_path / "more" / "m.jsonl", DataConfig()).manifest
    run = lambda path: tokenize(small(path), FakeTokenizer(), tmp_path / "both", splits=("train",))
    run(f"{clips}=3,{other}")
    run(f"{clips},{other}=2")
    with pytest.raises(UserError, match="another order of clips"):
        run(f"{other},{clips}")


def test_a_file_that_was_replaced_is_refused(clips, folder, tmp_path, caplog):
    os.utime(tmp_path / "1.mp4", (time.time() + 100,) * 2)
    again(clips, folder)
    assert "1 of 7 clips are newer than their tokens (first" in caplog.text and "1.mp4" in caplog.text
    write_video(tmp_path / "4.mp4", numbered_video(12, 32, 32), 12)
    with pytest.raises(
        UserError, match=r"1 of the 7 clips that have tokens here are other files now \(first .*4.mp4: \d+ bytes, "
    ):
        again(clips, folder)
    with pytest.raises(UserError, match=r"bytes changed of 1 clip \(first '4.mp4'\)"):  # indexed again
        again(relist(tmp_path), folder)


def test_a_folder_from_before_clips_were_recorded_is_refused(clips, folder):
    plan = json.loads((folder / "plan.json").read_text())
    plan["data"] = {
        "source": "clips",
        "fps": 0.0,
        "clips": {"train": 8, "validation": 1},
        "identity": "0123456789abcdef",
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match="did not record the clips and captions.*trained on as it is") as caught:
        again(clips, folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_plan_is_an_error(clips, folder):
    (folder / "plan.json").write_text("{")
    with pytest.raises(UserError, match="plan.json is damaged, so nobody can tell"):
        again(clips, folder)


def test_moving_shapes_of_other_settings_are_refused(tmp_path):
    def run(name, level, num=6):
        shapes = ShapesConfig(level=level, num_train=num, num_validation=2, num_test=0)
        moving_shapes.prepare(tmp_path / name, shapes, (5, 32, 32), 0)
        config = make_config("moving_shapes", tmp_path / name, buckets=((5, 32, 32),))
        return tokenize(config, FakeTokenizer(lambda video: 0), tmp_path / "out")

    manifest = run("a", "easy")
    assert manifest["splits"]["train"]["encoded"] == 6 and manifest["fps"] == 8.0
    assert run("b", "easy")["data"] == manifest["data"]
    with pytest.raises(
        UserError, match="prepared as easy_5x32x32_6-2-0_seed0 1.0.0 .*, now medium_5x32x32_6-2-0_seed0"
    ):
        run("c", "medium")


def test_several_processes_pin_the_same_plan(clips, tmp_path):
    out = tmp_path / "out"
    for process in (1, 0):
        tokenize(small(clips), FakeTokenizer(), out, clips_per_shard=2, process_index=process, process_count=2)
    alone = tokenize(small(clips), FakeTokenizer(), tmp_path / "alone", clips_per_shard=2)
    assert read_manifest(out) == alone
    assert Counter(r["id"] for r in records(out)) == Counter(r["id"] for r in records(tmp_path / "alone"))
