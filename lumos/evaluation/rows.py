"""A row of a report: the cell that was evaluated, its metrics, and its clips as files. `row.json` in a folder is one."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lumos.data.contact_sheet import contact_sheet
from lumos.data.video_writer import write_video
from lumos.evaluation.metric import Metric
from lumos.evaluation.subject import Clip

NAME = "row.json"
_VALUES = "values.npz"  # of metrics that are means, clip by clip


@dataclasses.dataclass(frozen=True)
class Row:
    """cell: what was evaluated (run, step, weights, seed, settings, ...), which tells rows apart. is_default: none of it was changed."""

    cell: dict[str, Any]
    metrics: dict[str, Metric]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    is_default: bool = True


def write(folder: Path, row: Row, clips: list[Clip], fps: float, facts: dict[str, str]) -> None:
    """Write the clips, a contact sheet of each group, values clip by clip, and last of all `row.json`, into a folder that is there."""
    videos = []
    for group in dict.fromkeys(clip.group for clip in clips):
        members = [clip for clip in clips if clip.group == group]
        (folder / group).mkdir(exist_ok=True)
        for i, clip in enumerate(members):
            file, own = f"{group}/{i:02d}.mp4", {"seed": str(clip.seed)} if clip.seed >= 0 else {}
            write_video(folder / file, clip.video, fps, {"prompt": clip.caption} | facts | own)
            videos.append({"group": group, "file": file, "caption": clip.caption, **own})
        (folder / group / "captions.json").write_text(json.dumps([clip.caption for clip in members]))
        contact_sheet([clip.video for clip in members], [clip.caption for clip in members]).save(
            folder / f"{group}.png"
        )
    metrics = {name: value.to_dict() for name, value in row.metrics.items()}
    values = {name: value.values for name, value in row.metrics.items() if value.values is not None}
    np.savez_compressed(folder / _VALUES, **values)
    content = {"cell": row.cell, "default": row.is_default, "metrics": metrics, "videos": videos}
    content["facts"] = facts | row.facts
    partial = folder / f"{NAME}.partial"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, folder / NAME)


def values_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the values clip by clip, [N], of the metrics of a row that are means."""
    path = folder / _VALUES
    return dict(np.load(path)) if path.exists() else {}


def read_all(folders: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Return (folder, content) of every row in or below some folders, in the order of their paths."""
    found = {path.parent: None for folder in folders for path in sorted(folder.rglob(NAME))}
    return [(folder, json.loads((folder / NAME).read_text())) for folder in found]
