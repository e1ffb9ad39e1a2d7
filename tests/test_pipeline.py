"""Batches as a pure function of (seed, step): processes, epochs, resumption, buckets, images, mixtures, faults."""

import dataclasses
import json
import threading
from collections import Counter

import numpy as np
import pytest
from test_video import frame_numbers, numbered_video, write_with_keyframes

from lumos.config import Config, DataConfig, ShapesConfig, TokenizerConfig
from lumos.data import moving_shapes
from lumos.data.buckets import assign, plan_buckets
from lumos.data.index import index
from lumos.data.pipeline import make_pipeline
from lumos.data.records import RecordWriter
from lumos.data.sources import parse_paths
from lumos.data.text import TextTokenizer
from lumos.data.video_writer import write_video
from lumos.errors import UserError


def make_config(source, path, *, seed=0, **data) -> Config:
    """A config whose tokenizer compresses 4x in time and 8x in space."""
    bucket = (2, 4, 6) if source == "tokens" else (5, 32, 48)
    data = {"buckets": (bucket,), "batch_size": 4, "source": source, "path": str(path), **data}
    return Config(
        seed=seed,
        data=DataConfig(**data),
        tokenizer=TokenizerConfig(temporal_compression=4, spatial_compression=8),
    )


def run(config, steps, *, split="train", process=(0, 1), start_step=0, **kwargs) -> list[dict]:
    with make_pipeline(
        config, split, process_index=process[0], process_count=process[1], start_step=start_step, **kwargs
    ) as pipeline:
        return [next(pipeline) for _ in range(steps)]


def write_tokens(folder, numbers, shape=(3, 4, 6), split="train"):
    """Tokens of clip n are all n; its caption says n too."""
    folder.mkdir(exist_ok=True)
    halves = np.array_split(np.asarray(numbers), 2)
    for number, half in enumerate(halves):
        with RecordWriter(folder / f"{split}-{number:05d}-of-00002.array_record") as writer:
            for n in half:
                writer.write({"tokens": np.full(shape, n, np.uint32), "caption": f"clip {n}", "id": str(n)})
    (folder / "manifest.json").write_text(json.dumps({"codebook_size": 1000}))
    return folder


def clip_ids(batch) -> list[int]:
    return batch["tokens"][:, 0, 0, 0].tolist()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens") / "t", range(10))


def assert_same(first: list[dict], second: list[dict]):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


# The stream ----------------------------------------------------------------------------------------------------------


def test_batch_contents(tokens):
    config = make_config("tokens", tokens, buckets=((3, 4, 6),))
    (batch,) = run(config, 1)
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
        "tokens": ((4, 3, 4, 6), "int32"),
        "text": ((4, 24), "int32"),
        "text_length": ((4,), "int32"),
    }
    np.testing.assert_array_equal(batch["text_length"], (batch["text"] != 0).sum(axis=1))
    assert (batch["text"][np.arange(4), 24 - batch["text_length"]] == 2).all()


@pytest.mark.parametrize("images", [0.0, 0.5])
def test_batches_do_not_depend_on_the_number_of_processes(tokens, images):
    """Ten clips in batches of four: steps 2, 4 and 7 lie across the border of an epoch."""
    config = make_config("tokens", tokens, buckets=((3, 4, 6),), image_fraction=images)
    whole = run(config, 9)
    for count in (2, 4):
        parts = [run(config, 9, process=(p, count)) for p in range(count)]
        joined = [{name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts)]
        assert_same(joined, whole)


