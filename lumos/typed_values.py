"""Reads nested dicts into frozen dataclasses: every value has the type of its field, or there is an error that names it."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from lumos.errors import UserError, short, suggest
from lumos.slots import Slot

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
        kwargs[name] = _reader(kinds[name])(kinds[name], value, f"{where}.{name}")
    try:
        return cls(**kwargs)
    except ValueError as error:  # what a dataclass says of its own values
        raise UserError(f"{where}: {error}") from error


def to_dict(value: Any) -> Any:
    """Return a dataclass as nested dicts; a slot's member has its name beside its settings."""
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return tuple(map(to_dict, value))
    if not dataclasses.is_dataclass(value):
        return value
    fields = {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"name": value.name, **fields} if isinstance(value, Slot) else fields


def fill_slots(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return nested values in which every slot has all settings of its member, so that each can be overridden.

    Raises UserError on a name that is not a member's.
    """
    kinds = typing.get_type_hints(cls)
    filled = dict(values)
    for name, value in values.items():
        kind = kinds.get(name)
        if is_slot(kind):
            member = member_of(kind, value, f"{where}.{name}")
            settings = {} if isinstance(value, str) else dict(value)
            filled[name] = to_dict(member()) | fill_slots(member, settings, f"{where}.{name}") | {"name": member.name}
        elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
            filled[name] = fill_slots(kind, value, f"{where}.{name}")
    return filled


def is_slot(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Slot)


def member_of(family: type[Slot], value: Any, where: str) -> type[Slot]:
    """Return the member of a family that a value names: its name, or a dict with it. Raises UserError."""
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise UserError(f"{where} must be slot(name, ...), got {short(value)}; names: {', '.join(family.choices)}")
    if name not in family.choices:
        raise UserError(f"{where}={short(name)}{suggest(name, tuple(family.choices))}")
    return family.choices[name]


def _reader(kind: Any):
    if is_slot(kind):
        return _read_slot
    return from_dict if dataclasses.is_dataclass(kind) else _coerce


def _read_slot(family: type[Slot], value: Any, where: str) -> Slot:
    member = member_of(family, value, where)
    settings = {} if isinstance(value, str) else {name: item for name, item in value.items() if name != "name"}
    return from_dict(member, settings, where)


def _coerce(kind: Any, value: Any, where: str) -> Any:
    """Return value as `kind`; int becomes float and lists become tuples, nothing else changes silently."""
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise UserError(f"{where} must have {len(kinds)} entries, got {short(value)}")
        return tuple(_reader(kind)(kind, item, where) for kind, item in zip(kinds, value))
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
