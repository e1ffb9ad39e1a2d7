"""Which versions of Python and JAX lumos runs with: the wheel in an environment of each, and the smallest demo in it.

    python tests/versions.py 3.11:0.10 3.12:0.11 3.13:0.11          # a table, for docs/results.md

A Python is looked for as python3.12 and so on. Minutes for each; nothing is left behind.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def run(command, **options):
    """Run a command; return the last line that it printed, or raise with it."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
    return lines[-1] if lines else ""


def attempt(folder, wheel, python, jax):
    """Install and run; return (what was installed, result, seconds of the demo)."""
    command = shutil.which(f"python{python}")
    if not command:
        return "", "no such Python here", 0.0
    run([command, "-m", "venv", folder / "venv"])
    binaries = folder / "venv" / "bin"
    run([binaries / "python", "-m", "pip", "install", "--quiet", str(wheel), f"jax=={jax}.*"])
    (folder / "empty").mkdir()
    unwanted = ("PYTHONPATH", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted} | {"JAX_PLATFORMS": "cpu"}
    version = run([binaries / "lumos", "--version"], env=environment)
    start = time.monotonic()
    run([binaries / "lumos", "demo", "--variant=smoke"], env=environment, cwd=folder / "empty")
    return version, "runs", time.monotonic() - start


def main(wanted):
    with tempfile.TemporaryDirectory(prefix="lumos-versions-") as place:
        run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={place}", str(REPO)])
        (wheel,) = Path(place).glob("*.whl")
        print("| Python | JAX | result |\n|---|---|---|", flush=True)
        for pair in wanted:
            python, _, jax = pair.partition(":")
            folder = Path(place) / pair.replace(":", "-")
            folder.mkdir()
            try:
                version, result, seconds = attempt(folder, wheel, python, jax)
                result += f", demo in {seconds:.0f} s: {version}" if seconds else ""
            except RuntimeError as error:
                result = f"fails: {str(error)[:200]}"
            print(f"| {python} | {jax} | {result} |", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
