"""`lumos config show` and `diff`: the resolved fields of a config, and those in which two configs differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumos import config_loading
from lumos.config import Config
from lumos.errors import UserError
from lumos.slots import Slot


def show(spec: str, overrides: dict[str, str], *, as_json: bool = False) -> str:
    """Return every field of a config as a line `section.field = value`; what differs from the default says so.

    Args:
      spec: path.py[:variant], config.json, or a training workdir.
      as_json: one JSON object instead: {"config", "fields": {name: {"value", "default", "changed"}}}.

    Raises UserError: there is no such config, or it has wrong fields or values.
    """
    found = _with_defaults(load_any(spec, overrides), Config())
    rows = {name: {"value": v, "default": default, "changed": v != default} for name, v, default in found}
    if as_json:
        return json.dumps({"config": spec, "fields": rows}) + "\n"
    lines = [
        f"{name} = {row['value']!r}" + (f"  # default: {row['default']!r}" if row["changed"] else "")
        for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def diff(first: str, second: str, *, as_json: bool = False) -> str:
    """Return the fields in which two configs differ, as `section.field = first -> second`, and how many they are.

    A setting that only one of two members has is None on the other side.
    With `as_json`: {"configs": [first, second], "fields": {name: [of the first, of the second]}}. Raises UserError.
    """
    one, two = (dict(fields(load_any(spec, {}))) for spec in (first, second))
    rows = {name: [one.get(name), two.get(name)] for name in one | two if one.get(name) != two.get(name)}
    if as_json:
        return json.dumps({"configs": [first, second], "fields": rows}) + "\n"
    lines = [f"{name} = {a!r} -> {b!r}" for name, (a, b) in rows.items()]
    count = f"{len(rows)} of {len(one | two)} fields differ" if rows else f"no field differs ({len(one)} fields)"
    return "\n".join([*lines, f"# {count}: {first} -> {second}"]) + "\n"


def load_any(spec: str, overrides: dict[str, str]) -> Config:
    """Return the config of path.py[:variant], config.json or a workdir, with dotted overrides. Raises UserError."""
    path = Path(spec)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{spec} is a folder without config.json; give path.py[:variant], config.json or a workdir")
        path = path / "config.json"
    try:
        return config_loading.load(str(path) if path.suffix == ".json" else spec, overrides)
    except UserError as error:
        known = str(error).startswith(("no config file", spec.partition(":")[0], "--config."))
        raise error if known else UserError(f"{spec}: {error}") from error


def changed(config: Config) -> dict[str, Any]:
    """Return what differs from the defaults by dotted name; settings of a slot differ from those of their member."""
    return {name: value for name, value, default in _with_defaults(config, Config()) if value != default}


def fields(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every field, in the order of the schema.

    Of a slot the value is the name of its member; the settings of the member follow. So every line is an override.
    """
    return ((name, value) for name, value, _ in _with_defaults(config, Config()))


def _with_defaults(values: Any, defaults: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(values):
        name, value, default = f"{prefix}{field.name}", getattr(values, field.name), getattr(defaults, field.name)
        if isinstance(value, Slot):
            yield name, value.name, default.name
            default = type(value)()  # settings are compared with those of the same member
        if dataclasses.is_dataclass(value):
            yield from _with_defaults(value, default, f"{name}.")
        else:
            yield name, value, default
