"""Huge pages for large arrays on a CPU.

XLA takes the temporary memory of every step from malloc and gives it back at the end, so each step touches all of it for
the first time again. In pages of 4 KB that costs up to a sixth of a training step (docs/results.md). glibc's malloc asks for
huge pages when GLIBC_TUNABLES says so, and reads that only while a program starts.
"""

import os
import platform
import sys

_NAME, _VALUE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def use_huge_pages() -> None:
    """Start this program again with huge pages, unless it has them, or the user's own tunables, or no glibc."""
    if _NAME not in os.environ and platform.libc_ver()[0] == "glibc":
        os.environ[_NAME] = _VALUE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
