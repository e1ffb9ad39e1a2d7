"""A command starts itself again with huge pages, once, and leaves the user's own tunables alone."""

import os
import platform
import subprocess
import sys

import pytest

from lumos import cli

_PROGRAM = """
import os, sys
from lumos.runtime.huge_pages import use_huge_pages
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], flush=True)
use_huge_pages()
print("runs")
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has tunables")
@pytest.mark.parametrize(
    "tunables, want",
    [
        (None, ["None a b", "glibc.malloc.hugetlb=1 a b", "runs"]),
        ("glibc.malloc.perturb=0", ["glibc.malloc.perturb=0 a b", "runs"]),
    ],
)
def test_a_program_starts_again_with_huge_pages(tunables, want):
    environ = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables:
        environ["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-c", _PROGRAM, "a", "b"]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == want


@pytest.mark.parametrize(
    "arguments, starts_again",
    [
        ([], False),
        (["--help"], False),
        (["train", "--help"], False),
        (["completion", "--", "tr"], False),
        (["train"], True),
    ],
)
def test_a_command_that_only_prints_starts_once(monkeypatch, arguments, starts_again):
    started = []
    monkeypatch.setattr(cli, "use_huge_pages", lambda: started.append(True))
    monkeypatch.setattr(cli, "use_device_memory", lambda: None)
    monkeypatch.setattr(cli, "main", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["lumos", *arguments])
    with pytest.raises(SystemExit):
        cli.run_and_exit()
    assert bool(started) == starts_again
