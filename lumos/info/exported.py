"""A release of lumos, written by `lumos export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumos.errors import UserError
from lumos.info.checkpoints import by_part
from lumos.info.reading import reason
from lumos.info.released import tensors_of
from lumos.weights import release


def recognise(path: Path) -> bool:
    return path.is_dir() and release.is_release(path)


def describe(path: Path) -> dict[str, Any]:
    try:
        facts = release.read_facts(path)
    except UserError as error:
        return {"what": "release that cannot be read", "problems": [reason(error)]}
    problems, tensors = list(release.missing(path)), {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= tensors_of(file, problems)
    parts = {name.removeprefix("model.").replace(".", "/"): array for name, array in tensors.items()}
    task = facts.get("task")
    place = "lumos.load" if task == "transformer" else "lumos.load_tokenizer"
    names = ("name", "task", "step", "weights", "fingerprint", "lumos")
    return {
        "what": f"release of a {task}",
        **{name: facts[name] for name in names if name in facts},
        "next": f"{place}({str(path)!r})",
        "bytes": sum(facts["files"].values()),
        "files": {name: {"bytes": size} for name, size in facts["files"].items()},
        "parameters": by_part(parts) if parts else {},
        "provenance": {name: value for name, value in facts["provenance"].items() if not isinstance(value, dict)},
        "problems": problems,
    }
