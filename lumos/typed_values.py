"""Reads nested dicts into frozen dataclasses: every value has the type of its field, or there is an error that names it."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from lumos.errors import UserError, short, suggest

_INT_LIMIT = 2**31


def from_dict(cls, values: dict[str, Any], where: str):
    """Return the dataclass `cls` with these fields, sections read likewise; `where` is the dotted name for errors.

    Raises UserError on unknown fields and values of another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a section with fields, got {type(values).__name__} {short(values)}")
    kinds = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(f"unknown field {short(name)} in {where}{suggest(name, sorted(fields))}")
    kwargs = {}
    for name, value in values.items():
        read = from_dict if dataclasses.is_dataclass(kinds[name]) else _coerce
        kwargs[name] = read(kinds[name], value, f"{where}.{name}")
    return cls(**kwargs)


def _coerce(kind: Any, value: Any, where: str) -> Any:
    """Return value as `kind`; int becomes float and lists become tuples, nothing else changes silently."""
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise UserError(f"{where} must have {len(kinds)} entries, got {short(value)}")
        return tuple(_coerce(kind, item, where) for kind, item in zip(kinds, value))
    if type(value) is int and abs(value) >= _INT_LIMIT:
        raise UserError(f"{where}={short(value)} is too large")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        if kind is float and not math.isfinite(value):
            raise UserError(f"{where}={value} must be finite")
        return value
    name = "tuple" if typing.get_origin(kind) is tuple else kind.__name__
    raise UserError(f"{where} must be {name}, got {type(value).__name__} {short(value)}")
