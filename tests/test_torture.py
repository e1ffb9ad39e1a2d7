"""The short form of `make torture`: ten kills."""

import json
import subprocess
import sys
from pathlib import Path


def test_ten_kills_lose_nothing():
    script = Path(__file__).with_name("torture.py")
    result = subprocess.run([sys.executable, script, "--kills=10"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["problems"] == [] and sum(report["kills"].values()) >= 10
