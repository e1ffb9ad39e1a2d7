"""How soon does a run take its first step, with and without compiled programs from an earlier start?

    python benchmarks/warm_start.py [--config=configs/moving_shapes_1h.py:transformer] [--turns=3]

Starts `lumos train` on made-up tokens in a temporary workdir, cold and warm in turns, each time in a process of its own, and takes the time
from the start of the process to the end of its first step. Between a cold start and a warm one only the checkpoint and the logs are
deleted. Prints JSON: the medians of both, their ratio, and the parts: Python with all imports (measured alone), all before the first
step, its compilation or loading, and the rest.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lumos.data.records import RecordWriter
from lumos.evaluation.evaluate import versions

CODES = 1000


def write_tokens(folder: Path, grid) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        with RecordWriter(folder / f"{split}-00000-of-00001.array_record") as writer:
            for i in range(64):
                tokens = rng.integers(0, CODES, grid).astype(np.uint32)
                writer.write({"tokens": tokens, "caption": "a red circle moves left", "id": str(i)})
    (folder / "manifest.json").write_text(json.dumps({"grid": list(grid), "codebook_size": CODES}))


def seconds_of_imports() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import lumos.cli, lumos.training.loop"], check=True)
    return time.perf_counter() - begin


def start(spec: str, tokens: Path, workdir: Path, *, is_cold: bool) -> dict[str, float]:
    """Run one step; return seconds to its end, and those that the phases of the run took."""
    for left in ("checkpoints", "goodput.json", *(["compiled"] if is_cold else [])):
        path = workdir / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "lumos", "train", f"--config={spec}", f"--workdir={workdir}", f"--config.data.path={tokens}",
        "--config.tokenizer_workdir=", "--config.train.num_steps=1000000", "--config.train.log_every=1",
        "--config.train.num_samples=0",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    begin = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if " train step 1: " in line:
                break
        seconds = time.perf_counter() - begin
        process.terminate()  # it saves its state and leaves
        process.stderr.read()
    phases = json.loads((workdir / "goodput.json").read_text())["seconds"]
    parts = {"imports": seconds_of_imports(), "init": phases["init"], "compile": phases["compile"]}
    return {"to_first_step": seconds, **parts, "rest": seconds - parts["init"] - parts["compile"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/moving_shapes_1h.py:transformer")
    parser.add_argument("--turns", type=int, default=3)
    flags = parser.parse_args()
    spec, times = flags.config, {True: [], False: []}
    grid = (3, 6, 6)  # latent frames, rows, columns of the made-up tokens
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        tokens.mkdir()
        write_tokens(tokens, grid)
        for _ in range(flags.turns):
            for is_cold in (True, False):
                times[is_cold].append(start(spec, tokens, Path(folder) / "run", is_cold=is_cold))
    median = lambda found: {name: statistics.median(one[name] for one in found) for name in found[0]}
    cold, warm = median(times[True]), median(times[False])
    result = {"config": spec} | {
        name: {
            "cold_s": round(cold[name], 1),
            "warm_s": round(warm[name], 1),
            "ratio": round(cold[name] / warm[name], 2),
        }
        for name in cold
    }
    print(json.dumps(result | {"versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
