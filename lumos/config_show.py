"""`lumos config show` and `diff`: the resolved fields of a config, and those in which two configs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumos import config as config_lib
from lumos.config import Config
from lumos.errors import UserError


def show(spec: str, overrides: dict[str, str], *, as_json: bool = False) -> str:
    """Return every field of a config as a line `section.field = value`; what differs from the default says so.

    Args:
      spec: path.py[:variant], config.json, or a training workdir.
      as_json: one JSON object instead: {"config", "fields": {name: {"value", "default", "changed"}}}.

    Raises UserError: there is no such config, or it has wrong fields or values.
    """
    values, defaults = (dict(fields(c)) for c in (resolve(spec, overrides), Config()))
    rows = {n: {"value": v, "default": defaults[n], "changed": v != defaults[n]} for n, v in values.items()}
    if as_json:
        return json.dumps({"config": spec, "fields": rows}) + "\n"
    lines = [
        f"{name} = {row['value']!r}" + (f"  # default: {row['default']!r}" if row["changed"] else "")
        for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def diff(first: str, second: str, *, as_json: bool = False) -> str:
    """Return the fields in which two configs differ, as `section.field = first -> second`, and how many they are.

    With `as_json`: {"configs": [first, second], "fields": {name: [of the first, of the second]}}. Raises UserError.
    """
    one, two = (dict(fields(resolve(spec, {}))) for spec in (first, second))
    rows = {name: [one[name], two[name]] for name in one if one[name] != two[name]}
    if as_json:
        return json.dumps({"configs": [first, second], "fields": rows}) + "\n"
    lines = [f"{name} = {a!r} -> {b!r}" for name, (a, b) in rows.items()]
    count = f"{len(rows)} of {len(one)} fields differ" if rows else f"no field differs ({len(one)} fields)"
    return "\n".join([*lines, f"# {count}: {first} -> {second}"]) + "\n"


def resolve(spec: str, overrides: dict[str, str]) -> Config:
    """Return the config of path.py[:variant], config.json or a workdir, with dotted overrides. Raises UserError."""
    path = Path(spec)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{spec} is a folder without config.json; give path.py[:variant], config.json or a workdir")
        path = path / "config.json"
    try:
        return config_lib.load(str(path) if path.suffix == ".json" else spec, overrides)
    except UserError as error:
        known = str(error).startswith(("no config file", spec.partition(":")[0], "--config."))
        raise error if known else UserError(f"{spec}: {error}") from error


def fields(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every field, in the order of the schema."""
    for name, value in config.to_dict().items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", inner_value) for inner, inner_value in value.items())
        else:
            yield name, value
