"""s3://: data, runs and checkpoints are those of a local disk."""

import dataclasses
import json
import signal
import time

import jax
import numpy as np
import pytest
import s3_server
from s3_server import s3, s3_bucket  # noqa: F401
from test_containers import make_tar
from test_pipeline import make_config
from test_token_folder import FakeTokenizer
from test_video import numbered_video
from tokens import one_device, run_config, write_tokens  # noqa: F401
from worker import free_port, start

from lumos import files, orbax_on_s3
from lumos.checkpoint import Checkpointer, read_shapes
from lumos.config import DataConfig
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.pipeline import make_pipeline
from lumos.data.records import RecordSource
from lumos.data.video_writer import write_video
from lumos.errors import EXIT_PREEMPTED, UserError
from lumos.leases import Leases
from lumos.runtime import metrics_writer
from lumos.tokenizers.check_tokens import check
from lumos.tokenizers.tokenize import tokenize
from lumos.training.loop import train
from lumos.training.state import TrainState

s3_server.needed()


@pytest.mark.slow
def test_clips_tars_and_tokens_are_those_of_a_local_folder(s3_bucket, tmp_path):  # noqa: F811
    for i in range(4):
        write_video(tmp_path / "loose" / f"{i:03d}.mp4", numbered_video(9 + i), 12)
        (tmp_path / "loose" / f"{i:03d}.txt").write_text(f"clip {i}")
        (tmp_path / "loose" / f"{i:03d}.json").write_text("{}")
    (tmp_path / "set").mkdir()
    make_tar(tmp_path / "set" / "a.tar", tmp_path / "loose", [f"{i:03d}.mp4" for i in range(4)])
    write_video(tmp_path / "set" / "loose.mp4", numbered_video(9), 12)
    files.put_tree(tmp_path / "set", files.path(f"{s3_bucket}/set"))
    found = {}
    for root in (s3_bucket, str(tmp_path)):
        summary = index(f"{root}/set", f"{root}/m.arrow", DataConfig())
        assert (summary.accepted, summary.rejected) == (5, 0)
        rows = [row | {"path": row["path"].removeprefix(root)} for row in read_manifest(f"{root}/m.arrow")]
        config = make_config("clips", f"{root}/m.arrow", buckets=((9, 32, 48),), batch_size=2)
        tokenize(config, FakeTokenizer(), f"{root}/tokens", splits=("train",), clips_per_shard=2)
        records = RecordSource(files.find(files.path(f"{root}/tokens"), "*.array_record"))
        tokens = [record["tokens"].tolist() for record in records]
        batches = []
        for source, path, bucket in (("clips", "m.arrow", (9, 32, 48)), ("tokens", "tokens", (3, 4, 6))):
            config = make_config(source, f"{root}/{path}", buckets=(bucket,), batch_size=2)
            with make_pipeline(_wide(config), "train", process_index=0, process_count=1) as pipeline:
                batches += [next(pipeline)["video" if source == "clips" else "tokens"].tolist() for _ in range(3)]
        report = check(f"{root}/tokens")
        assert report.num_problems == 0
        found[root] = json.dumps([rows, tokens, batches, report.records])
    assert found[s3_bucket] == found[str(tmp_path)]


