"""The clips behind a world: frames of the recordings with what came with them, as the tokenizer's run reads them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from lumos.config import Config
from lumos.data.buckets import plan_buckets
from lumos.data.sources import open_sources
from lumos.errors import UserError
from lumos.sequence.streams import StreamConfig


class Clips(NamedTuple):
    """video: uint8 [N, F, Y, X, 3]; columns: what comes with its frames, float32 [N, F, A] each; captions."""

    video: np.ndarray
    columns: dict[str, np.ndarray]
    captions: list[str]


def read(
    config: Config,
    split: str,
    num: int,
    num_frames: int,
    size: tuple[int, int],
    columns: tuple[str, ...],
    most: int = 0,
) -> Clips:
    """Read the first clips of a split, their first frames each: so many, or as many as all have up to `most`. `config` is that of the
    tokenizer's run. Raises UserError."""
    if config.data.source != "clips":
        raise UserError(
            f"config.data.source={config.data.source!r}: the frames of a world, with their actions, are those of clips"
        )
    data = dataclasses.replace(config.data, buckets=((num_frames, *size),), cache_gb=0.0)
    sources = [source for source, _ in open_sources(dataclasses.replace(config, data=data), split)]
    if most:
        shortest = min(int(frames) for source in sources for frames in source.sizes[:, 0] if frames >= num_frames)
        num_frames = (
            1
            + (min(shortest, most) - 1) // config.tokenizer.temporal_compression * config.tokenizer.temporal_compression
        )
        data = dataclasses.replace(data, buckets=((num_frames, *size),))
    (bucket,) = plan_buckets(data, config.tokenizer)
    videos, found, captions = [], {name: [] for name in columns}, []
    for source in sources:
        for index in np.flatnonzero(source.sizes[:, 0] >= num_frames)[: num - len(videos)].tolist():
            arrays, caption = source.load(index, bucket, 0.0)
            for name in columns:
                values = source.actions(index, bucket, 0.0, name)
                if values is None:
                    raise UserError(f"{source.name}: its clips have no actions")
                found[name].append(values)
            videos.append(arrays["video"])
            captions.append(caption if isinstance(caption, str) else caption[0])
    if not videos:
        raise UserError(f"config.data.path={config.data.path}: no clip of split {split!r} has {num_frames} frames")
    return Clips(np.stack(videos), {name: np.stack(values) for name, values in found.items()}, captions)


def led(clips: Clips, stream: StreamConfig) -> np.ndarray:
    """Return the number of the action that led to each frame, int32 [N, F]; of the first frame it means nothing."""
    codes_NF = stream.quantize(clips.columns[stream.name][..., 0])
    return codes_NF if stream.leads else np.concatenate([codes_NF[:, :1], codes_NF[:, :-1]], axis=1)
