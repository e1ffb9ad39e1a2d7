"""The watchdog alone, in processes of their own, without jax."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumos.errors import EXIT_STUCK
from lumos.runtime.watchdog import PHASES, Watchdog

REPO = Path(__file__).resolve().parents[1]


def run(code, **kwargs):
    script = "import time, ctypes\nfrom lumos.runtime import watchdog\n" + code
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, **kwargs
    )


@pytest.mark.fast("step", "save")
@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_has_a_deadline_of_its_own(phase, tmp_path):
    result = run(
        f"w = watchdog.Watchdog()\nw.configure([0.5 if p == {phase!r} else 60 for p in watchdog.PHASES], '.')\n"
        f"def hang():\n    time.sleep(100)\nw.enter({phase!r}, 'step 7')\nhang()",
        cwd=tmp_path,
    )
    assert result.returncode == EXIT_STUCK
    for text in (result.stderr, next(tmp_path.glob("stacks-*.txt")).read_text()):
        assert f"in phase '{phase}' of step 7 (deadline 0.5 s)" in text and "in hang" in text


def test_the_first_phase_is_watched_before_there_is_a_config():
    result = run("watchdog._START_SECONDS = 0.5\nwatchdog.Watchdog()\ntime.sleep(100)")
    assert result.returncode == EXIT_STUCK and "phase 'start'" in result.stderr


def test_a_thread_that_keeps_the_interpreter_lock_is_ended_too():
    """A C call that never lets go of the lock stops every Python thread; the timer behind them is written in C."""
    result = run(
        "watchdog._BACKSTOP_SECONDS = 0.5\nw = watchdog.Watchdog()\nw.configure([2] * 6, '.')\ntime.sleep(1)\n"
        "ctypes.PyDLL(None).sleep(100)"
    )
    assert result.returncode == 1 and "Timeout" in result.stderr


def test_progress_and_stopping_keep_it_quiet(tmp_path):
    with Watchdog() as watchdog:
        watchdog.configure([60.0, 60.0, 60.0, 60.0, 60.0, 0.0], tmp_path)
        for step in range(3):
            watchdog.enter("step", f"step {step}")
            time.sleep(0.05)
        watchdog.enter("evaluate")  # without a limit
        time.sleep(0.5)
