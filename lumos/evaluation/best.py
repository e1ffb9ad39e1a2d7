"""The best cell of a sweep against the run's own settings: chosen on some seeds, compared on the others.

The best of many cells is partly the luckiest. So the first half of the seeds chooses, and only the other half is compared, clip by clip:
cells of one seed have the same prompts and the same noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lumos.evaluation import metric, rows

_FIRST = "prompts/all_three"  # what is asked for first where nothing else is


def metric_of(found: list[dict[str, Any]], wanted: str = "") -> str:
    """Return the metric of quality by which cells are ranked: that wanted, or one in which they differ; "" if there is none."""
    values: dict[str, set[float]] = {}
    for row in found:
        for name, value in row["metrics"].items():
            if value["better"] and isinstance(value["value"], float) and not name.startswith("cost/"):
                values.setdefault(name, set()).add(value["value"])
    if wanted:
        return wanted if wanted in values else ""
    varied = [name for name, seen in values.items() if len(seen) > 1]
    return _FIRST if _FIRST in varied else next(iter(varied), "")


def compare(found: list[tuple[Path, dict[str, Any]]], wanted: str = "") -> dict[str, Any] | None:
    """Return the best cell of some rows against the default one; None where there is no metric, or not one default.

    The result: `metric` and whether `better` is "high" or "low", the `chosen_on` and `compared_on` seeds, `best` and `default`, the cells
    without their seeds, each with its metric on the compared seeds, and `difference`, best minus default, paired over clips. With a
    single seed nothing is compared: `difference` is None, and the metrics are those of that seed.
    """
    name = metric_of([row for _, row in found], wanted)
    groups: dict[tuple, dict[tuple, tuple[Path, dict[str, Any]]]] = {}
    for folder, row in found:
        if name in row["metrics"]:
            cell = row["cell"]
            key = tuple((field, str(value)) for field, value in without_seed(cell).items())
            groups.setdefault(key, {})[cell.get("seed", 0), cell.get("prompts", "")] = folder, row
    defaults = [key for key, group in groups.items() if all(row.get("default") for _, row in group.values())]
    step_of = lambda key: next(iter(groups[key].values()))[1]["cell"].get("step", 0)
    newest = [key for key in defaults if step_of(key) == max(map(step_of, defaults))]
    if len(newest) != 1:  # none, or those of several sweeps
        return None
    (default,) = newest
    places = sorted(groups[default])
    whole = {key: group for key, group in groups.items() if sorted(group) == places}
    seeds = sorted({seed for seed, _ in places})
    choosing = seeds[: max(len(seeds) // 2, 1)]
    compared = seeds[len(choosing) :] or seeds
    chosen = lambda group: np.mean([group[p][1]["metrics"][name]["value"] for p in places if p[0] in choosing])
    sign = -1 if groups[default][places[0]][1]["metrics"][name]["better"] == "low" else 1
    best = max(whole, key=lambda key: (sign * chosen(whole[key]), key == default))
    values = {key: _values(whole[key], [p for p in places if p[0] in compared], name) for key in (best, default)}
    if any(found is None for found in values.values()):
        return None
    what = f"{name} on seeds {', '.join(map(str, compared))}"
    of = lambda key: {
        "cell": without_seed(next(iter(whole[key].values()))[1]["cell"]),
        **metric.mean(values[key], what).to_dict(),
    }
    difference = None
    if best != default and len(seeds) > 1 and len(values[best]) == len(values[default]):
        difference = metric.mean(values[best] - values[default], f"{what}; best minus default, clip by clip").to_dict()
    return {
        "metric": name, "better": "low" if sign < 0 else "high", "chosen_on": choosing, "compared_on": compared if len(seeds) > 1 else [],
        "best": of(best), "default": of(default), "is_default": best == default, "difference": difference, "cells": len(whole),
    }  # fmt: skip


def _values(group, places, name: str) -> np.ndarray | None:
    """Return the values of a metric clip by clip, one place behind the other; None where a row has none."""
    found = [rows.values_of(group[place][0]).get(name) for place in places]
    return None if any(values is None for values in found) else np.concatenate(found)


def without_seed(cell: dict[str, Any]) -> dict[str, Any]:
    """Return what says of a cell how clips are made."""
    return {name: value for name, value in cell.items() if name not in ("seed", "prompts")}


def sentence(found: dict[str, Any]) -> str:
    """Return the comparison in words."""
    name, seeds = found["metric"], lambda numbers: f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
    number = lambda x: f"{x['value']:.4g} [{x['low']:.4g}, {x['high']:.4g}]"
    begin = f"Best of {found['cells']} cells by {name} ({found['better']} is better)"
    if found["is_default"]:
        return f"{begin}, chosen on {seeds(found['chosen_on'])}: the run's own settings, {number(found['best'])}."
    own = found["default"]["cell"]
    cell = ", ".join(
        f"{field.removeprefix('generate.')} {value}"
        for field, value in found["best"]["cell"].items()
        if own.get(field) != value
    )
    if found["difference"] is None:
        return (
            f"{begin} on {seeds(found['chosen_on'])}: {cell}, {number(found['best'])}; the run's own settings {number(found['default'])}. The best "
            "of many is partly luck: give two or more --seeds, and half of them choose and half compare."
        )
    return (
        f"{begin}, chosen on {seeds(found['chosen_on'])}: {cell}. On {seeds(found['compared_on'])}, which did not choose: {number(found['best'])}; the "
        f"run's own settings {number(found['default'])}; difference {number(found['difference'])} (95 %, paired over "
        f"{found['difference']['n']} values)."
    )
