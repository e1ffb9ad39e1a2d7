"""A config: `path.py[:variant]` or a resolved config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lumos
from lumos import files
from lumos.errors import UserError
from lumos.info import mixture
from lumos.info.reading import read_object, reason

_SHIPPED = Path(lumos.__file__).parent / "configs"


def recognise(path: Path) -> bool:
    head = Path(str(path).partition(".py:")[0] + ".py") if ".py:" in str(path) else path
    if head.suffix == ".py":  # read before it is run: other programs are no configs
        files = [file for file in (head, _SHIPPED / head.name) if file.is_file()]
        return bool(files) and b"def get_config" in files[0].read_bytes()
    return path.suffix == ".json" and is_resolved(path)


def is_resolved(path: Path) -> bool:
    """Return whether a file holds a config as runs save it."""
    return path.is_file() and {"task", "data", "model"} <= read_object(path, []).keys()


def _is_there(name: str) -> bool:
    return files.is_remote(name) or files.path(name).exists()


def describe(path: Path) -> dict[str, Any]:
    from lumos.config_show import changed, load_any
    from lumos.data.sources import parse_paths

    try:
        config = load_any(str(path), {})
    except UserError as error:
        return {"what": "config that cannot be used", "problems": [reason(error)]}
    problems: list[str] = []
    there = bool(config.data.path) and all(_is_there(name) for name, _ in parse_paths(config.data.path))
    return {
        "what": f"config of a {config.task} run",
        "name": config.name,
        "task": config.task,
        "next": f"lumos config show {path}",
        "changed_from_default": changed(config),
        "draws": mixture.draws(config, problems) if there else {},
        "problems": problems,
    }
