"""Records in a bucket: read by their byte ranges, ahead of the steps that need them, bit for bit those of local shards."""

import time

import buckets
import numpy as np
import pytest
from buckets import bucket, storage  # noqa: F401
from test_buckets import through_proxy  # noqa: F401
from test_pipeline import assert_same, make_config, run, write_tokens

from lumos import files
from lumos.data import record_places
from lumos.data.pipeline import make_pipeline
from lumos.data.records import RecordSource, RecordWriter
from lumos.data.remote_records import Ring
from lumos.errors import UserError

buckets.needed()


def test_places_are_those_of_the_records(bucket, tmp_path):  # noqa: F811
    """Of records from a few bytes to several blocks of the file; every one alone in a copy that holds no other."""
    rng = np.random.default_rng(0)
    records = [
        {"tokens": rng.integers(0, 1 << 31, int(size)).astype(np.uint32), "caption": f"clip {i}", "id": str(i)}
        for i, size in enumerate([1, 5, 16370, 16384, 70000, 3, *rng.integers(1, 30000, 30)])
    ]
    for name, some in (("many", records), ("one", records[:1]), ("none", [])):
        with RecordWriter(tmp_path / f"{name}.array_record") as writer:
            for record in some:
                writer.write(record)
        places = record_places.of_file(tmp_path / f"{name}.array_record")
        assert len(places) == len(some) and (np.diff(places.begin_N1.astype(int)) > 0).all()
    files.put_tree(tmp_path, files.path(bucket))
    for i in reversed(range(len(records))):
        source = RecordSource([f"{bucket}/many.array_record"])
        assert len(source) == len(records)
        found = source[i]
        assert np.array_equal(found["tokens"], records[i]["tokens"]) and found["id"] == str(i)
        assert len(source.remote._kept) == 1
    assert len(RecordSource([f"{bucket}/none.array_record"])) == 0
    assert not list(tmp_path.glob("*.partial"))


def test_a_ring_keeps_what_came_last():
    """Against a list: whatever the sizes, all that is there is whole, and it is the newest that fits."""
    rng, ring, order, values = np.random.default_rng(0), Ring(1000), [], {}
    for i in range(500):
        data = rng.bytes(int(rng.integers(1, 300)))
        ring.put((0, i), data)
        order.append(i)
        values[i] = data
        there = [k for k in order if (0, k) in ring]
        assert there == order[-len(there) :] and len(ring) == len(there)
        assert all(ring.get((0, k)) == values[k] for k in there)
        assert 400 < sum(len(values[k]) for k in there) <= 1000 or i < 5
    ring.put((0, 500), rng.bytes(1001))
    assert (0, 500) not in ring and ring.get((0, 500)) is None


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens") / "t", range(60))


def test_batches_are_those_of_local_shards(bucket, tokens):  # noqa: F811
    """With room for all, and for a few; on one process or two; from the first step or a later one."""
    files.put_tree(tokens, files.path(f"{bucket}/t"))
    wanted = run(make_config("tokens", tokens, buckets=((3, 4, 6),)), 40)
    for cache_gb in (1.0, 2e-6, 1e-7):  # 2 kB: a few records; 0.1 kB: none
        config = make_config("tokens", f"{bucket}/t", buckets=((3, 4, 6),), cache_gb=cache_gb)
        assert_same(run(config, 40), wanted)
        assert_same(run(config, 5, start_step=30), wanted[30:35])
        for process in range(2):
            rows = slice(2 * process, 2 * process + 2)
            for mine, whole in zip(run(config, 8, process=(process, 2)), wanted):
                assert np.array_equal(mine["tokens"], whole["tokens"][rows])


def test_what_the_next_batches_need_is_there_before_they_ask(bucket, tokens, storage):  # noqa: F811
    files.put_tree(tokens, files.path(f"{bucket}/t"))
    config = make_config("tokens", f"{bucket}/t", buckets=((3, 4, 6),), num_threads=1, prefetch=1)
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        next(pipeline)
        remote, until = pipeline._reader.sources[0]._records.remote, time.monotonic() + 20
        while len(remote._kept) < 60:  # 100 batches are more than an epoch
            assert time.monotonic() < until
            time.sleep(0.01)
        remote._fetch = None  # nothing is fetched any more
        for _ in range(20):
            next(pipeline)


@pytest.mark.fast("cut")
@pytest.mark.parametrize("answer", [503, "cut"])
def test_a_busy_bucket_changes_no_batch(tokens, bucket, through_proxy, answer):  # noqa: F811
    files.put_tree(tokens, files.path(f"{bucket}/t"))
    through_proxy.answer, through_proxy.share = answer, 0.05
    config = make_config("tokens", f"{bucket}/t", buckets=((3, 4, 6),))
    assert_same(run(config, 12), run(make_config("tokens", tokens, buckets=((3, 4, 6),)), 12))


def test_shards_without_their_places_or_damaged_are_refused(bucket, tokens):  # noqa: F811
    root = files.path(bucket) / "t"
    files.put_tree(tokens, root)
    shard = sorted(root.glob("*.array_record"))[0]
    (root / f"{shard.name}.places").unlink()
    with pytest.raises(
        UserError, match="cannot be read from a bucket without train-00000-of-00002.array_record.places"
    ):
        RecordSource([str(shard)])
    files.put_tree(tokens, root)
    data = bytearray(files.read_bytes(shard))
    data[80] ^= 255
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match="record 0 is damaged"):
        RecordSource([str(shard)])[0]
