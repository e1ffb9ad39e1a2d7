"""Clips with their actions as plain arrays of frames, in the folder that Jasmine trains from (github.com/p-doom/jasmine, arXiv 2510.27002).

train/, val/ and test/ hold ArrayRecord files of a pickled dict a record: `raw_video`, the bytes of uint8 [F, Y, X, 3]; `sequence_length`,
F; `actions`, uint8 [F], the action that is chosen at each frame and leads to the next one (0 at the last frame). `metadata.json` names
the actions and counts the clips.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from lumos import files
from lumos.config import Config
from lumos.errors import UserError
from lumos.sequence.streams import StreamConfig
from lumos.tokenizers.windows import plan_split

_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # as Jasmine calls them
_CLIPS_OF_A_FILE = 100


def export(config: Config, out: Path) -> dict[str, Any]:
    """Write the windows that `lumos tokenize` would encode with this config; return what metadata.json says. Raises UserError."""
    if config.data.source != "clips" or len(config.data.streams) != 1:
        raise UserError(
            f"config.data.source={config.data.source!r} with config.data.streams of {len(config.data.streams)}: frames are exported from clips "
            "with one stream, the action (the variant 'tokens' of configs/world_vizdoom.py)"
        )
    (stream,) = config.data.streams
    if stream.codes > 256:
        raise UserError(f"stream {stream.name!r} has {stream.codes} codes; actions are exported as bytes, at most 256")
    facts: dict[str, Any] = {
        "env": config.name, "num_actions": stream.codes, "actions": list(stream.names), "image_size": list(config.data.buckets[0][1:]),
    }  # fmt: skip
    for split, name in _SPLITS.items():
        windows = plan_split(config, split, tuple(_SPLITS))
        for number, first in enumerate(range(0, len(windows), _CLIPS_OF_A_FILE)):
            places = range(first, min(first + _CLIPS_OF_A_FILE, len(windows)))
            _write(out / name / f"data_{number:04d}.array_record", [windows.window(place) for place in places], stream)
        facts[f"num_episodes_{name}"] = len(windows)
        facts[f"avg_episode_len_{name}"] = float(
            np.mean([w.bucket.frames for w in map(windows.window, range(len(windows)))])
        )
    with files.written(out / "metadata.json") as partial:
        partial.write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _write(path: Path, windows: list, stream: StreamConfig) -> None:
    with files.written(path) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for window in windows:
            arrays, _ = window.source.load(window.index, window.bucket, window.where)
            values = window.source.actions(window.index, window.bucket, window.where, stream.name)
            if values is None:
                raise UserError(f"{window.source.name}: its clips have no actions")
            actions_F = stream.quantize(values[:, 0]).astype(np.uint8)
            if stream.leads:
                actions_F = np.append(actions_F[1:], np.uint8(0))
            video_FYXC = np.ascontiguousarray(arrays["video"])
            record = {"raw_video": video_FYXC.tobytes(), "sequence_length": len(video_FYXC), "actions": actions_F}
            writer.write(pickle.dumps(record))
        writer.close()
