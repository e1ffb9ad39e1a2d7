"""Runs findings: units in parallel processes, each finished one a few lines in OUT/NAME.jsonl, so that killed work goes on.

Seed 0 of all runs comes first, the longest ones first; the programs that it compiles lie in OUT/compiled, where later seeds find them.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lumos.errors import UserError
from lumos.growing_files import Appended
from lumos.runtime import compile_cache

_log = logging.getLogger(__name__)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; a line that a kill cut off counts for nothing."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def run(names: Iterable[str], out: Path, workers: int = 1, smoke: bool = False) -> list[str]:
    """Run what is left of some findings; return what failed, a line each. Rows of other settings stay, and count for nothing."""
    out.mkdir(parents=True, exist_ok=True)
    compile_cache.use(out)
    queue = left(names, out, smoke)
    _log.info("%d units left", len(queue))
    failed, start = [], time.monotonic()
    for number, (unit, rows, error) in enumerate(_finished(queue, out, workers), 1):
        seconds = time.monotonic() - start
        if error:
            failed.append(f"{unit.finding} {unit.arms[0]} seed {unit.seed}: {error.strip().splitlines()[-1]}")
            _log.warning("%s", error)
            continue
        file = Appended(out / f"{unit.finding}.jsonl")
        for row in rows:
            file.write(json.dumps(row))
        file.close()
        _log.info(
            "%d of %d: %s, %s, seed %d (%.0f s)", number, len(queue), unit.finding, unit.arms[0], unit.seed, seconds
        )
    return failed


def left(names: Iterable[str], out: Path, smoke: bool = False) -> list:
    """Return the units without rows, in the order in which they are run."""
    from lumos.findings import load
    from lumos.findings.finding import Finding
    from lumos.findings.unit import units

    found = []
    for name in names:
        finding = load.load(name)
        if not isinstance(finding, Finding):
            continue
        done = {(row["digest"], row["arm"], row["seed"]) for row in read(out / f"{name}.jsonl")}
        for unit in units(finding, smoke):
            if any((unit.digest, arm, unit.seed) not in done for arm in unit.arms):
                found.append((finding.seeds.index(unit.seed), -unit.steps * finding.cost, unit))
    return [unit for _, _, unit in sorted(found, key=lambda item: item[:2])]


def _finished(queue: list, out: Path, workers: int):
    """Yield (unit, its rows, what went wrong) as units finish; in this process with workers=0."""
    if workers < 0:
        raise UserError(f"--workers={workers} must be at least 0")
    if not workers:
        for unit in queue:
            yield unit, *_attempt(unit, out)
        return
    context, cores = multiprocessing.get_context("spawn"), sorted(os.sched_getaffinity(0))
    turns = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, _begin, (turns, workers, cores)) as pool:
        waiting = {pool.submit(_attempt, unit, out): unit for unit in queue}
        for future in as_completed(waiting):
            yield waiting[future], *future.result()


def _begin(turns, workers: int, cores: list[int]) -> None:
    """Give a worker its share of the cores, before JAX starts its threads."""
    with turns.get_lock():
        turn, turns.value = turns.value, turns.value + 1
    size = max(len(cores) // workers, 1)
    begin = turn * size % len(cores)
    os.sched_setaffinity(0, cores[begin : begin + size])


def _attempt(unit, out: Path) -> tuple[list[dict[str, Any]], str]:
    from lumos.findings import unit as units

    try:
        return units.run(unit, out), ""
    except Exception:
        return [], traceback.format_exc()
