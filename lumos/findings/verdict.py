"""What the seeds say of a claim: reproduced, contradicted, not shown, or underpowered.

A check compares two numbers seed by seed: both were measured with the same seed, so with the same data in the same order. Its gap is the
mean difference over the seeds, its deviation the standard deviation of the differences, its interval the 95 % interval of Student's t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from lumos.findings.finding import Above, Close, sides

REPRODUCED, CONTRADICTED, NOT_SHOWN, UNDERPOWERED = "reproduced", "contradicted", "not shown", "underpowered"
_LEVEL = 0.95
Rows = Mapping[tuple[str, int], Mapping[str, Any]]  # metrics by (arm, seed)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """one, other: the numbers of each seed. gap, deviation: of their difference. needed: where underpowered, how many seeds it would take
    to tell the expected effect, or a larger gap that was found, from none."""

    word: str
    one: np.ndarray
    other: np.ndarray
    gap: float
    deviation: float
    low: float
    high: float
    needed: int = 0

    @property
    def num(self) -> int:
        return len(self.one)


def judge(check: Above | Close, rows: Rows, seeds: tuple[int, ...]) -> Verdict | None:
    """Return what a check's numbers say; None where fewer than two seeds have them."""
    pairs = [[value_of(side, rows, seed) for side in sides(check)] for seed in seeds]
    pairs = np.array([pair for pair in pairs if None not in pair], float)
    if len(pairs) < 2:
        return None
    one, other = pairs.T
    differences = one - other
    gap, deviation, num = float(differences.mean()), float(differences.std(ddof=1)), len(pairs)
    half = half_width(deviation, num)
    word, needed = _word(check, gap, deviation, half)
    return Verdict(
        word,
        one,
        other,
        gap,
        deviation,
        gap - half,
        gap + half,
        needed and seeds_needed(deviation, max(needed, abs(gap))),
    )


def value_of(side: str | float, rows: Rows, seed: int) -> float | None:
    """Return the number "ARM:METRIC" of a seed, or a constant; None where it was not measured."""
    if not isinstance(side, str):
        return float(side)
    arm, _, metric = side.partition(":")
    return rows.get((arm, seed), {}).get(metric)


def half_width(deviation: float, num: int) -> float:
    """Return half of the interval of a mean over `num` seeds."""
    return float(stats.t.ppf((1 + _LEVEL) / 2, num - 1)) * deviation / math.sqrt(num)


def seeds_needed(deviation: float, effect: float) -> int:
    """Return how many seeds it takes until half an interval is smaller than half an effect."""
    num = 2
    while half_width(deviation, num) >= effect / 2 and num < 1000:
        num += 1
    return num


def _word(check: Above | Close, gap: float, deviation: float, half: float) -> tuple[str, float]:
    """Return the verdict, and the effect that more seeds would have to resolve (0: there are enough)."""
    if isinstance(check, Close):
        if abs(gap) + 2 * deviation < check.margin:
            return REPRODUCED, 0.0
        if abs(gap) - 2 * deviation > check.margin:
            return CONTRADICTED, 0.0
        return (UNDERPOWERED, check.margin) if half > check.margin / 2 else (NOT_SHOWN, 0.0)
    if gap > 2 * deviation and gap > half:
        return REPRODUCED, 0.0
    if gap < -2 * deviation and gap < -half:
        return CONTRADICTED, 0.0
    # An interval that holds both no effect and the expected one tells neither.
    if gap - half <= 0 and gap + half >= check.expected:
        return UNDERPOWERED, check.expected
    return NOT_SHOWN, 0.0


def summary(words: list[str]) -> str:
    """Return one verdict for all checks of a finding, with numbers where they differ."""
    if not words:
        return "not run yet"
    if len(set(words)) == 1:
        return words[0]
    order = (REPRODUCED, CONTRADICTED, NOT_SHOWN, UNDERPOWERED, "not run yet")
    return ", ".join(f"{words.count(word)} {word}" for word in order if word in words)
