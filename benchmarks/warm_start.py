"""How soon does a run take its first step, with and without compiled programs from an earlier start?

    python benchmarks/warm_start.py [--config=configs/moving_shapes_1h.py:transformer]

Starts `lumos train` on made-up tokens twice in a temporary workdir, each in a process of its own, and takes the time from the
start of the process to the end of its first step. Between the two only the checkpoint and the logs are deleted. Prints JSON:
seconds of both, their ratio, and how long the same step takes to compile and to load.
"""

import argparse
import json
import os
import shutil
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


def start(spec: str, tokens: Path, workdir: Path) -> dict[str, float]:
    """Run one step; return seconds to its end, and those that the phases of the run took."""
    for left in ("checkpoints", "goodput.json"):
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
    return {"to_first_step": seconds, "init": phases["init"], "compile": phases["compile"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/moving_shapes_1h.py:transformer")
    spec = parser.parse_args().config
    grid = (3, 6, 6)  # latent frames, rows, columns of the made-up tokens
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        tokens.mkdir()
        write_tokens(tokens, grid)
        cold, warm = (start(spec, tokens, Path(folder) / "run") for _ in range(2))
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
