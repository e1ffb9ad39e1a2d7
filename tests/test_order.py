"""Going on in the data with other settings: every stream at its own example, and what changes is said."""

import dataclasses
import json
from collections import Counter

import grain
import numpy as np
import pytest
import tokens
from test_pipeline import assert_same, clip_ids, make_config, run, write_tokens
from tokens import one_device  # noqa: F401

from lumos.checkpoint import Checkpointer
from lumos.data import order
from lumos.data.pipeline import make_pipeline
from lumos.errors import UserError
from lumos.runtime.health import HealthMonitor
from lumos.training.loop import train
from lumos.training.replay import replay


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("forty") / "t", range(40))


def changed(config, *, seed=None, **data):
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    return config if seed is None else dataclasses.replace(config, seed=seed)


def open_at(config, number=0, saved=None, **kwargs):
    kwargs = {"process_index": 0, "process_count": 1} | kwargs
    return make_pipeline(config, "train", start_step=number, saved=saved, **kwargs)


def go(config, steps, number=0, saved=None, **kwargs):
    """Return the batches of some steps, and what a checkpoint after them says, as it comes back from JSON."""
    with open_at(config, number, saved, **kwargs) as pipeline:
        batches = [next(pipeline) for _ in range(steps)]
        return batches, json.loads(json.dumps({"data_step": pipeline.step, "data_plan": pipeline.plan}))


def ids(batches):
    return sum(map(clip_ids, batches), [])


def test_drawn_counts_what_grain_mixes():
    rng = np.random.default_rng(0)
    for _ in range(40):
        weights = (rng.random(rng.integers(1, 6)) + 0.01).tolist()
        parts = [grain.MapDataset.range(10**6).map(lambda _, i=i: i) for i in range(len(weights))]
        mixed = grain.MapDataset.mix(parts, weights) if len(parts) > 1 else parts[0]
        counts, number = [0] * len(weights), int(rng.integers(0, 200))
        for k in range(number):
            counts[mixed[k]] += 1
        assert order.drawn(number, weights) == counts


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (4, 7), (8, 3), (3, 8, 5, 4)])
def test_another_batch_size_misses_and_repeats_no_clip(forty, sizes, caplog):
    """Whatever the sizes, the clips come in the order of one long run, of which every clip is seen once an epoch."""
    config = make_config("tokens", forty, buckets=((3, 4, 6),), batch_size=1)
    whole = ids(run(config, 120))
    seen, number, saved = [], 0, None
    for size in sizes:
        batches, saved = go(changed(config, batch_size=size), 5, number, saved)
        assert all(len(batch["tokens"]) == size for batch in batches)
        seen, number = seen + ids(batches), number + 5
        assert saved["data_step"] == number
    batches, _ = go(changed(config, batch_size=1), 120 - len(seen), number, saved)
    seen += ids(batches)
    assert seen == whole and sorted(seen[:40]) == list(range(40))
    lines = [record.message for record in caplog.records if "the batches from here on" in record.message]
    assert len(lines) == len(sizes)
    assert f"batch size of 9x32x48 {sizes[0]}, now {sizes[1]}" in lines[0] and "none is missed" in lines[0]
    assert "learning rate and config.train.num_steps count steps" in lines[0]


def test_unchanged_settings_go_on_bit_for_bit(forty, caplog):
    config = make_config("tokens", forty, buckets=((3, 4, 6),), batch_size=4, image_fraction=0.3)
    whole, _ = go(config, 12)
    _, saved = go(config, 5)
    assert_same(go(config, 7, 5, saved)[0], whole[5:])
    old = {"config": json.loads(json.dumps(config.to_dict()))}  # of a checkpoint from before there were plans
    assert_same(go(config, 7, 5, old)[0], whole[5:])
    assert saved["data_plan"]["first"] == 0 and "the batches from here on" not in caplog.text
    # What no batch depends on: threads, accumulation, the number of processes.
    other = changed(config, num_threads=0, prefetch=1)
    other = dataclasses.replace(other, train=dataclasses.replace(other.train, accumulation=2))
    assert_same(go(other, 7, 5, saved)[0], whole[5:])
    parts = [go(config, 7, 5, saved, process_index=p, process_count=2)[0] for p in range(2)]
    assert [clip_ids(a) + clip_ids(b) for a, b in zip(*parts)] == [clip_ids(batch) for batch in whole[5:]]
    assert "the batches from here on" not in caplog.text


