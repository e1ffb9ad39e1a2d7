"""The batch script on a real SLURM: submitted, requeued in the middle of training, resumed, and bit for bit the run that was not."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokens
from slurm import CannotStart, Cluster

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
STEPS = 400


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "slurm").mkdir()
    try:
        made = Cluster(tmp_path / "slurm")
    except CannotStart as error:
        pytest.skip(str(error))
    yield made
    made.close()


def losses(workdir):
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def wait_for(what, ready, seconds=240):
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def test_a_job_is_submitted_requeued_and_goes_on_bitwise(cluster, tmp_path):
    config = tokens.run_config(
        tokens.write_tokens(tmp_path / "tokens"), train__num_steps=STEPS, train__checkpoint_every=0
    )
    config.save(tmp_path / "config.json")
    here = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": ""}
    environment = cluster.environment | here | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    train = lambda name: ["train", f"--config={tmp_path}/config.json", f"--workdir={tmp_path / name}"]
    options = ["--topology=h100:2", "--name=tiny", "--partition=all", "--time_limit=00:30:00"]
    launch = [sys.executable, "-m", "lumos", "launch", "--cluster=slurm", *options, "--", *train("job")]
    done = subprocess.run(launch, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    job = int(done.stdout.split()[-1])  # Submitted batch job 1
    log = tmp_path / f"tiny-{job}.log"
    wait_for(
        "training", lambda: len(losses(tmp_path / "job")) > 20 or "error" in (log.read_text() if log.exists() else "")
    )
    cluster.run("scontrol", "requeue", str(job))
    wait_for("the end", lambda: cluster.state(job)[0] in ("COMPLETED", "FAILED", "CANCELLED"))
    assert cluster.state(job) == ("COMPLETED", 1), log.read_text()[-3000:]
    starts = [json.loads(line)["start_step"] for line in (tmp_path / "job" / "runs.jsonl").read_text().splitlines()]
    assert len(starts) == 2 and starts[0] == 0 and 0 < starts[1] < STEPS
    assert "asked to stop" in log.read_text() and "resuming" in log.read_text()
    subprocess.run([sys.executable, "-m", "lumos", *train("whole")], env=environment, check=True, capture_output=True)
    assert losses(tmp_path / "job") == losses(tmp_path / "whole") and len(losses(tmp_path / "job")) == STEPS


def test_a_bad_config_ends_the_job_at_once(cluster, tmp_path):
    environment = cluster.environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    launch = [
        sys.executable,
        "-m",
        "lumos",
        "launch",
        "--cluster=slurm",
        "--topology=h100:2",
        "--name=bad",
        "--array=0-1%1",
    ]
    verb = ["train", "--config=nowhere.py", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [*launch, "--", *verb], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    job = int(done.stdout.split()[-1])
    wait_for("the end", lambda: not cluster.run("squeue", "--noheader", f"--job={job}", check=False).strip())
    logs = [(tmp_path / f"bad-{job}_{task}.log").read_text() for task in (0, 1)]
    assert all("no config file 'nowhere.py'" in text for text in logs)
