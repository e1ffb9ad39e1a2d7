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
    splits = _splits(folder, problems)
    facts = {
        "what": f"moving_shapes data, {sum(row['clips'] for row in splits.values()):,} clips",
        "settings": folder.parent.name,
        "version": folder.name,
        "clip_shape": _clip_shape(folder, problems),
        "folder": str(folder),
        "bytes": size_of(folder),
        "splits": splits,
    }
    return facts | {"problems": problems}


def _splits(folder: Path, problems: list[str]) -> dict[str, dict[str, int]]:
    splits = {}
    try:
        for split in read_object(folder / _INFO, problems).get("splits", []):
            lengths, name = [int(number) for number in split["shardLengths"]], str(split["name"])
            splits[name] = {"clips": sum(lengths), "shards": len(lengths), "bytes": int(split["numBytes"])}
    except (LookupError, TypeError, ValueError):
        problems.append(f"{_INFO} does not say what the splits are")
    for name, row in splits.items():
        there = len(list(folder.glob(f"{_NAME}-{name}.array_record-*-of-*")))
        if there != row["shards"]:
            problems.append(f"{there} of {row['shards']} shards of split {name!r} are there")
    return splits


def _clip_shape(folder: Path, problems: list[str]) -> list[int]:
    features = read_object(folder / "features.json", problems)
    try:
        video = features["featuresDict"]["features"]["video"]
        return [int(size) for size in video["tensor"]["shape"]["dimensions"]]
    except (LookupError, TypeError, ValueError):
        problems.append("features.json does not say how large the clips are")
        return []
