"""Which lumos this is: its version, the git commit of its code, and what it runs on."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import lumos


def version_line() -> str:
    """Return what `lumos --version` prints. JAX is not imported for it."""
    code = commit()
    return ", ".join(
        [
            f"lumos {lumos.__version__}"
            + (f" (commit {code[:12]}{'+changes' * code.endswith('+changes')})" if code else ""),
            f"python {platform.python_version()}",
            *(f"{name} {package_version(name) or 'not installed'}" for name in ("jax", "jaxlib")),
        ]
    )


def package_version(name: str) -> str:
    """Return the version of an installed package; "" where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@functools.cache
def commit() -> str:
    """Return the git commit of the code, with "+changes" where files differ from it; "" outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
        return result.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
