"""`lumos info`: the kinds of things that lumos reads and writes, tried in order.

Each kind has a file with two functions: `recognise(path)` says whether a path is one, `describe(path)` returns what there is
to say of it as a dict of JSON values. Every dict has "kind", "path", "what" (one sentence) and "problems" (sentences: what is
damaged or missing). They only read, and import what they need when they are called.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from lumos import files
from lumos.errors import UserError, printable
from lumos.info import (
    checkpoints,
    config_file,
    dump,
    exported,
    manifest,
    rejected,
    released,
    shapes,
    shard,
    token_folder,
    workdir,
)

# In this order: a dump has the files of a workdir too, and an exported folder a config.json.
KINDS: dict[str, ModuleType] = {
    "checkpoint": checkpoints,
    "dump": dump,
    "release": exported,
    "released": released,
    "workdir": workdir,
    "tokens": token_folder,
    "moving_shapes": shapes,
    "shard": shard,
    "rejected": rejected,
    "manifest": manifest,
    "config": config_file,
}
_KNOWN = (
    "training workdirs, checkpoints in them, dumps of steps, manifests (.jsonl), token folders, record shards (.array_record), "
    "moving_shapes folders, releases, released Lumos-1 and Cosmos weights, configs (.py[:variant], .json)"
)
_MAX_CHILDREN = 200  # of a folder that is nothing itself


def describe(path: str | Path) -> dict[str, Any]:
    """Return the facts about a path. Nothing is written. Raises UserError where it is nothing that lumos knows."""
    text = os.fspath(path)
    path = files.path(text)
    kind = kind_of(path)
    if kind is None:
        raise UserError(_unknown(text))
    return {"kind": kind, "path": text, **KINDS[kind].describe(path)}


def kind_of(path: Path) -> str | None:
    return next((kind for kind, module in KINDS.items() if module.recognise(path)), None)


def _unknown(text: str) -> str:
    path, name = files.path(text), printable(text)
    if files.is_remote(text) and not path.exists() or not files.is_remote(text) and not os.path.lexists(path):
        return f"{name}: no such file or folder"
    if not path.exists():
        return f"{name}: a link to {printable(os.readlink(path))}, which is not there"
    if path.is_dir():
        inside = [(child.name, kind_of(child)) for child in sorted(path.iterdir())[:_MAX_CHILDREN]]
        inside = [f"{printable(child)} ({kind})" for child, kind in inside if kind]
        if inside:
            more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
            return f"{name} is a folder that holds {', '.join(inside[:5])}{more}; give one of these"
    elif around := kind_of(path.parent):
        return f"{name} is not known by itself; give the folder around it, {printable(str(path.parent))} ({around})"
    return f"{name}: not known; lumos knows {_KNOWN}"
