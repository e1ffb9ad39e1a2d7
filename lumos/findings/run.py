"""Runs findings: units in parallel processes, each finished one a few lines in OUT/NAME.jsonl, so that killed work goes on.

Findings are worked on in the order in which they are named, as many together as fill the workers. Of these the first seed of all runs comes
first, the longest ones before short ones; the programs that it compiles lie in OUT/compiled, where later seeds find them.
"""

from __future__ import annotations

import dataclasses
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
from lumos.findings import load, unit
from lumos.findings.finding import Finding
from lumos.findings.results import read, results
from lumos.findings.unit import Unit
from lumos.growing_files import Appended

_log = logging.getLogger(__name__)


def run(
    names: Iterable[str], out: Path, workers: int = 1, smoke: bool = False, minutes: float = 0.0, longer: bool = False
) -> list[str]:
    """Run what is left of some findings; return what failed, a line each. Rows of other settings stay, and count for nothing.

    minutes: after which units that are not finished are given up, to be run by the same command later; 0 = never. longer: with twice the
    steps, and only the arms of statements that the rows in `out` do not show or contradict.
    """
    out.mkdir(parents=True, exist_ok=True)
    queue = left(names, out, smoke, workers, longer)
    _log.info("%d units left", len(queue))
    failed, start = [], time.monotonic()
    for number, (one, rows, error) in enumerate(_finished(queue, out, workers, 60 * minutes or None), 1):
        seconds = time.monotonic() - start
        if error:
            failed.append(f"{one.finding} {one.arms[0]} seed {one.seed}: {error.strip().splitlines()[-1]}")
            _log.warning("%s", error)
            continue
        file = Appended(out / f"{one.finding}.jsonl")
        for row in rows:
            file.write(json.dumps(row))
        file.close()
        _log.info("%d of %d: %s, %s, seed %d (%.0f s)", number, len(queue), one.finding, one.arms[0], one.seed, seconds)
    return failed


def left(names: Iterable[str], out: Path, smoke: bool = False, workers: int = 1, longer: bool = False) -> list[Unit]:
    """Return the units without rows, in the order in which they are run."""
    found, wave, num_runs = [], 0, 0
    for name in names:
        finding = load.load(name)
        if not isinstance(finding, Finding):
            continue
        arms = set(finding.arms)
        if longer:
            arms, finding = results(name, out, smoke).doubted_arms, finding.longer
        done = {(row["digest"], row["arm"], row["seed"]) for row in read(out / f"{name}.jsonl")}
        for one in unit.units(finding, smoke):
            one = dataclasses.replace(one, arms=tuple(arm for arm in one.arms if arm in arms), longer=longer)
            if any((one.digest, arm, one.seed) not in done for arm in one.arms):
                place = finding.seeds.index(one.seed)
                found.append(((wave, place, -finding.steps * finding.cost), one))
                num_runs += not place
        if num_runs >= workers:
            wave, num_runs = wave + 1, 0
    return [one for _, one in sorted(found, key=lambda item: item[0])]


def _finished(queue: list[Unit], out: Path, workers: int, seconds: float | None):
    """Yield (unit, its rows, what went wrong) as units finish; in this process with workers=0."""
    if workers < 0:
        raise UserError(f"--workers={workers} must be at least 0")
    if not workers:
        for one in queue:
            yield one, *_attempt(one, out)
        return
    context, cores = multiprocessing.get_context("spawn"), sorted(os.sched_getaffinity(0))
    turns = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, _begin, (turns, workers, cores)) as pool:
        waiting = {pool.submit(_attempt, one, out): one for one in queue}
        try:
            for future in as_completed(waiting, timeout=seconds):
                yield waiting[future], *future.result()
        except TimeoutError:
            _log.warning("%.0f minutes are over: the same command goes on later", seconds / 60)
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()


def _begin(turns, workers: int, cores: list[int]) -> None:
    """Give a worker its share of the cores, before JAX starts its threads."""
    with turns.get_lock():
        turn, turns.value = turns.value, turns.value + 1
    size = max(len(cores) // workers, 1)
    begin = turn * size % len(cores)
    os.sched_setaffinity(0, cores[begin : begin + size])


def _attempt(one: Unit, out: Path) -> tuple[list[dict[str, Any]], str]:
    try:
        return unit.run(one, out), ""
    except Exception:
        return [], traceback.format_exc()
