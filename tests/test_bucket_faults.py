"""Kills and faults of runs whose workdir is in a bucket: nothing that was saved is lost, and what is half is taken for nothing."""

import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import buckets
import jax
import numpy as np
import pytest
from buckets import bucket, storage  # noqa: F401
from tokens import run_config, write_tokens
from worker import start

from lumos import files
from lumos.checkpoint import Checkpointer, read_shapes
from lumos.errors import EXIT_STUCK
from lumos.runtime import metrics_writer

buckets.needed()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize("arguments, kills", [(("--only=restore", "--kills=4"), 4), (("--kills=40",), 40)])
def test_kills_lose_nothing(arguments, kills, scheme):
    """Runs and tokens in a bucket, killed while they train, save, delete and restore; forty also on two processes and tokenising."""
    script = Path(__file__).with_name("torture.py")
    result = subprocess.run([sys.executable, script, f"--bucket={scheme}", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["problems"] == [] and sum(report["kills"].values()) >= kills


def losses(run) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics_writer.read(run, "train")]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run of 4 steps, a cache of its compiled programs, and what it gives on a local disk."""
    folder = tmp_path_factory.mktemp("run")
    tokens = write_tokens(folder / "tokens")
    run_config(tokens, train__num_steps=4).save(folder / "config.json")
    process = start({"config": str(folder / "config.json"), "workdir": str(folder / "run")}, folder / "cache")
    assert process.communicate()[1] is not None and process.returncode == 0
    return folder, losses(folder / "run")


def launch(job, bucket, storage, monkeypatch, **changes):  # noqa: F811
    """Start the run with its data and its workdir in the bucket; all of its clients go through the proxy."""
    folder = job[0]
    files.put_tree(folder / "tokens", files.path(f"{bucket}/tokens"))
    options = {"train__num_steps": 4} | changes
    run_config(f"{bucket}/tokens", **options).save(folder / "bucket.json")
    with monkeypatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, storage.proxy)
        return start({"config": str(folder / "bucket.json"), "workdir": f"{bucket}/run"}, folder / "cache")


def restored(run) -> int:
    """Return the newest step, once all of its arrays have been read."""
    reader = Checkpointer(run, read_only=True)
    try:
        step = reader.latest_step()
        shapes = read_shapes(files.path(run) / "checkpoints" / str(step) / "params")
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {}
        for name, (shape, dtype) in shapes.items():
            *parents, last = name.split("/")
            functools.reduce(lambda tree, part: tree.setdefault(part, {}), parents, wanted)[last] = (
                jax.ShapeDtypeStruct(shape, dtype, sharding=place)
            )
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(reader.restore_params(wanted, step, item="params")))
        return step
    finally:
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("answer", [503, 429, "cut", "slow"])
def test_a_run_outlives_a_bad_bucket(bucket, storage, job, monkeypatch, answer):  # noqa: F811
    """Some requests of all kinds fail, those for data, metrics and checkpoints: losses and checkpoints are those of a local run."""
    storage.answer, storage.share = answer, 0.04
    process = launch(job, bucket, storage, monkeypatch)
    error = process.communicate()[1]
    storage.share = 0.0
    assert process.returncode == 0, error[-2000:]
    assert storage.made > 0 and losses(f"{bucket}/run") == job[1]
    assert restored(f"{bucket}/run") == 4


@pytest.mark.slow
@pytest.mark.parametrize("answer", [403, 503, "cut"])
def test_a_bucket_that_fails_for_good_keeps_what_was_saved(bucket, storage, job, monkeypatch, answer):  # noqa: F811
    """From the second checkpoint on nothing can be written (a full quota), or nothing answers: one line, and the run goes on later."""
    changes = {"train__num_steps": 10**6, "train__deadlines": [600.0, 600.0, 600.0, 600.0, 20.0, 600.0]}
    process = launch(job, bucket, storage, monkeypatch, **changes)
    until = time.monotonic() + 200
    while not [name for name in buckets.names(f"{bucket}/run/checkpoints/") if name.endswith("4/commit_success.txt")]:
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < until, process.kill()
        time.sleep(0.05)
    storage.answer, storage.share, storage.methods = answer, 1.0, ("POST", "PUT", "PATCH")
    try:
        error = process.communicate(timeout=400)[1]
    finally:
        process.kill()
        storage.share = 0.0
    if answer == 403:
        last = [line for line in error.splitlines() if line.startswith("lumos: error")]
        assert process.returncode == 2 and len(last) == 1, error[-2000:]
    else:  # it waits for what may come back, up to the deadline of the phase
        assert process.returncode in (2, EXIT_STUCK), error[-2000:]
    saved = restored(f"{bucket}/run")
    assert saved >= 4
    process = launch(job, bucket, storage, monkeypatch, train__num_steps=saved + 2)
    error = process.communicate()[1]
    assert process.returncode == 0, error[-2000:]
    assert [step for step, _ in losses(f"{bucket}/run")] == list(range(1, saved + 3))
