"""Kills and faults of runs whose workdir is in a bucket: nothing that was saved is lost, and what is half is taken for nothing."""

import json
import subprocess
import sys
from pathlib import Path

import buckets
import pytest
from buckets import bucket, storage  # noqa: F401
from test_buckets import through_proxy  # noqa: F401
from tokens import one_device, run_config, write_tokens  # noqa: F401

from lumos import files
from lumos.checkpoint import Checkpointer
from lumos.runtime import metrics_writer
from lumos.training.loop import train

buckets.needed()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, kills",
    [(("--only=restore", "--kills=4"), 4), pytest.param(("--kills=40",), 40, marks=pytest.mark.slow)],
)
def test_kills_lose_nothing(arguments, kills):
    """Runs and tokens in a bucket, killed while they train, save, delete and restore; forty also on two processes and tokenising."""
    script = Path(__file__).with_name("torture.py")
    result = subprocess.run([sys.executable, script, "--bucket", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["problems"] == [] and sum(report["kills"].values()) >= kills


def losses(run) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics_writer.read(run, "train")]


@pytest.fixture
def quick(monkeypatch):
    """What is asked for again is asked for at once."""
    sleep = files.time.sleep
    monkeypatch.setattr(files.time, "sleep", lambda seconds: sleep(min(seconds, 0.02)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        503,
        pytest.param(429, marks=pytest.mark.slow),
        pytest.param("cut", marks=pytest.mark.slow),
        pytest.param("slow", marks=pytest.mark.slow),
    ],
)
def test_a_run_outlives_a_bad_bucket(bucket, through_proxy, quick, one_device, tmp_path, answer):  # noqa: F811
    """Some of the requests fail, those of Orbax and TensorStore too: losses and checkpoints are those of a local run."""
    tokens, options = write_tokens(tmp_path / "tokens"), {"train__num_steps": 4, "train__checkpoint_every": 2}
    train(run_config(tokens, **options), str(tmp_path / "run"))
    through_proxy.answer, through_proxy.share = answer, 0.04
    train(run_config(tokens, **options), f"{bucket}/run")
    through_proxy.share = 0.0
    assert through_proxy.made > 0
    assert losses(f"{bucket}/run") == losses(str(tmp_path / "run"))
    checkpointer = Checkpointer(f"{bucket}/run", read_only=True)
    assert checkpointer.latest_step() == 4 and checkpointer.last_good_step() == 4
    checkpointer.close()


@pytest.mark.slow
def test_a_full_quota_keeps_what_was_saved(bucket, through_proxy, quick, one_device, tmp_path):  # noqa: F811
    tokens = write_tokens(tmp_path / "tokens")
    train(run_config(tokens, train__num_steps=2), f"{bucket}/run")
    through_proxy.answer, through_proxy.share, through_proxy.methods = 403, 1.0, ("POST", "PUT", "PATCH")
    with pytest.raises(Exception) as caught:
        train(run_config(tokens, train__num_steps=4), f"{bucket}/run")
    through_proxy.share = 0.0
    assert (
        files.is_of_a_bucket(caught.value) and files.reason_of(caught.value) == "permission denied"
    )  # one line of `lumos`
    checkpointer = Checkpointer(f"{bucket}/run", read_only=True)
    assert checkpointer.latest_step() == 2
    checkpointer.close()
    train(run_config(tokens, train__num_steps=4), f"{bucket}/run")  # once there is room again
    assert [step for step, _ in losses(f"{bucket}/run")] == [1, 2, 3, 4]
