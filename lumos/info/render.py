"""Facts about a path as aligned lines, or as one JSON object."""

from __future__ import annotations

import json
import math
from typing import Any

from lumos.errors import printable

_CONFIGS = ("config", "changed_from_default")  # blocks of config fields
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def as_json(facts: dict[str, Any]) -> str:
    """Return the facts as one line of JSON. Numbers that are not finite become strings, which JSON can hold."""
    return json.dumps(_plain(facts), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_text(facts: dict[str, Any]) -> str:
    """Return the facts as lines: what it is, single facts, then a block for every dict, a table where its rows are alike.

    Names that end in `bytes` or `seconds` are shown in larger units, fields of a config as they are set. What is empty is
    left out. "problems" stand at the end.
    """
    rest = {name: value for name, value in facts.items() if name not in ("kind", "path", "what", "problems")}
    single = {name: value for name, value in rest.items() if not isinstance(value, dict)}
    lines = [f"{facts['path']}: {facts['what']}", *_rows(single)]
    for name, value in rest.items():
        if isinstance(value, dict) and value:
            lines += ["", _label(name), *_block(name, value)]
    if facts.get("problems"):
        lines += ["", "problems", *(f"  {problem}" for problem in facts["problems"])]
    return "".join(printable(line) + "\n" for line in lines)


def _block(name: str, value: dict[str, Any]) -> list[str]:
    if name in _CONFIGS:
        return [f"  {field} = {setting!r}" for field, setting in value.items()]
    rows = list(value.values())
    alike = all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows)
    return _table(value) if alike else _rows(value)


def _rows(facts: dict[str, Any]) -> list[str]:
    cells = {_label(name): _cell(name, value) for name, value in facts.items()}
    cells = {label: cell for label, cell in cells.items() if cell}
    width = max(map(len, cells), default=0)
    return [f"  {label:{width}}  {cell}" for label, cell in cells.items()]


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    grid = [["", *map(_label, names)]]
    grid += [[str(title), *(_cell(name, row.get(name)) for name in names)] for title, row in rows.items()]
    kept = [i for i in range(len(grid[0])) if i == 0 or any(row[i] for row in grid[1:])]
    widths = {i: max(len(row[i]) for row in grid) for i in kept}
    numeric = {i for i in kept[1:] if all(not row[i] or row[i][0] in "-0123456789" for row in grid[1:])}
    return [
        ("  " + "  ".join(row[i].rjust(widths[i]) if i in numeric else row[i].ljust(widths[i]) for i in kept)).rstrip()
        for row in grid
    ]


def _label(name: str) -> str:
    for ending in ("_bytes", "_seconds"):
        name = name.removesuffix(ending)
    return {"bytes": "size"}.get(name, name).replace("_", " ")


def _cell(name: str, value: Any) -> str:
    """Return a value for people; "" for what there is none of."""
    if value is None or (isinstance(value, (str, list, tuple, dict)) and not value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_cell(key, item)}" for key, item in value.items() if _cell(key, item))
    if isinstance(value, (list, tuple)):
        if all(isinstance(item, (int, float)) for item in value):
            return "x".join(f"{item:g}" for item in value) if len(value) > 1 else f"{value[0]:g}"
        return ", ".join(_cell("", item) for item in value)
    if isinstance(value, str):
        return value
    if name.endswith("bytes"):
        return _bytes(value)
    if name.endswith("seconds"):
        return _duration(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}"


def _bytes(number: float) -> str:
    unit = 0
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {_UNITS[unit]}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
