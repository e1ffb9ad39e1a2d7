"""Lists of Kinetics: a row has a video and the seconds that were cut out of it, which its clip is called by: ID_000010_000020.mp4."""

from __future__ import annotations

from typing import Any

_COLUMNS = {"cut_start": "time_start", "cut_end": "time_end"}
_SPLITS = {"val": "validation", "validate": "validation"}


def find_columns(names: list[str], found: dict[str, int]) -> dict[str, int]:
    """Return which columns have the times and the caption, where this is such a list; `found` are those known by their names."""
    if "path" not in found or names[found["path"]] != "youtube_id" or not set(_COLUMNS.values()) <= set(names):
        return {}
    places = {field: names.index(name) for field, name in _COLUMNS.items()}
    return places | ({"caption": names.index("label")} if "caption" not in found and "label" in names else {})


def file_name(video: str, fields: dict[str, Any]) -> str:
    """Return the name of the clip of a video. Raises ValueError where the times are none."""
    start, end = (int(float(fields[field])) for field in _COLUMNS)
    return f"{video}_{start:06d}_{end:06d}.mp4"


def folders(label: str, split: str) -> tuple[str, ...]:
    """Return where the clip may lie: in no folder, in that of its class, its split, or both."""
    tops = ["", split, *(["val"] if _SPLITS.get(split) else [])]
    insides = ["", label, label.replace(" ", "_")]
    return tuple(dict.fromkeys(f"{top}/{inside}".strip("/") for top in tops for inside in insides))


def split_of(name: str) -> str:
    return _SPLITS.get(name, name)
