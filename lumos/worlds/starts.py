"""Where worlds begin: frames of held-out clips with the actions that led to them, read from the tokens that the model was trained on."""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos import files
from lumos.config import Config
from lumos.data.records import RecordSource
from lumos.data.sources import parse_paths
from lumos.errors import UserError
from lumos.videos.conditions import streams_of_tokens


@dataclasses.dataclass(frozen=True)
class Clip:
    """A held-out clip: codes int32 [T, H, W], the codes [T, tokens] of each stream, and its caption."""

    codes: np.ndarray
    streams: tuple[np.ndarray, ...]
    caption: str


class Starts:
    """The clips of a split of the tokens of a run, by number. Raises UserError where it has none."""

    def __init__(self, config: Config, split: str = ""):
        split = split or config.data.eval_split
        paths = [path for path, _ in parse_paths(config.data.path)]
        shards = [shard for path in paths for shard in files.find(files.path(path), f"{split}-*-of-*.array_record")]
        if not shards:
            raise UserError(
                f"{config.data.path}: no tokens of split {split!r}; worlds begin with frames of held-out clips: set config.data.path to the token "
                "folder of the run"
            )
        self._records, self._num_streams = RecordSource(shards), len(config.sequence.streams)
        self.streams = streams_of_tokens(config)

    def __len__(self) -> int:
        return len(self._records)

    def clip(self, number: int) -> Clip:
        """Return a clip; numbers beyond the last one begin anew."""
        record = self._records[number % len(self)]
        streams = tuple(record[f"stream_{i}"].astype(np.int32) for i in range(self._num_streams))
        return Clip(record["tokens"].astype(np.int32), streams, record["caption"])