def test_every_epoch_is_a_new_permutation(tokens):
    config = make_config("tokens", tokens, buckets=((3, 4, 6),))
    stream = sum((clip_ids(batch) for batch in run(config, 15)), [])
    epochs = [tuple(stream[start : start + 10]) for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 6
    other = sum((clip_ids(batch) for batch in run(dataclasses.replace(config, seed=1), 5)), [])
    assert other != stream[:20]


@pytest.mark.parametrize("threads", [0, 3])
def test_resuming_equals_running_on(tokens, threads):
    config = make_config("tokens", tokens, buckets=((3, 4, 6),), image_fraction=0.3, num_threads=threads)
    whole = run(config, 12)
    assert_same(run(config, 5, start_step=7), whole[7:])
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        assert pipeline.step == 0
        next(pipeline), next(pipeline)
        assert pipeline.step == 2
        pipeline.seek(9)
        assert_same([next(pipeline), next(pipeline)], whole[9:11])
        assert pipeline.step == 11
        pipeline.seek(1)
        assert_same([next(pipeline)], whole[1:2])
        assert pipeline.wait_ms > 0


def test_closing_ends_the_threads(tokens):
    config = make_config("tokens", tokens, buckets=((3, 4, 6),), num_threads=3)
    before = set(threading.enumerate())
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        next(pipeline)
        started = set(threading.enumerate()) - before
        assert started
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_evaluation_is_one_ordered_pass(tokens):
    config = make_config("tokens", tokens, buckets=((3, 4, 6),))
    with make_pipeline(config, "train", process_index=0, process_count=1, train=False) as pipeline:
        assert pipeline.num_batches == 2
        assert [clip_ids(batch) for batch in pipeline] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    parts = [run(config, 2, process=(p, 2), train=False) for p in range(2)]
    assert [clip_ids(batch) for batch in parts[1]] == [[2, 3], [6, 7]]


@pytest.mark.parametrize("divisor, seen", [(1, [0, 1, 2]), (2, [0, 1]), (4, [0, 1, 2, 0])])
def test_a_small_evaluation_set_is_one_small_batch(tmp_path, divisor, seen):
    """Clips come twice only where there are fewer of them than devices."""
    path = write_tokens(tmp_path / "t", range(3))
    config = make_config("tokens", path, buckets=((3, 4, 6),), batch_size=8)
    with make_pipeline(config, "train", process_index=0, process_count=1, train=False, divisor=divisor) as pipeline:
        assert [clip_ids(batch) for batch in pipeline] == [seen]


# Buckets, images, mixtures -------------------------------------------------------------------------------------------


def test_batch_sizes_follow_the_token_budget():
    shapes = ((17, 64, 64), (17, 64, 128), (33, 64, 64), (5, 64, 64), (1, 64, 64))
    config = make_config("clips", "x", buckets=shapes, batch_size=32)
    plan = plan_buckets(config.data, config.tokenizer)
    assert [bucket.latent_THW for bucket in plan] == [(5, 8, 8), (5, 8, 16), (9, 8, 8), (2, 8, 8), (1, 8, 8)]
    assert [bucket.batch_size for bucket in plan] == [32, 16, 16, 80, 160]
    for bucket in plan:
        assert 0.8 * 32 * 320 <= bucket.batch_size * bucket.tokens <= 32 * 320
    images = plan_buckets(config.data, config.tokenizer, images=True)
    assert [(bucket.frames, bucket.height, bucket.width, bucket.batch_size) for bucket in images] == [
        (1, 64, 64, 160),
        (1, 64, 128, 80),
    ]
    with pytest.raises(UserError, match=r"bucket \(17, 64, 128\) gets 16 clips a step, not a multiple of the 32"):
        plan_buckets(config.data, config.tokenizer, divisor=32)


def test_assignment():
    shapes = ((17, 64, 64), (33, 64, 64), (17, 64, 128), (17, 128, 64), (17, 128, 128))
    config = make_config("clips", "x", buckets=shapes)
    plan = plan_buckets(config.data, config.tokenizer)
    assert assign(100, 64, 64, plan) == 1  # the longest that fits
    assert assign(20, 64, 64, plan) == 0
    assert assign(20, 500, 500, plan) == 4  # the largest that does not enlarge
    assert assign(100, 70, 130, plan) == 2
    assert assign(100, 130, 70, plan) == 3
    # 1.4:1 is nearer to 1:1 in log space than to 2:1, 1.42:1 is not.
    assert assign(20, 100, 140, plan) == 0
    assert assign(20, 100, 142, plan) == 2
    assert assign(16, 64, 64, plan) is None


def test_several_buckets_each_clip_once_per_epoch(tmp_path):
    write_tokens(tmp_path / "wide", range(12), (3, 4, 8))
    write_tokens(tmp_path / "tall", range(12, 20), (3, 8, 4))
    config = make_config(
        "tokens",
        f"{tmp_path}/wide=12,{tmp_path}/tall=8",
        buckets=((3, 4, 8), (3, 8, 4)),
    )
    batches = run(config, 5)
    assert Counter(batch["tokens"].shape for batch in batches) == {(4, 3, 4, 8): 3, (4, 3, 8, 4): 2}
    assert sorted(sum((clip_ids(batch) for batch in batches), [])) == list(range(20))
    parts = [run(config, 5, process=(p, 2)) for p in range(2)]
    assert [clip_ids(a) + clip_ids(b) for a, b in zip(*parts)] == [clip_ids(batch) for batch in batches]
    order = [batch["tokens"].shape[2:] for batch in run(config, 5, train=False)]
    assert order == [(4, 8), (8, 4), (4, 8), (8, 4), (4, 8)]  # the first batches are of all buckets
    with make_pipeline(config, "train", process_index=0, process_count=1, train=False) as pipeline:
        assert pipeline.num_batches == 3 + 2


def test_a_shard_with_two_sizes(tmp_path):
    with RecordWriter(tmp_path / "train-00000-of-00001.array_record") as writer:
        for n, shape in enumerate([(3, 4, 8)] * 5 + [(3, 8, 4)] * 3):
            writer.write({"tokens": np.full(shape, n, np.uint32), "caption": "", "id": str(n)})
    (tmp_path / "manifest.json").write_text("{}")
    config = make_config("tokens", tmp_path, buckets=((3, 4, 8), (3, 8, 4)), batch_size=1)
    batches = run(config, 8, train=False)
    assert sorted((clip_ids(batch), batch["tokens"].shape) for batch in batches) == [
        ([n], (1, 3, 4, 8) if n < 5 else (1, 3, 8, 4)) for n in range(8)
    ]


def test_image_fraction(tokens):
    config = make_config("tokens", tokens, buckets=((3, 4, 6),), image_fraction=0.25)
    batches = run(config, 20)
    shapes = Counter(batch["tokens"].shape for batch in batches)
    assert shapes == {(4, 3, 4, 6): 15, (12, 1, 4, 6): 5}
    images = sum((clip_ids(batch) for batch in batches if batch["tokens"].shape[1] == 1), [])
    assert all(sorted(images[start : start + 10]) == list(range(10)) for start in range(0, 60, 10))
    only_images = run(dataclasses.replace(config, data=dataclasses.replace(config.data, image_fraction=1.0)), 3)
    assert {batch["tokens"].shape for batch in only_images} == {(12, 1, 4, 6)}


def test_mixture_weights_hold_whatever_the_sizes(tmp_path):
    write_tokens(tmp_path / "a", range(20))
    write_tokens(tmp_path / "b", range(100, 160))
    config = make_config("tokens", f"{tmp_path}/a=3,{tmp_path}/b", buckets=((3, 4, 6),))
    drawn = Counter("a" if clip < 100 else "b" for batch in run(config, 15) for clip in clip_ids(batch))
    assert drawn == {"a": 45, "b": 15}


def test_paths_with_weights():
    assert parse_paths("a.jsonl") == [("a.jsonl", 1.0)]
    assert parse_paths("x/a=b=2.5, c ,d=1") == [("x/a=b", 2.5), ("c", 1.0), ("d", 1.0)]
    for bad in ("a=0", "a=-1", "a=1.2.3", "a=."):
        with pytest.raises(UserError, match="must be a positive number"):
            parse_paths(bad)


# Sources -------------------------------------------------------------------------------------------------------------


def test_moving_shapes(tmp_path):
    shapes = ShapesConfig(num_train=8, num_validation=2, num_test=0)
    moving_shapes.prepare(tmp_path, shapes, (9, 32, 32), 0)
    config = make_config("moving_shapes", tmp_path, buckets=((5, 32, 32),))
    text = TextTokenizer()
    originals = [moving_shapes.make_clip("easy", (9, 32, 32), 0, "train", n) for n in range(8)]
    starts = []
    for batch in run(config, 4):
        for video, ids_P in zip(batch["video"], batch["text"]):
            (original,) = (clip for clip in originals if clip["caption"] == text.decode(ids_P))
            (start,) = (s for s in range(5) if np.array_equal(original["video"][s : s + 5], video))
            starts.append(start)
    assert len(set(starts)) > 1
    for batch, first in zip(run(config, 2, train=False), (0, 4)):
        np.testing.assert_array_equal(batch["video"], [clip["video"][2:7] for clip in originals[first : first + 4]])
    with pytest.raises(UserError, match="its clips are 32x32, config.data.buckets asks for 32x64"):
        run(make_config("moving_shapes", tmp_path, buckets=((5, 32, 64),)), 1)


@pytest.fixture
def clips(tmp_path):
    """Twelve clips of 24 frames; frame f of clip i has the grey level of numbered_video, caption "clip i"."""
    for number in range(12):
        write_video(tmp_path / f"{number:02d}.mp4", numbered_video(24), fps=12)
        (tmp_path / f"{number:02d}.txt").write_text(f"clip {number}")
    return index(tmp_path, tmp_path / "clips.jsonl", DataConfig()).manifest


def test_clips_are_cut_at_random_times_in_training_and_in_the_middle_otherwise(clips):
    config = make_config("clips", clips, fps=6.0)
    batches = run(config, 6)
    assert all(batch["video"].shape == (4, 5, 32, 48, 3) and batch["video"].dtype == np.uint8 for batch in batches)
    starts = set()
    for batch in batches:
        for clip in batch["video"]:
            numbers = frame_numbers(clip)
            assert numbers == list(range(numbers[0], numbers[0] + 10, 2))  # 6 of 12 frames a second
            starts.add(numbers[0])
    assert min(starts) >= 0 and max(starts) <= 14 and len(starts) > 4
    assert_same(batches, run(dataclasses.replace(config, data=dataclasses.replace(config.data, num_threads=0)), 6))
    (batch,) = run(config, 1, train=False)
    assert frame_numbers(batch["video"][0]) == [8, 10, 12, 14, 16]


@pytest.mark.parametrize("fps", [0.0, 5.0, 16.0])
def test_clips_kept_in_memory_equal_clips_decoded_anew(clips, fps):
    """With a budget for no clip, for three of them, and for all."""
    budgets = (0.0, 3 * 24 * 32 * 48 * 3 / 1e9, 1.0)
    runs = [run(make_config("clips", clips, fps=fps, cache_gb=gb), 4) for gb in budgets]
    for batches in zip(*runs, strict=True):
        for batch in batches[1:]:
            np.testing.assert_array_equal(batch["video"], batches[0]["video"])


def test_held_out_clips(clips):
    config = make_config("clips", clips, batch_size=1)

    def ids(split):
        with make_pipeline(config, split, process_index=0, process_count=1, train=False) as pipeline:
            return [tuple(batch["text"][0]) for batch in pipeline]

    train, validation = ids("train"), ids("validation")
    assert len(train) == 11 and len(validation) == 1 and not set(train) & set(validation)
    assert ids("test") == validation

    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    clips.write_text(json.dumps(rows[0]) + "\n")  # too few to hold any out: both take all
    assert len(ids("train")) == len(ids("validation")) == 1

    for number, row in enumerate(rows):
        row["split"] = "validation" if number % 4 == 0 else "train"
    clips.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(ids("train")) == 9 and len(ids("validation")) == 3
    assert not set(ids("train")) & set(ids("validation"))
    with pytest.raises(UserError, match="no clip of split 'test'; its splits are: train, validation"):
        ids("test")


def test_five_percent_is_held_out_by_the_id(tmp_path):
    row = {"path": "x", "caption": "", "duration": 1.0, "fps": 8.0, "width": 48, "height": 32, "frames": 8}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row | {"id": str(n)}) + "\n" for n in range(2000)))
    sizes = {}
    for split in ("train", "validation"):
        with make_pipeline(
            make_config("clips", tmp_path / "m.jsonl"), split, process_index=0, process_count=1, train=False
        ) as pipeline:
            sizes[split] = pipeline.num_clips
    assert sum(sizes.values()) == 2000
    assert 80 < sizes["validation"] < 120


