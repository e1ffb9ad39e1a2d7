"""What a finding is: a claim of a paper as statements that a machine can check, and what is trained and measured to check them.

A finding is written down, with its budget and its metrics, before it is run: `configs/findings/NAME.py` has `get_finding()`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lumos.findings.worlds import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the methods that are compared: a recipe of configs/recipes, with changes.

    train: values of config fields by their dotted names, such as {"corruption.cells": slot("tube")}. generate: of fields of the section
    `generate`; arms that differ in these alone share a training run. before: changes of a first stage, whose weights the run starts from.
    """

    recipe: str = "lumos1"
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    generate: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    world: World | None = None  # by default that of the finding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Above:
    """A number is higher than another one. Numbers are "ARM:METRIC", or a constant.

    expected: the gap that the paper, or a pilot with other seeds, lets expect; it says what an interval must tell from 0.
    """

    text: str  # the statement in plain words
    high: str | float
    low: str | float
    expected: float

    def __post_init__(self):
        if self.expected <= 0:
            raise ValueError(f"expected={self.expected} must be positive: the gap that is looked for")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Close:
    """Two numbers differ by less than a margin."""

    text: str
    one: str | float
    other: str | float
    margin: float

    def __post_init__(self):
        if self.margin <= 0:
            raise ValueError(f"margin={self.margin} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim that is checked by training.

    measures: functions (`lumos.findings.measures`) of a trained model, each a dict of metrics by name. curve: the metric, a list, that the
    report plots over frames for every arm.
    """

    name: str
    claim: str  # one plain sentence
    paper: str  # with its section or table
    published: str  # the figure in the paper, as text
    # The tests ("FILE::TEST" in tests/) that check what is compared on cases with a known answer; needed before a statement can be doubted
    mechanism: tuple[str, ...] = ()
    world: World
    arms: Mapping[str, Arm]
    measures: tuple[Callable[..., dict[str, Any]], ...]
    checks: tuple[Above | Close, ...]
    steps: int = 400
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # config fields of all arms
    # From the metrics of all arms of a seed, by arm, numbers that need all of them, which checks name "all:METRIC"
    derived: Callable[[Mapping[str, Mapping[str, Any]]], dict[str, Any]] | None = None
    cost: float = 1.0  # seconds of a step relative to others, by which runs are ordered
    curve: str = ""
    note: str = ""  # what is different here, and what that means for the claim

    @property
    def longer(self) -> Finding:
        """The finding with twice the steps, for statements that were not reproduced with its own."""
        twice = lambda changes: {k: 2 * v if k == "train.num_steps" else v for k, v in changes.items()}
        arms = {name: dataclasses.replace(arm, train=twice(arm.train)) for name, arm in self.arms.items()}
        return dataclasses.replace(self, steps=2 * self.steps, arms=arms)

    def __post_init__(self):
        if len(self.seeds) < 3:
            raise ValueError(f"seeds={self.seeds}: a deviation needs three at least")
        for check in self.checks:
            for value in sides(check):
                if isinstance(value, str) and value.partition(":")[0] not in {
                    *self.arms,
                    *(["all"] * bool(self.derived)),
                }:
                    raise ValueError(f"{self.name}: {value!r} names no arm; arms: {', '.join(self.arms)}")


def sides(check: Above | Close) -> tuple[str | float, str | float]:
    """Return the two numbers that a check compares."""
    return (check.high, check.low) if isinstance(check, Above) else (check.one, check.other)


@dataclasses.dataclass(frozen=True)
class Statement:
    """An exact statement: what is counted, the published value, and how it is computed here."""

    text: str
    published: Any  # a number, or a list of them
    ours: Callable[[], Any]
    within: float = 0.0  # by how much numbers may differ: the last digit that is published, where ours are drawn

    def holds(self, ours: Any) -> bool:
        """Return whether what was computed is what is published."""
        return bool(np.all(np.abs(np.subtract(ours, self.published)) <= self.within))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact:
    """A claim that needs no training: step counts, schedules, identities."""

    name: str
    claim: str
    paper: str
    published: str
    statements: tuple[Statement, ...]
    note: str = ""