def test_a_changed_run_resumes_bit_for_bit_too(forty):
    """After the change its own checkpoints count on, for any number of processes."""
    config = make_config("tokens", forty, buckets=((3, 4, 6),), batch_size=4, image_fraction=0.3)
    larger = changed(config, batch_size=6)
    _, saved = go(config, 5)
    whole, _ = go(larger, 9, 5, saved)
    _, later = go(larger, 4, 5, saved)
    assert later["data_plan"]["first"] == 5 and later["data_step"] == 9
    assert_same(go(larger, 5, 9, later)[0], whole[4:])
    parts = [go(larger, 5, 9, later, process_index=p, process_count=2)[0] for p in range(2)]
    assert [clip_ids(a) + clip_ids(b) for a, b in zip(*parts)] == [clip_ids(batch) for batch in whole[4:]]


def test_old_checkpoints_know_their_batch_size_from_their_config(forty, caplog):
    config = make_config("tokens", forty, buckets=((3, 4, 6),), batch_size=4)
    whole = ids(run(changed(config, batch_size=1), 80))
    saved = {"config": json.loads(json.dumps(config.to_dict())), "data_step": 7}
    batches, _ = go(changed(config, batch_size=6), 8, 7, saved)
    assert ids(batches) == whole[28:76] and "batch size of 9x32x48 4, now 6" in caplog.text


