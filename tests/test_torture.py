"""The short form of `make torture`: ten kills."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# What is left of a run that was killed: before its first checkpoint in three ways, after one that was lost, after a damaged one.
_LEFTOVERS = """
import sys
from pathlib import Path
import torture
from tokens import run_config, write_tokens

def start(name):
    work = torture.Training(root / name, (1,))
    work.folder.mkdir()
    config.save(work.folder / "config.json")
    return work

root = Path(sys.argv[1])
assert torture.wait([torture.fork(lambda: write_tokens(root / "data") and 0, root / "log")]) == [0]
config = run_config(root / "data", train__num_steps=2)
early = start("early")
assert early.check([-9]) == [] and early.restorable() == []  # not even a workdir
(early.workdir / "checkpoints").mkdir(parents=True)
assert early.check([-9]) == [] and early.restorable() == []
(early.workdir / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
assert early.check([-9]) == [] and early.restorable() == []
whole = start("whole")
assert torture.wait(whole.start()) == [0], (whole.folder / "log-0").read_text()
assert whole.check([0]) == [] and whole.newest == 2 and whole.restorable() == []
(whole.workdir / "checkpoints" / "2").rename(whole.folder / "away")
(problem,) = whole.restorable()
assert "a checkpoint cannot be restored" in problem and "step 2 was saved" in problem, problem
assert whole.check([-9]) == ["the newest checkpoint went from 2 to -1"]
(whole.folder / "away").rename(whole.workdir / "checkpoints" / "2")
assert whole.check([-9]) == []
for file in (whole.workdir / "checkpoints" / "2" / "params").rglob("*"):
    if file.is_file():
        file.write_bytes(b"")
(problem,) = whole.restorable()
assert "a checkpoint cannot be restored" in problem, problem
"""


def test_only_what_was_saved_can_be_lost(tmp_path):
    """In a process of its own, as the script sets up jax its own way."""
    command = [sys.executable, "-c", _LEFTOVERS, tmp_path]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_ten_kills_lose_nothing():
    script = Path(__file__).with_name("torture.py")
    result = subprocess.run([sys.executable, script, "--kills=10"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["problems"] == [] and sum(report["kills"].values()) >= 10
