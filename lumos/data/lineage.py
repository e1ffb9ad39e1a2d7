"""Where a manifest that was made of another one comes from: `<manifest>.lineage.json`, its steps, the first one first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumos import files

Steps = list[dict[str, Any]]


def path_of(manifest: Path) -> Path:
    return manifest.with_name(manifest.name + ".lineage.json")


def read(manifest: Path) -> Steps:
    """Return the steps; none where the manifest was made of files."""
    place = path_of(manifest)
    try:
        return json.loads(files.read_text(place)) if place.exists() else []
    except ValueError:  # damaged: what the manifest holds does not depend on it
        return []


def write(source: Path, out: Path, step: dict[str, Any]) -> None:
    """Say that `out` was made of `source`, by a step with what was asked for and how many clips came of it."""
    steps = [*read(source), {"of": source.name, **step}]
    files.write_text(path_of(out), json.dumps(steps, indent=1) + "\n")