def test_a_clip_that_fails_gives_way_to_the_next(clips):
    rows = [json.loads(line) | {"split": "train"} for line in clips.read_text().splitlines()]
    clips.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config("clips", clips, batch_size=3)
    (clips.parent / "04.mp4").write_bytes(b"gone bad since it was indexed")
    (clips.parent / "11.mp4").unlink()
    with make_pipeline(config, "train", process_index=0, process_count=1, train=False) as pipeline:
        texts = [tuple(row) for batch in pipeline for row in batch["text"]]
        assert len(texts) == 12
        assert texts[4] == texts[5] and texts[11] == texts[0]
        assert len(set(texts)) == 10
        assert pipeline.num_replaced == 2


def test_a_systematic_fault_reaches_the_consumer_and_can_be_retried(clips):
    config = make_config("clips", clips, cache_gb=0.0)
    good = run(config, 3)
    files = sorted(clips.parent.glob("*.mp4"))
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        assert_same([next(pipeline)], good[:1])
        for file in files:
            file.rename(file.with_suffix(".away"))
        pipeline.seek(1)
        with pytest.raises(UserError, match="8 clips in a row cannot be read; the last: .*mp4: no such file"):
            next(pipeline)
        for file in files:
            file.with_suffix(".away").rename(file)
        assert pipeline.step == 1
        assert_same([next(pipeline), next(pipeline)], good[1:])


