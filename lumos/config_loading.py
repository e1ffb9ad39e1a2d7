"""Loads a config: a Python file, or the JSON that a run saved, and overrides on top.

A run is a Python file under `configs/` with `get_config(variant)`, which starts from `default()` (a locked
`ml_collections.ConfigDict` that holds every field of lumos/config.py) and changes what it needs. `parse` turns such a
ConfigDict into frozen dataclasses and checks it; everything else in lumos takes those.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import traceback
import typing
from pathlib import Path
from typing import Any

import ml_collections

from lumos import config_upgrade, files
from lumos.config import Config
from lumos.errors import UserError, suggest
from lumos.slots import Slot
from lumos.typed_values import fill_slots, from_dict, is_slot, member_of

PACKAGED = Path(__file__).parent / "configs"  # the configs that ship with lumos


def default() -> ml_collections.ConfigDict:
    """Return every field at its default, locked: a misspelt field raises with a suggestion."""
    return _to_config_dict(Config())


def parse(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Check a config and return the frozen form. Raises UserError with one line."""
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return from_dict(Config, values, "config")


def load(spec: str, overrides: dict[str, Any] | None = None) -> Config:
    """Load `file.py[:variant[,smoke]]`, or a resolved `config.json`; then apply dotted overrides.

    A file that does not exist under the given path is looked up among the configs that ship with lumos.
    """
    path_text, variant = _split_variant(str(spec))
    path = _find(path_text)
    if path.suffix == ".json":
        tree = _to_config_dict(parse(read_resolved(path)))
    elif path.suffix == ".py":
        module_spec = importlib.util.spec_from_file_location(f"lumos_config_{path.stem}", path)
        module = importlib.util.module_from_spec(module_spec)
        try:
            module_spec.loader.exec_module(module)
            tree = module.get_config(variant) if variant else module.get_config()
            _check_variant(module.get_config, variant, tree, path_text)
        except UserError:
            raise
        except Exception as error:  # whatever the user's code raises
            line = next(
                (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), 0
            )
            raise UserError(f"{path_text}:{line}: {type(error).__name__}: {_one_line(error)}") from error
    else:
        raise UserError(f"{path_text} is no config: the suffix must be .py or .json")
    return _apply(tree, overrides or {})


def _check_variant(get_config, variant: str, tree: ml_collections.ConfigDict, name: str) -> None:
    """Raise UserError if a word of a variant has no effect: the config is the same without it, and with any other word."""
    words = variant.split(",") if variant else []
    for i, word in enumerate(words):
        try:
            others = [get_config(",".join([*words[:i], *more, *words[i + 1 :]])) for more in ([], ["no such word"])]
        except Exception:  # a config may refuse it as it likes
            continue
        if all(other.to_dict() == tree.to_dict() for other in others):
            raise UserError(f"{name} has no variant {word!r} (in {variant!r}); its docstring names them")


def read_resolved(path: Path) -> dict[str, Any]:
    """Return the fields of a config that was saved as JSON. Raises UserError.

    One of an earlier form has the values that mean what was done then (config_upgrade.py).
    """
    try:
        values = json.loads(files.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not the JSON of a config: {_one_line(error)}") from error
    if not isinstance(values, dict):
        return values
    return _from_here(path.parent, config_upgrade.upgrade(values))


def _from_here(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a release (lumos/weights/release.py) with its relative paths as seen from the current folder."""
    if not (folder / "release.json").is_file():
        return values
    text = values.get("text")
    if values.get("tokenizer_workdir"):
        values = values | {"tokenizer_workdir": str(folder / values["tokenizer_workdir"])}
    if isinstance(text, dict) and text.get("model"):
        values = values | {"text": text | {"model": str(folder / text["model"])}}
    return values


def override(config: Config, overrides: dict[str, Any]) -> Config:
    """Return the config with dotted overrides applied. Raises UserError."""
    return _apply(_to_config_dict(config), overrides)


def _apply(tree: ml_collections.ConfigDict, overrides: dict[str, Any]) -> Config:
    values = tree.to_dict() if isinstance(tree, ml_collections.ConfigDict) else tree
    if not isinstance(values, dict):
        return parse(values)  # says what is wrong
    # The name of a member comes before its settings, whatever the order on the command line.
    for dotted, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        values = fill_slots(Config, values, "config")  # a slot has the settings of its member, each to be overridden
        _override(values, dotted, value)
    return parse(values)


def _split_variant(spec: str) -> tuple[str, str]:
    """Return the path and the variant of `path:variant`. Folders may have colons in their names."""
    head, _, tail = spec.rpartition(":")
    if files.is_remote(spec):
        return (spec, "") if "/" in tail else (head, tail)
    if Path(spec).exists():
        return spec, ""
    if head and Path(head).exists():
        return head, tail
    path, _, variant = spec.partition(":")
    return path, variant


def _find(path_text: str) -> Path:
    path = files.path(path_text)
    if path.exists():
        return files.kept(path)
    packaged = PACKAGED / path_text.removeprefix("configs/")
    if packaged.exists():
        return packaged
    names = sorted(f"configs/{p.relative_to(PACKAGED).as_posix()}" for p in PACKAGED.rglob("*.py"))
    near = difflib.get_close_matches(path_text, names, 1, 0.85)
    known = f"did you mean {near[0]!r}?" if near else f"shipped configs: {', '.join(names)}"
    raise UserError(f"no config file {path_text!r}; {known}")


def _override(values: dict[str, Any], dotted: str, text: Any) -> None:
    """Set `a.b` to `text`, read as a Python literal when the field is not a string, as a member's name where it is a slot."""
    node, cls, (*parents, leaf) = values, Config, dotted.split(".")
    for name in parents:
        kind = _kind(cls, name, dotted)
        node = node[name]
        cls = member_of(kind, node, f"config.{dotted}") if is_slot(kind) else kind
    kind = _kind(cls, leaf, dotted)
    if is_slot(kind):
        node[leaf] = {"name": text} if isinstance(text, str) else text
        return
    if dataclasses.is_dataclass(kind):
        fields = ", ".join(sorted(field.name for field in dataclasses.fields(kind)))
        raise UserError(f"--config.{dotted} is a section; set one of its fields: {fields}")
    if isinstance(text, str) and kind is not str:
        literal = {"true": "True", "false": "False"}.get(text.lower(), text)
        try:
            text = ast.literal_eval(literal)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            old = node[leaf]
            raise UserError(f"--config.{dotted}={text}: expected {type(old).__name__} like {old!r}") from error
    node[leaf] = text  # `parse` checks it


def _kind(cls: Any, name: str, dotted: str) -> Any:
    """Return the type of a field. Raises UserError where there is none."""
    kinds = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    names = sorted(field.name for field in dataclasses.fields(cls)) if kinds else []
    if name in names:
        return kinds[name]
    if kinds and issubclass(cls, Slot):
        others = [n for n, m in cls.choices.items() if name in (field.name for field in dataclasses.fields(m))]
        slot_name = dotted.rpartition(".")[0]
        hint = f"; of {', '.join(others)}: add --config.{slot_name}={others[0]}" if others else suggest(name, names)
        raise UserError(f"unknown config field {dotted!r}: {cls.name!r} has no such setting{hint}")
    hint = suggest(name, names) if names else f"; config.{dotted.removesuffix(f'.{name}')} has no fields"
    raise UserError(f"unknown config field {dotted!r}{hint}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())


def _to_config_dict(config: Config) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(config.to_dict(), convert_dict=True).lock()
