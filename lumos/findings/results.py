"""What is known of a finding: its rows, the numbers of each arm, and the verdict of each check."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lumos.findings import load, unit, verdict
from lumos.findings.finding import Above, Close, Exact, Finding, sides
from lumos.findings.run import read
from lumos.findings.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Results:
    """rows: those of today's arms, by (arm, seed). verdicts: of each check, None where it has too few seeds."""

    finding: Finding
    rows: dict[tuple[str, int], dict[str, Any]]
    verdicts: list[tuple[Above | Close, Verdict | None]]

    @property
    def word(self) -> str:
        return verdict.summary([found.word if found else "not run yet" for _, found in self.verdicts])

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
    mark, seeds = unit.digest(finding, smoke), finding.seeds
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


def line(check: Above | Close, found: Verdict | None) -> dict[str, str]:
    """Return a check as texts: statement, numbers, verdict."""
    names = [side.partition(":")[0] if isinstance(side, str) else "" for side in sides(check)]
    if found is None:
        return {"statement": check.text, "ours": "", "gap": "", "verdict": "not run yet"}
    parts = [f"{name} {shown(values)}".strip() for name, values in zip(names, (found.one, found.other))]
    sign = ">" if isinstance(check, Above) else "="
    gap = f"{found.gap:+.3f} ± {found.deviation:.3f} [{found.low:+.3f}, {found.high:+.3f}], {found.num} seeds"
    more = f" (needs {found.needed} seeds)" if found.needed else ""
    return {"statement": check.text, "ours": f" {sign} ".join(parts), "gap": gap, "verdict": found.word + more}