def test_images_and_clips_of_several_lengths(tmp_path):
    write_video(tmp_path / "still.png", numbered_video(1), fps=1)
    write_video(tmp_path / "short.mp4", numbered_video(6), fps=12)
    write_with_keyframes(tmp_path / "long.mp4", numbered_video(30), 12)
    manifest = index(tmp_path, tmp_path / "m.jsonl", DataConfig()).manifest
    config = make_config("clips", manifest, buckets=((5, 32, 48), (17, 32, 48)), image_fraction=0.5, batch_size=10)
    shapes = Counter(batch["video"].shape for batch in run(config, 14))
    # One clip of each length: batches of 4 long clips come 5/2 times as often as batches of 10 short ones.
    assert shapes == {(20, 1, 32, 48, 3): 7, (10, 5, 32, 48, 3): 2, (4, 17, 32, 48, 3): 5}
    with pytest.raises(UserError, match="the shortest bucket has 33 frames, the longest clip 30"):
        run(make_config("clips", manifest, buckets=((33, 32, 48),)), 1)


def test_clips_that_are_too_short_are_counted_and_never_the_only_ones(clips, caplog):
    """In training and in evaluation, of one source and of one in a mixture."""
    rows = [json.loads(line) | {"split": "train"} for line in clips.read_text().splitlines()]
    rows[0] |= {"frames": 4, "duration": 4 / 12}
    clips.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for train in (True, False):
        with make_pipeline(make_config("clips", clips), "train", process_index=0, process_count=1, train=train) as p:
            assert p.num_clips == 12
    assert caplog.text.count("1 of 12 clips are too short for every bucket (the shortest has 5 frames)") == 1
    short = clips.with_name("short.jsonl")
    short.write_text(json.dumps(rows[0]) + "\n")
    for path in (short, f"{clips},{short}"):
        for train in (True, False):
            with pytest.raises(
                UserError, match=r"short.jsonl \(train\): no clip fills a bucket: .* 5 frames, the longest clip 4"
            ):
                run(make_config("clips", path), 1, train=train)


