"""All benchmarks of speed and memory that need no trained model, one after another, as one JSON document.

    python benchmarks/everything.py [--only=warm_start] [--beside=others.json] > figures.json

--beside: a file of figures of other code, measured on this machine just now: {"lumos1_cpu": {"train_493": tokens/s, ...}, "jasmine_cpu": {...}}. The benchmarks
that compare print ratios to them; what they compare of lumos itself (with and without a cache, cold and warm) alternates. Run it on an idle machine. On a machine with a GPU the document also has what benchmarks/gpu_training.py measures.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from lumos.evaluation.evaluate import versions

HERE = Path(__file__).resolve().parent
BENCHMARKS = {
    "training_memory": [],
    "lumos1_cpu": [],
    "jasmine_cpu": [],
    "cached_generation": [],
    "warm_start": [],
    "loop_overhead": [],
    "tokenizing": [],
    "tokenizer_cpu": [],
}
COMPARED = ("lumos1_cpu", "jasmine_cpu")


def machine() -> dict:
    """Return what this machine is: processor, cores that may be used, system."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": names[0] if names else platform.processor(), "cores": cores, "system": platform.platform()}


def run(name: str, arguments: list[str]) -> object:
    """Return what a benchmark printed: its JSON document, or one for each line; its last words where it failed."""
    done = subprocess.run([sys.executable, HERE / f"{name}.py", *arguments], capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return documents(done.stdout)


def documents(text: str) -> object:
    """Return the last JSON document that spans lines, or else a list of those on lines of their own."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line == "{"]
    if starts:
        return json.loads("\n".join(lines[starts[-1] :]))
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return found[0] if len(found) == 1 else found


def main():
    names = [*BENCHMARKS, "gpu_training"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=names, action="append")
    parser.add_argument("--beside", type=Path, help="JSON file: by the name of a benchmark, the figures of other code")
    arguments = parser.parse_args()
    beside = json.loads(arguments.beside.read_text()) if arguments.beside else {}
    if unknown := sorted(set(beside) - set(COMPARED)):
        parser.error(f"--beside: {', '.join(unknown)} compare with nothing; allowed: {', '.join(COMPARED)}")
    result = {"date": datetime.date.today().isoformat(), "versions": versions(), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or names:
            if name == "gpu_training":
                if jax.default_backend() == "gpu":
                    result[name] = run(name, [f"--out={folder}/gpu"])
                elif arguments.only:
                    result[name] = "this machine has no GPU"
                continue
            more = []
            if name in beside:
                (Path(folder) / f"{name}.json").write_text(json.dumps(beside[name]))
                more = [f"--beside={folder}/{name}.json"]
            print(name, file=sys.stderr, flush=True)
            result[name] = run(name, BENCHMARKS[name] + more)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
