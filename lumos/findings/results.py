"""What is known of a finding: its rows, the numbers of each arm, and the verdict of each check."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from lumos.findings import load, unit, verdict
from lumos.findings.finding import Above, Close, Exact, Finding, sides
from lumos.findings.verdict import CONTRADICTED, NOT_SHOWN, Verdict


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; a line that a kill cut off counts for nothing."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


@dataclasses.dataclass(frozen=True)
class Results:
    """rows: those of today's arms, by (arm, seed). verdicts: of each check, None where it has too few seeds. longer: with twice the steps,
    of checks that are not shown or contradicted and were run so."""

    finding: Finding
    rows: dict[tuple[str, int], dict[str, Any]]
    verdicts: list[tuple[Above | Close, Verdict | None]]
    longer: dict[Above | Close, Verdict] = dataclasses.field(default_factory=dict)

    @property
    def word(self) -> str:
        return verdict.summary([found.word if found else "not run yet" for _, found in self.verdicts])

    @property
    def doubted(self) -> list[Above | Close]:
        """The checks that are not shown or contradicted."""
        return [check for check, found in self.verdicts if found and found.word in (CONTRADICTED, NOT_SHOWN)]

    @property
    def doubted_arms(self) -> set[str]:
        """The arms that these checks compare."""
        named = {side.partition(":")[0] for check in self.doubted for side in sides(check) if isinstance(side, str)}
        return set(self.finding.arms) if "all" in named else named

    @property
    def minutes(self) -> float:
        """Minutes of two cores for all seeds, a process on each."""
        return sum(row["seconds"] for row in self.rows.values()) / 2 / 60

    def steps(self, arm: str) -> int:
        """Return how long an arm was trained."""
        return next(row["steps"] for (name, _), row in self.rows.items() if name == arm)

    def values(self, arm: str, metric: str) -> np.ndarray:
        """Return the values of a metric over the seeds, [seeds, ...]."""
        found = [row["metrics"].get(metric) for (name, _), row in sorted(self.rows.items()) if name == arm]
        return np.array([value for value in found if value is not None], float)


def results(name: str, folder: Path, smoke: bool = False) -> Results | Exact:
    """Return what the rows in `folder`/NAME.jsonl say; an exact finding as it is."""
    finding = load.load(name)
    if isinstance(finding, Exact):
        return finding
    found = _found(finding, folder, smoke)
    longer = dict(_found(finding.longer, folder, smoke).verdicts)
    return dataclasses.replace(found, longer={check: longer[check] for check in found.doubted if longer[check]})


def _found(finding: Finding, folder: Path, smoke: bool) -> Results:
    mark, seeds, name = unit.digest(finding, smoke), finding.seeds, finding.name
    rows = {(row["arm"], row["seed"]): row for row in read(folder / f"{name}.jsonl") if row["digest"] == mark}
    metrics = {key: row["metrics"] for key, row in rows.items()}
    if finding.derived:
        for seed in seeds:
            arms = {arm: metrics[arm, seed] for arm in finding.arms if (arm, seed) in metrics}
            if len(arms) == len(finding.arms):
                metrics["all", seed] = finding.derived(arms)
    return Results(finding, rows, [(check, verdict.judge(check, metrics, seeds)) for check in finding.checks])


def shown(values: np.ndarray) -> str:
    """Return mean and deviation over seeds as text; a constant as it is."""
    digits = 3 if abs(values.mean()) < 10 else 1
    if len(values) > 1 and values.std() > 0:
        return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"
    return f"{values.mean():.{digits}f}"


def lines(found: Results) -> list[dict[str, str]]:
    """Return every check as texts: statement, numbers, verdict."""
    return [_line(check, verdict, found) for check, verdict in found.verdicts]


def _line(check: Above | Close, found: Verdict | None, results: Results) -> dict[str, str]:
    names = [side.partition(":")[0] if isinstance(side, str) else "" for side in sides(check)]
    if found is None:
        return {"statement": check.text, "ours": "", "gap": "", "verdict": "not run yet"}
    parts = [f"{name} {shown(values)}".strip() for name, values in zip(names, (found.one, found.other))]
    sign = ">" if isinstance(check, Above) else "="
    gap = lambda v: f"{v.gap:+.3f} ± {v.deviation:.3f} [{v.low:+.3f}, {v.high:+.3f}], {v.num} seeds"
    more = f" (needs {found.needed} seeds)" if found.needed else ""
    if again := results.longer.get(check):
        more += f"; with twice the steps {again.word}: {gap(again)}"
    return {"statement": check.text, "ours": f" {sign} ".join(parts), "gap": gap(found), "verdict": found.word + more}