def _wide(config):
    """A config whose vocabulary has room for the codes of the fake tokenizer."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, visual_vocab=4096))


def test_leases_and_single_files_on_s3(s3_bucket):  # noqa: F811
    root = files.path(f"{s3_bucket}/x")
    first, second = Leases(root / "leases"), Leases(root / "leases")
    with first.hold("a") as lease, second.hold("a") as other:
        assert other is None
        lease.check()
    with second.hold("a") as other:
        assert other is not None
    assert files.create_text(root / "once", "1") and not files.create_text(root / "once", "2")
    assert files.size_and_time(root / "once")[0] == 1 and files.size_and_time(root / "once")[1] > 1.7e9
    with pytest.raises(UserError, match="absent: cannot be read .no such bucket or object"):
        files.kept(root / "absent")
    assert np.frombuffer(files.read_range(root / "once", 0, 1), np.uint8).tolist() == [ord("1")]


def _state(value: float) -> TrainState:
    return TrainState(jax.numpy.int32(0), {"w": jax.numpy.full((3, 4), float(value))}, None, None)


def test_a_checkpoint_on_s3_is_what_has_its_marker(s3_bucket):  # noqa: F811
    """Kept are the newest and the last good one; one whose marker has gone is none; a copy has its marker last."""
    run = f"{s3_bucket}/run"
    writer = Checkpointer(run, keep=1)
    for step in (1, 2, 3):
        writer.save(step, _state(step), {}, good=step == 2)
    writer.wait()
    assert writer.all_steps() == [2, 3]
    writer.link(2, files.path(f"{s3_bucket}/copy"))
    writer.close()
    assert read_shapes(files.path(run) / "checkpoints" / "3" / "params") == {"w": ((3, 4), "float32")}
    for workdir in (run, f"{s3_bucket}/copy"):
        (files.path(run) / "checkpoints" / "3" / "commit_success.txt").unlink(missing_ok=True)
        reader = Checkpointer(workdir, read_only=True)
        assert reader.all_steps() == [2] and reader.last_good_step() == 2
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {"w": jax.ShapeDtypeStruct((3, 4), np.float32, sharding=place)}
        assert np.array_equal(reader.restore_params(wanted)["w"], np.full((3, 4), 2.0))
        reader.close()


def test_an_orbax_that_cannot_be_taught_is_refused(monkeypatch):
    orbax_on_s3._teach.cache_clear()
    monkeypatch.setattr(orbax_on_s3, "_REPLACED", {"orbax.checkpoint.elsewhere": ()})
    with pytest.raises(UserError, match="checkpoints on s3:// need orbax-checkpoint 0.12; this is 0"):
        Checkpointer("s3://b/run")


@pytest.mark.slow
def test_a_run_on_s3_is_a_run(s3_bucket, tmp_path, one_device):  # noqa: F811
    """Losses bit for bit those of a local run, though it is stopped in between; the same checkpoints are kept."""
    tokens = write_tokens(tmp_path / "tokens")
    files.put_tree(tokens, files.path(f"{s3_bucket}/tokens"))
    lines = {}
    for root in (s3_bucket, str(tmp_path)):
        for steps in (2, 4):
            options = {"train__num_steps": steps, "train__checkpoint_every": 1, "train__keep_checkpoints": 2}
            train(run_config(f"{root}/tokens", **options), f"{root}/run")
        lines[root] = [(line["step"], line["loss"]) for line in metrics_writer.read(f"{root}/run", "train")]
        checkpointer = Checkpointer(f"{root}/run", read_only=True)
        assert checkpointer.all_steps() == [3, 4] and checkpointer.last_good_step() == 4
        checkpointer.close()
        assert len(files.read_text(files.path(root) / "run" / "runs.jsonl").splitlines()) == 2
    assert lines[s3_bucket] == lines[str(tmp_path)] and len(lines[s3_bucket]) == 4


@pytest.mark.slow
def test_two_processes_on_s3_are_stopped_and_go_on_as_one(s3_bucket, tmp_path):  # noqa: F811
    """SIGTERM to one of them: both save the same step and leave; one process goes on from there."""
    tokens = write_tokens(tmp_path / "tokens")
    run_config(tokens, train__num_steps=10**6, train__checkpoint_every=10**6).save(tmp_path / "config.json")
    job = {"config": str(tmp_path / "config.json"), "workdir": f"{s3_bucket}/run", "count": 2, "port": free_port()}
    processes = [start(job | {"process": p}, tmp_path / "cache") for p in range(2)]
    until = time.monotonic() + 120
    while "config.json" not in " ".join(s3_server.names(f"{s3_bucket}/run")):
        assert time.monotonic() < until
        time.sleep(0.2)
    time.sleep(20)
    processes[1].send_signal(signal.SIGTERM)
    texts = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_PREEMPTED] * 2, texts[0][-3000:]
    reader = Checkpointer(f"{s3_bucket}/run", read_only=True)
    saved = reader.latest_step()
    reader.close()
    assert saved >= 1 and all(f"step {saved} is saved" in text for text in texts)
    config = run_config(tokens, train__num_steps=saved + 2, train__checkpoint_every=10**6)
    config.save(tmp_path / "config.json")
    process = start({"config": job["config"], "workdir": job["workdir"]}, tmp_path / "cache")
    assert process.communicate(timeout=120) and process.returncode == 0
    steps = [line["step"] for line in metrics_writer.read(f"{s3_bucket}/run", "train")]
    assert steps == list(range(1, saved + 3))
