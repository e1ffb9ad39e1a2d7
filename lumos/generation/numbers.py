"""Numbers among the sampling settings that a program takes as arguments: one compiled program serves all their values.

A class names its own in `NUMBERS`, each with the value at which the program is another one (None: there is no such value).
Everything else of the settings decides what the program is.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

_TRACED = "an argument"  # what stands in the settings in the place of a number


def split(settings: Any) -> tuple[Any, dict[str, float]]:
    """Return what of the settings makes up a program, which can be a key, and its numbers by their dotted names."""
    numbers: dict[str, float] = {}

    def strip(node: Any, path: str) -> Any:
        changes = {}
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                changes[field.name] = strip(value, f"{path}{field.name}.")
            elif field.name in getattr(node, "NUMBERS", {}) and value != node.NUMBERS[field.name]:
                numbers[path + field.name], changes[field.name] = float(value), _TRACED
        return _with(node, changes)

    return strip(settings, ""), numbers


def join(structure: Any, numbers: dict[str, Any], path: str = "") -> Any:
    """Return settings of this structure with these numbers, which may be traced."""
    changes = {}
    for field in dataclasses.fields(structure):
        value = getattr(structure, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = join(value, numbers, f"{path}{field.name}.")
        elif path + field.name in numbers:
            changes[field.name] = numbers[path + field.name]
    return _with(structure, changes)


def _with(node: Any, changes: dict[str, Any]) -> Any:
    """Return a copy with other fields, unchecked: a traced number cannot be looked at, and was checked when it was read."""
    made = copy.copy(node)
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made
