"""The unit of work: one training run with one seed, and what is measured of all arms that share the run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from lumos import provenance
from lumos.findings import load
from lumos.findings.finding import Arm, Finding
from lumos.findings.training import Trained, Training, config_of
from lumos.training.match_data import match_data


@dataclasses.dataclass(frozen=True)
class Unit:
    """finding: its name. run: arms that share a training run. digest: of all that decides the numbers."""

    finding: str
    arms: tuple[str, ...]
    seed: int
    digest: str
    steps: int  # by which units are ordered
    smoke: bool = False
    longer: bool = False  # with twice the steps


def units(finding: Finding, smoke: bool = False) -> list[Unit]:
    """Return the units of a finding, seed by seed."""
    runs: dict[str, list[str]] = {}
    for name, arm in finding.arms.items():
        runs.setdefault(repr((arm.recipe, dict(arm.train), arm.before, arm.world)), []).append(name)
    seeds, mark = finding.seeds[:2] if smoke else finding.seeds, digest(finding, smoke)
    return [
        Unit(finding.name, tuple(arms), seed, mark, finding.steps, smoke) for seed in seeds for arms in runs.values()
    ]


def digest(finding: Finding, smoke: bool = False) -> str:
    """Return a short hash of what the finding says of its runs: arms, worlds, budget, measures. Words and checks are left out.

    What the code makes of it is in the provenance of the rows.
    """
    arms = {
        name: dataclasses.asdict(arm) | {"world": repr(arm.world or finding.world)}
        for name, arm in finding.arms.items()
    }
    parts = [arms, finding.base, finding.steps, repr(finding.measures), smoke]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=dict).encode()).hexdigest()[:12]


def run(unit: Unit, out: Path) -> list[dict[str, Any]]:
    """Train and measure; return a row for each arm."""
    finding, start = load.load(unit.finding), time.process_time()
    finding = finding.longer if unit.longer else finding
    world = (finding.arms[unit.arms[0]].world or finding.world).for_run(unit.seed, unit.smoke)
    data = world.write(out / "data" / hashlib.sha256(repr(world).encode()).hexdigest()[:12])
    made = lambda name, stage="": _training(config_of(finding, finding.arms[name], data, unit.smoke, stage=stage))
    training, arm = made(unit.arms[0]), finding.arms[unit.arms[0]]
    params = made(unit.arms[0], "before").run(unit.seed)[0] if arm.before is not None else None
    params, losses = training.run(unit.seed, params)
    trained_seconds, rows = time.process_time() - start, []
    for name in unit.arms:
        start = time.process_time()
        config = dataclasses.replace(_settings(finding, finding.arms[name], data, unit.smoke, training), seed=unit.seed)
        trained = Trained(config, world, params, world.num_test, training.mesh)
        metrics: dict[str, Any] = {}
        for measure in finding.measures:
            metrics |= measure(trained)
        metrics |= {"loss": losses[-1], "losses": losses[:: max(len(losses) // 40, 1)]}
        seconds = time.process_time() - start + trained_seconds / len(unit.arms)
        row = {
            "finding": unit.finding,
            "arm": name,
            "seed": unit.seed,
            "digest": unit.digest,
            "steps": config.train.num_steps,
        }
        rows.append(row | {"seconds": round(seconds, 1), "metrics": metrics, "provenance": provenance.describe(config)})
    return rows


def _settings(finding: Finding, arm: Arm, data: Path, smoke: bool, training: Training):
    return dataclasses.replace(training.config, generate=config_of(finding, arm, data, smoke).generate)


@functools.lru_cache(maxsize=1)
def _training(config) -> Training:
    return Training(match_data(config))
