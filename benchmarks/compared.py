"""What benchmarks share that stand beside other code: timing, flags, and ratios to figures that the user brings."""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lumos.evaluation.evaluate import versions


def measure(run: Callable[[], None], num_tokens: int, rounds: int) -> dict:
    """Return tokens a second and seconds of a call, the medians of several; the first call, which compiles, is on its own."""
    start = time.perf_counter()
    run()
    compile_seconds = time.perf_counter() - start
    wall, cpu = [], []
    for _ in range(rounds):
        start, start_cpu = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {
        "tokens_per_s": round(num_tokens / float(np.median(wall)), 1),
        "best_tokens_per_s": round(num_tokens / min(wall), 1),
        "seconds": round(float(np.median(wall)), 4),
        "cpu_seconds": round(float(np.median(cpu)), 4),
        "first_call_seconds": round(compile_seconds, 1),
    }


def parser(names: Iterable[str]) -> argparse.ArgumentParser:
    """Return the flags: which work, how many rounds, and the file with the figures of other code."""
    found = argparse.ArgumentParser()
    found.add_argument("--only", choices=list(names), action="append")
    found.add_argument("--rounds", type=int, default=0)
    found.add_argument("--beside", type=Path, help="JSON file with the tokens/s of other code by the same names")
    return found


def report(arguments: argparse.Namespace, work: dict[str, Callable[[], dict]]) -> None:
    """Do the work; print each result as a line of JSON, and all as one document."""
    others = json.loads(arguments.beside.read_text()) if arguments.beside else {}
    result = {"versions": versions()}
    for name in arguments.only or work:
        result[name] = work[name]()
        if name in others:
            result[name] |= {"beside": others[name], "ratio": round(result[name]["tokens_per_s"] / others[name], 2)}
        print(json.dumps({name: result[name]}), flush=True)
    print(json.dumps(result, indent=1))