def test_source_errors(tokens, tmp_path):
    for nothing in ("", " , "):
        with pytest.raises(UserError, match="config.data.path is empty"):
            run(make_config("tokens", nothing), 1)
    with pytest.raises(UserError, match="no readable manifest.json; finish `lumos tokenize` first"):
        run(make_config("tokens", tmp_path), 1)
    with pytest.raises(UserError, match="no shards of split 'test'; there are: train"):
        run(make_config("tokens", tokens), 1, split="test")
    with pytest.raises(UserError, match=r"8 clips in a row .* tokens \(3, 4, 6\) do not fill the bucket's \(3, 8, 8\)"):
        run(make_config("tokens", tokens, buckets=((3, 8, 8),)), 1)
    other = write_tokens(tmp_path / "other", range(3))
    (other / "manifest.json").write_text(json.dumps({"codebook_size": 1001}))
    with pytest.raises(UserError, match="tokens of a codebook of 1001, but the config's has 1000 entries"):
        run(make_config("tokens", other), 1)
    (other / "manifest.json").write_text(json.dumps({"codebook_size": 999}))
    assert run(make_config("tokens", other), 1)  # a vocabulary may have room for more


def test_evaluation_spreads_its_sources_over_the_batches(tmp_path):
    write_tokens(tmp_path / "a", range(8))
    write_tokens(tmp_path / "b", range(8, 12))
    config = make_config("tokens", f"{tmp_path}/a,{tmp_path}/b", buckets=((3, 4, 6),))
    batches = [clip_ids(batch) for batch in run(config, 3, train=False)]
    assert sorted(sum(batches, [])) == list(range(12))
    assert all(sum(i >= 8 for i in batch) in (1, 2) for batch in batches)