def test_every_bucket_source_and_image_stream_goes_on_at_its_own_example(tmp_path):
    """Two sources in two buckets with images: the batch size, the weights and the share of images change."""
    for name, numbers, shape in (
        ("a_wide", range(30), (3, 4, 8)), ("a_tall", range(100, 120), (3, 8, 4)),
        ("b_wide", range(200, 225), (3, 4, 8)), ("b_tall", range(300, 315), (3, 8, 4)),
    ):  # fmt: skip
        write_tokens(tmp_path / name, numbers, shape)
    paths = [tmp_path / name for name in ("a_wide", "a_tall", "b_wide", "b_tall")]
    path = lambda *weights: ",".join(f"{p}={w}" for p, w in zip(paths, weights))
    shapes = ((3, 4, 8), (3, 8, 4))
    config = make_config("tokens", path(3, 2, 2, 1), buckets=shapes, batch_size=4, image_fraction=0.3)
    after = changed(config, path=path(1, 1, 2, 3), batch_size=6, image_fraction=0.5)
    first, saved = go(config, 37)
    second, later = go(after, 41, 37, saved)
    third, _ = go(config, 60, 78, later)

    def streams(batches):
        found = {}
        for batch in batches:
            images = batch["tokens"].shape[1] == 1
            for clip in clip_ids(batch):
                found.setdefault((images, clip // 100), []).append(clip)
        return found

    together = streams(first + second + third)
    for key, count in {(i, s): n for i in (False, True) for s, n in enumerate((30, 20, 25, 15))}.items():
        clips = together[key]
        assert len(clips) > count  # more than an epoch, over all three parts
        for start in range(0, len(clips) // count * count, count):
            assert len(set(clips[start : start + count])) == count, key
    whole = streams(run(config, 400))
    for key, clips in together.items():
        assert clips == whole[key][: len(clips)]


def test_what_cannot_go_on_is_said(forty, tmp_path, caplog):
    config = make_config("tokens", forty, buckets=((3, 4, 6),), batch_size=4)
    _, saved = go(config, 5)

    def said(other):
        caplog.clear()
        go(other, 1, 5, saved)
        (line,) = [record.message for record in caplog.records if "the batches from here on" in record.message]
        assert "\n" not in line
        return line

    assert "seed 0, now 1" in (line := said(changed(config, seed=1))) and "may come twice or not at all" in line
    more = write_tokens(tmp_path / "more", range(43))
    assert "40 clips in all buckets, now 43" in (line := said(changed(config, path=str(more)))) and "twice" in line
    line = said(changed(config, buckets=((2, 4, 6),)))
    assert "buckets 9x32x48, now 5x32x48" in line and "1 of 1 streams are new" in line
    line = said(changed(config, image_fraction=0.5))
    assert "another share of images" in line and "none is missed" in line and "1 of 2 streams are new" in line


def test_sources_that_change_places_are_said_to_be_shuffled_anew(tmp_path, caplog):
    """The order of a source's clips depends on its place in config.data.path."""
    a, b = (write_tokens(tmp_path / name, range(8)) for name in "ab")
    config = make_config("tokens", f"{a},{b}", buckets=((3, 4, 6),))
    _, saved = go(config, 2)
    for path in (f"{b},{a}", f"{b}"):
        caplog.clear()
        go(changed(config, path=path), 1, 2, saved)
        assert "the sources of config.data.path stand in another order" in caplog.text
        assert "may come twice or not at all" in caplog.text and "none is missed" not in caplog.text
    caplog.clear()
    go(changed(config, path=f"{a}"), 1, 2, saved)
    assert "none is missed" in caplog.text and "another order" not in caplog.text


def test_a_config_from_before_that_fits_no_data_is_said(forty, caplog):
    config = make_config("tokens", forty, buckets=((3, 4, 6),), batch_size=4)
    old = json.loads(json.dumps(changed(config, buckets=((9, 4, 6),)).to_dict()))
    batches, _ = go(config, 1, 5, {"config": old})
    assert_same(batches, run(config, 1, start_step=5))
    assert "where the run was in its data cannot be told" in caplog.text


def test_tokens_of_another_tokenizer_in_their_place_are_refused(tmp_path):
    def folder(name, fingerprint):
        path = write_tokens(tmp_path / name, range(8))
        manifest = {"codebook_size": 1000, "tokenizer": {"fingerprint": fingerprint}}
        (path / "manifest.json").write_text(json.dumps(manifest))
        return str(path)

    config = make_config("tokens", folder("a", "one"), buckets=((3, 4, 6),))
    _, saved = go(config, 2)
    go(changed(config, path=folder("b", None)), 1, 2, saved)  # unknown
    with pytest.raises(UserError, match="made by tokenizer two, those that the run has learnt from by one"):
        go(changed(config, path=folder("c", "two")), 1, 2, saved)


def test_every_clip_once_an_epoch_holds_across_changes(forty):
    """A hundred random changes of batch size and share of images, at random steps."""
    rng = np.random.default_rng(1)
    config = make_config("tokens", forty, buckets=((3, 4, 6),), num_threads=0)
    drawn, number, saved = Counter(), 0, None
    for _ in range(100):
        now = changed(config, batch_size=int(rng.integers(1, 9)), image_fraction=float(rng.choice([0, 0.25, 0.5])))
        steps = int(rng.integers(1, 4))
        batches, saved = go(now, steps, number, saved)
        number += steps
        drawn.update(ids(batch for batch in batches if batch["tokens"].shape[1] == 3))
    assert len(drawn) == 40 and max(drawn.values()) - min(drawn.values()) <= 1 < min(drawn.values())


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_goes_on_in_its_data_and_names_data_that_were_exchanged(tmp_path, caplog, monkeypatch):
    """A step after the change can be replayed, although the checkpoint before it knows the old batches alone."""
    monkeypatch.setattr(HealthMonitor, "observe", lambda self, step, *_: "to be replayed" if step == 1 else None)
    folder = tokens.write_tokens(tmp_path / "tokens")
    config = lambda **changes: tokens.run_config(folder, train__checkpoint_every=1, **changes)
    train(config(train__num_steps=1), tmp_path / "run")
    assert "has changed" not in caplog.text
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"records": 96}))
    train(config(train__num_steps=2, data__batch_size=6), tmp_path / "run")
    assert "config.data.path, or what lies there, has changed since step 1" in caplog.text
    assert "batch size of 9x32x32 8, now 6" in caplog.text
    metas = [Checkpointer(tmp_path / "run", read_only=True).read_meta(step) for step in (1, 2)]
    where = lambda plan: (plan["first"], plan["kinds"][0]["buckets"][0]["streams"][0]["start"])
    assert [(meta["data_step"], *where(meta["data_plan"])) for meta in metas] == [(1, 0, 0), (2, 1, 8)]
    assert replay(tmp_path / "run" / "dumps" / "00000002")["bitwise"]
