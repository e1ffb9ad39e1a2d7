"""LeRobot sets (v2 and v3) as sources: an episode seen by one camera is a clip, its task the caption, its actions a reference.

In v2 an episode has a video file for each camera and a parquet file of its own; in v3 episodes are ranges of shared files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumos import files
from lumos.data import actions
from lumos.data.candidate import Candidate
from lumos.errors import UserError, printable

_INFO = "meta/info.json"
_PLACE = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")  # of an episode in the videos of v3


def recognise(path: Path) -> bool:
    return (path / _INFO).is_file() and "codebase_version" in _info(path)


def identity(path: Path) -> str:
    return hashlib.sha256(files.read_bytes(path / _INFO)).hexdigest()


def read(path: Path) -> list[Candidate]:
    """Return the episodes, each camera by itself. Raises UserError where the set is not as it should be."""
    info = _info(path)
    try:
        cameras = [name for name, feature in info["features"].items() if feature.get("dtype") == "video"]
        read_episodes = _version_3 if info["codebase_version"].startswith("v3") else _version_2
        found = list(read_episodes(path, info, cameras))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: not a LeRobot set of v2 or v3 ({type(error).__name__}: {printable(str(error))})"
        ) from error
    if not cameras:
        raise UserError(f"{path}: a LeRobot set without videos; its features are {', '.join(info['features'])}")
    return found


def _info(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(files.read_text(path / _INFO))
    except ValueError as error:
        raise UserError(f"{path / _INFO}: not JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _version_2(path: Path, info: dict[str, Any], cameras: list[str]) -> Iterator[Candidate]:
    has_actions = "action" in info["features"]
    for line in files.read_text(path / "meta" / "episodes.jsonl").splitlines():
        episode = json.loads(line)
        number, length = episode["episode_index"], episode["length"]
        place = {"episode_index": number, "episode_chunk": number // info["chunks_size"]}
        more = {}
        if has_actions:
            data = path / info["data_path"].format(**place)
            more["actions"] = actions.reference(str(data), "action", 0, length)
        for camera in cameras:
            video = path / info["video_path"].format(video_key=camera, **place)
            yield _candidate(video, camera, number, episode, info, more)


def _version_3(path: Path, info: dict[str, Any], cameras: list[str]) -> Iterator[Candidate]:
    from pyarrow import parquet

    episodes = []
    for file in files.find(path / "meta" / "episodes", "*.parquet"):
        with files.borrowed(file) as local:
            table = parquet.read_table(local)
        wanted = [name for name in table.column_names if not name.startswith("stats/")]
        episodes += table.select(wanted).to_pylist()
    first_of_file: dict[tuple, int] = {}
    data_of = lambda episode: (episode["data/chunk_index"], episode["data/file_index"])
    for episode in episodes:
        first = episode["dataset_from_index"]
        first_of_file[data_of(episode)] = min(first, first_of_file.get(data_of(episode), first))
    for episode in episodes:
        more, number = {}, episode["episode_index"]
        if "action" in info["features"]:
            chunk, index = data_of(episode)
            first, end = (episode[f"dataset_{side}_index"] - first_of_file[chunk, index] for side in ("from", "to"))
            data = str(path / info["data_path"].format(chunk_index=chunk, file_index=index))
            more["actions"] = actions.reference(data, "action", first, end)
        for camera in cameras:
            of = {name: episode[f"videos/{camera}/{name}"] for name in _PLACE}
            place = {"chunk_index": of["chunk_index"], "file_index": of["file_index"]}
            video = path / info["video_path"].format(video_key=camera, **place)
            span = float(of["from_timestamp"]), float(of["to_timestamp"])
            yield _candidate(video, camera, number, episode, info, more, span)


def _candidate(
    video: Path,
    camera: str,
    number: int,
    episode: dict,
    info: dict,
    more: dict,
    span: tuple[float, float] | None = None,
) -> Candidate:
    split = ""
    for name, part in (info.get("splits") or {}).items():
        first, _, end = str(part).partition(":")
        if first.isdigit() and end.isdigit() and int(first) <= number < int(end):
            split = name
    tasks = tuple(episode.get("tasks") or ())
    return Candidate(video, f"{camera}/episode_{number:06d}", tasks, split, span=span, more=more)
