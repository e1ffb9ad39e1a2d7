"""A folder of the moving_shapes data set, as TFDS writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumos.info.reading import read_object, size_of

_NAME = "moving_shapes"
_INFO = "dataset_info.json"


def recognise(path: Path) -> bool:
    return path.is_dir() and bool(_prepared(path))


def _prepared(path: Path) -> list[Path]:
    """Return the data sets in a folder, as `lumos.data.moving_shapes.prepare` leaves them, unfinished ones too."""
    if (path / _INFO).is_file():
        return [path] if read_object(path / _INFO, []).get("name") == _NAME else []
    return sorted(file.parent for file in path.glob(f"{_NAME}/*/*/{_INFO}"))


def describe(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    folders = [folder for folder in _prepared(path) if not folder.name.startswith("incomplete.")]
    unfinished = sorted(str(child.relative_to(path)) for child in path.glob(f"{_NAME}/*/incomplete.*"))
    if unfinished:
        problems.append(f"{len(unfinished)} preparations are under way, or were killed: {', '.join(unfinished[:3])}")
    if not folders:
        return {"what": "moving_shapes data, unfinished", "splits": {}, "problems": problems}
    if len(folders) > 1:
        problems.append(f"{len(folders)} data sets are there; a run needs a folder with one")
    folder = folders[0]
    info = read_object(folder / _INFO, problems)
    splits = {}
    for split in info.get("splits", []):
        lengths = [int(number) for number in split.get("shardLengths", [])]
        name = str(split.get("name"))
        there = len(list(folder.glob(f"{_NAME}-{name}.array_record-*-of-*")))
        splits[name] = {"clips": sum(lengths), "shards": len(lengths), "bytes": int(split.get("numBytes", 0))}
        if there != len(lengths):
            problems.append(f"{there} of {len(lengths)} shards of split {name!r} are there")
    video = read_object(folder / "features.json", problems).get("featuresDict", {}).get("features", {}).get("video", {})
    shape = video.get("tensor", {}).get("shape", {}).get("dimensions", [])
    facts = {
        "what": f"moving_shapes data, {sum(row['clips'] for row in splits.values()):,} clips",
        "settings": folder.parent.name,
        "version": folder.name,
        "clip_shape": [int(size) for size in shape],
        "folder": str(folder),
        "bytes": size_of(folder),
        "splits": splits,
    }
    return facts | {"problems": problems}
