"""Leases: one holder, taken over when it is gone, in a folder and in a bucket."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import buckets
import pytest
from buckets import bucket, storage  # noqa: F401

from lumos import files
from lumos.leases import Leases, Lost

REPO = Path(__file__).resolve().parents[1]

buckets.needed()


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    return tmp_path if request.param == "local" else files.path(request.getfixturevalue("bucket")) / "leases"


class Later(Leases):
    """A process that sees the files of others as if they had not been touched for 100 seconds."""

    def _clock(self):
        return super()._clock() + 100


def test_a_lease_has_one_holder_and_is_taken_over_when_stale(folder):
    first, second = (Leases(folder, stale=60, touch=60) for _ in range(2))
    with first.hold("a") as lease:
        with second.hold("a") as other:
            assert other is None and not second.is_free("a")
        with second.hold("b") as other:
            assert other is not None
        later = Later(folder, stale=60, touch=60)
        assert later.is_free("a")  # the holder has not been heard of for long
        with later.hold("a") as other:
            other.check()
            with pytest.raises(Lost):
                lease.check()
            with Leases(folder).hold("a") as third:
                assert third is None
    with first.hold("a") as lease:  # given back
        lease.check()


def test_a_lease_is_touched_while_it_is_held(tmp_path):
    leases = Leases(tmp_path, stale=60, touch=0.01)
    with leases.hold("a"):
        path = leases.newest("a")
        os.utime(path, (0, 0))
        until = time.monotonic() + 10
        while Leases(tmp_path).is_free("a"):
            assert time.monotonic() < until


def test_the_lease_of_a_process_that_is_gone_is_free(tmp_path):
    program = (
        f"from lumos.leases import Leases; from pathlib import Path\nLeases(Path({str(tmp_path)!r}))._acquire('a')"
    )
    assert subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(REPO)}).returncode == 0
    with Leases(tmp_path).hold("a") as lease:  # nobody waits for the time to pass
        assert lease is not None and lease._path.name == "a.1"


def test_only_one_of_many_takes_a_free_lease_over(folder):
    with Leases(folder).hold("a"):
        pass
    all_leases = [Leases(folder, touch=60) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = [path for path in pool.map(lambda leases: leases._acquire("a"), all_leases) if path]
    assert [path.name for path in won] == ["a.1"]


def test_a_text_is_made_once(folder):
    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: files.create_text(folder / "x", json.dumps(i)), range(8)))
    assert sum(made) == 1 and files.read_text(folder / "x") == json.dumps(made.index(True))
    assert [path.name for path in folder.iterdir()] == ["x"]
