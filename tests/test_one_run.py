"""Two runs in one workdir would write each other's checkpoints: the second is refused while the first lives."""

import subprocess
import sys

import pytest

from lumos.errors import UserError
from lumos.runtime.one_run import one_run

HOLD = "import sys, time; from pathlib import Path; from lumos.runtime.one_run import one_run\nwith one_run(Path(sys.argv[1])):\n print(1, flush=True); time.sleep(600)"


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        first.stdout.readline()
        with pytest.raises(UserError, match=rf"in use by another run \(process {first.pid} on .*\): stop that one"):
            with one_run(tmp_path):
                pass
    finally:
        first.kill()
        first.wait()
    with one_run(tmp_path):  # killed, so the lock is free at once
        pass
    with one_run(tmp_path):
        pass
