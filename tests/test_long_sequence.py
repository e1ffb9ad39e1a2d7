import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_sequence_of_90119_tokens_has_its_loss_in_less_than_4_gb():
    script = ROOT / "benchmarks" / "long_sequence.py"
    run = subprocess.run([sys.executable, str(script)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    result = json.loads(run.stdout)
    assert result["num_tokens"] == 90_119 and result["num_frames"] == 22
    assert 6.8 < result["loss"] < 7.1  # an untrained model over 1,024 codes: ln 1024 = 6.93
    assert result["peak_rss_gb"] < 4
