"""Clips in a bucket: their bytes are on the local disk before they are read, as many as fit, and batches are those of local clips."""

import threading
import time
from pathlib import Path

import buckets
import pyarrow
import pytest
from buckets import bucket, storage  # noqa: F401
from pyarrow import parquet
from test_containers import make_tar
from test_pipeline import assert_same, make_config, run
from test_video import numbered_video

from lumos import files
from lumos.config import DataConfig
from lumos.data import media, remote_file
from lumos.data.copies import Copies
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.pipeline import make_pipeline
from lumos.data.video_writer import write_video
from lumos.errors import UserError

buckets.needed()

KINDS = ("loose", "tar", "plain", "snappy")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same eight clips loose, in a tar, and in parquet files without and with compression."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(8):
        write_video(folder / "loose" / f"{i:03d}.mp4", numbered_video(50)[5 * i : 5 * i + 9], 12)
        (folder / "loose" / f"{i:03d}.txt").write_text(f"clip {i}")
        (folder / "loose" / f"{i:03d}.json").write_text("{}")
    (folder / "tar").mkdir()
    make_tar(folder / "tar" / "a.tar", folder / "loose", [f"{i:03d}.mp4" for i in range(8)])
    paths = sorted((folder / "loose").glob("*.mp4"))
    rows = [{"video": {"bytes": p.read_bytes(), "path": p.name}, "caption": f"clip {i}"} for i, p in enumerate(paths)]
    for kind, compression in (("plain", "NONE"), ("snappy", "snappy")):
        (folder / kind).mkdir()
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, folder / kind / "a.parquet", row_group_size=3, compression=compression)
    return folder


def _rows(manifest, root) -> list[dict]:
    return [row | {"path": row["path"].removeprefix(str(root))} for row in read_manifest(manifest)]


@pytest.mark.fast("tar", "plain")
@pytest.mark.parametrize("kind", KINDS[1:])
def test_containers_are_indexed_as_they_come(bucket, sources, monkeypatch, kind):  # noqa: F811
    """The rows of a local container; nothing is copied to the disk, and the bytes of a tar come about once."""
    wanted = index(sources / kind, sources / f"{kind}.jsonl", DataConfig())
    (whole,) = (sources / kind).iterdir()
    files.put_tree(sources / kind, files.path(f"{bucket}/{kind}"))
    monkeypatch.setattr(remote_file, "_BLOCK", 4096)
    get = files.get
    monkeypatch.setattr(
        files, "get", lambda path, local: (None if path.suffix in (".tar", ".parquet") else get)(path, local)
    )
    read_range, sizes = files.read_range, []
    monkeypatch.setattr(files, "read_range", lambda *place: (sizes.append(place[2]), read_range(*place))[1])
    found = index(f"{bucket}/{kind}", f"{bucket}/{kind}.jsonl", DataConfig())
    assert _rows(found.manifest, bucket) == _rows(wanted.manifest, sources) and found.accepted == 8
    if kind == "tar":  # the ends of such small parquet files are all of them
        assert sum(sizes) <= 1.1 * whole.stat().st_size + 8 * 4096


@pytest.mark.fast("tar", "snappy")
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_local_clips(bucket, sources, kind, monkeypatch):  # noqa: F811
    """With room for all, for two and for none; on one process or two; from the first step or a later one."""
    files.put_tree(sources, files.path(bucket))
    paths = {root: index(f"{root}/{kind}", f"{root}/{kind}.jsonl", DataConfig()).manifest for root in (sources, bucket)}
    make = lambda root, **data: make_config("clips", paths[root], buckets=((5, 32, 48),), batch_size=2, **data)
    wanted = run(make(sources, cache_gb=0.0), 10)
    two = 2.5e-9 * max(path.stat().st_size for path in (sources / "loose").glob("*.mp4"))
    for cache_gb in (1.0, two, 0.0):
        config = make(bucket, cache_gb=cache_gb)
        assert_same(run(config, 10), wanted)
        assert_same(run(config, 3, start_step=7), wanted[7:])
        halves = [run(config, 3, process=(p, 2)) for p in range(2)]
        for step in range(3):
            assert [half[step]["video"][0].tolist() for half in halves] == wanted[step]["video"].tolist()


@pytest.mark.fast("loose")
@pytest.mark.parametrize("kind", ("loose", "tar"))
def test_what_the_next_batches_need_is_there_before_they_ask(bucket, sources, kind, monkeypatch):  # noqa: F811
    files.put_tree(sources / kind, files.path(f"{bucket}/{kind}"))
    manifest = index(f"{bucket}/{kind}", f"{bucket}/{kind}.arrow", DataConfig()).manifest
    # Of frames at the size of the bucket nothing fits.
    config = make_config("clips", manifest, buckets=((5, 32, 48),), batch_size=2, cache_gb=1e-4)
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        next(pipeline)
        (source,), until = pipeline._reader.sources, time.monotonic() + 20
        clips = [media.of_row(source._rows[i]) for i in range(len(source.sizes))]
        while not all(clip in source._copies for clip in clips):
            assert time.monotonic() < until
            time.sleep(0.01)
        monkeypatch.setattr(media, "copy", None)  # nothing is fetched any more
        source._num_kept = 0  # nor kept decoded
        for _ in range(20):
            next(pipeline)
        assert source._copies.used_bytes == sum(p.stat().st_size for p in Path(source._copies._folder.name).iterdir())


def test_copies_are_as_many_as_fit(monkeypatch):
    """Many threads want clips of 10 to 29 bytes where there is room for 100: each gets its own, and what is used longest ago goes."""
    brought = []

    def copy(clip, local):
        brought.append(clip)
        if clip == "gs://b/29":
            local.write_bytes(b"half")
            raise UserError(f"{local}: cannot be read")
        local.write_text(clip[-2:].ljust(int(clip[-2:])))

    monkeypatch.setattr(media, "copy", copy)
    kept, problems = Copies(100), []

    def work(seed: int) -> None:
        for i in range(200):
            clip = f"gs://b/{10 + (seed * i * 7 + i) % 19}"
            with kept.lent(clip) as local:
                if local.read_text() != clip[-2:].ljust(int(clip[-2:])):
                    problems.append(clip)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [] and kept.used_bytes <= 100
    assert kept.used_bytes == sum(path.stat().st_size for path in Path(kept._folder.name).iterdir())
    for clip in ("gs://b/10", "gs://b/11", "gs://b/12", "gs://b/10", "gs://b/28", "gs://b/27", "gs://b/26"):
        with kept.lent(clip):
            pass
    assert [clip in kept for clip in ("gs://b/10", "gs://b/11", "gs://b/12", "gs://b/26")] == [True, False, False, True]
    with pytest.raises(UserError, match="^gs://b/29: cannot be read$"), kept.lent("gs://b/29"):
        pass
    kept.bring(["gs://b/29", "gs://b/10"])
    assert brought.count("gs://b/29") == 2 and "gs://b/29" not in kept and "gs://b/10" in kept
    with Copies(5).lent("gs://b/10") as local:  # larger than all room: there as long as it is read
        assert local.read_text() == "10".ljust(10)
    assert not local.exists()
