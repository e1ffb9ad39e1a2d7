"""Compiled programs are kept beside the checkpoints, so that a run that starts again need not compile again.

JAX has the cache; this says where it lies. A program compiled for one CPU may use instructions that another lacks, and a
workdir may be shared by machines of several kinds: each kind has its own folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path

from lumos import files

_DIR = "JAX_COMPILATION_CACHE_DIR"
# Small programs are kept too: at the start of a run there are a hundred of them, and together they take seconds.
_SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    # Its caches inside XLA put the path of the folder into the key: a workdir that moved would compile again.
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
}


def use(workdir: str | Path) -> None:
    """Keep programs under `workdir`/compiled, unless the user has a folder for them, that is no local folder that can be written,
    or it is a release, to which nothing is added.

    Must precede the import of jax.
    """
    if files.is_remote(workdir) or (Path(workdir) / "release.json").is_file():
        return
    folder = Path(workdir).absolute() / "compiled" / _machine()
    there = next(parent for parent in folder.parents if parent.exists())
    if _DIR not in os.environ and os.access(there, os.W_OK):
        os.environ[_DIR] = str(folder)
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)


def _machine() -> str:
    """Return a name for what this CPU can do."""
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else None
    features = " ".join(sorted(found[1].split())) if found else platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
