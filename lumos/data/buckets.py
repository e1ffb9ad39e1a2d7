"""Static shapes for clips of many sizes: which bucket a clip goes to and how many clips make a batch.

Every bucket is one compiled shape. Batch sizes follow a token budget, so that a step costs about the same in every
bucket and its memory is bounded by that of the first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lumos.config import DataConfig, TokenizerConfig
from lumos.errors import UserError, warn_once
from lumos.geometry import latent_shape


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static clip shape: in pixels, or of tokens their grid. `batch_size` counts the clips of a step over all processes.

    `key` is its shape in pixels also for tokens, where every token counts as a cell: random streams and the plans that
    checkpoints hold know it by that.
    """

    frames: int
    height: int
    width: int
    batch_size: int
    latent_THW: tuple[int, int, int]
    key: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """Latent tokens of one clip."""
        return math.prod(self.latent_THW)


def plan_buckets(
    data: DataConfig, tokenizer: TokenizerConfig, *, images: bool = False, divisor: int = 1
) -> list[Bucket]:
    """Give each bucket of the config its batch size.

    The first bucket has `data.batch_size`, and `batch_size x tokens` is the budget of a step. The others get as many
    clips as the budget holds, rounded down to a number with at most three significant bits (4, 5, 6, 7 times a power
    of two), so that they divide well. The plan depends on the config alone, never on the number of processes: batches
    stay the same when a run moves to another cluster.

    Args:
      images: plan the single-frame twins of the buckets instead (joint image and video training).
      divisor: what every batch size must be a multiple of (processes, devices along the batch).

    Raises:
      UserError: there is no bucket, or a batch size is not a multiple of `divisor`.
    """
    check_given(data)
    shapes = [(1, height, width) if images else (frames, height, width) for frames, height, width in data.buckets]
    shapes, of_tokens = list(dict.fromkeys(shapes)), data.source == "tokens"
    latent = lambda shape: tuple(shape) if of_tokens else latent_shape(tokenizer, *shape)
    budget = data.batch_size * math.prod(latent(data.buckets[0]))
    buckets = []
    for shape in shapes:
        latent_THW = latent(shape)
        exact = shape == tuple(data.buckets[0])
        batch_size = data.batch_size if exact else _round_down(budget // math.prod(latent_THW))
        if batch_size % divisor:
            raise UserError(
                f"bucket {shape} gets {batch_size} clips a step, not a multiple of the {divisor} processes or devices "
                f"that share them; make config.data.batch_size={data.batch_size} larger or a multiple of {divisor}"
            )
        buckets.append(Bucket(*shape, batch_size, latent_THW, _key(shape, tokenizer) if of_tokens else shape))
    return buckets


def check_given(data: DataConfig) -> None:
    """Raise UserError if the config has no bucket. For tokens lumos/training/match_data.py fills them in."""
    if not data.buckets:
        raise UserError("config.data.buckets is empty; give at least one (frames, height, width)")


def _key(grid: tuple[int, int, int], tokenizer: TokenizerConfig) -> tuple[int, int, int]:
    frames, rows, columns = grid
    time, space = tokenizer.temporal_compression, tokenizer.spatial_compression
    return 1 + (frames - 1) * time, rows * space, columns * space


def assign(frames: int, height: int, width: int, buckets: Sequence[Bucket]) -> int | None:
    """Return the index of the bucket for a clip of this size, or None when it is too short for every bucket.

    Among buckets whose length the clip fills: nearest aspect ratio (in log space, so that 2:1 and 1:2 are equally far
    from square), then the longest, then the largest that does not enlarge the picture.
    """

    def badness(index: int) -> tuple:
        bucket = buckets[index]
        aspect = abs(math.log(width / height) - math.log(bucket.width / bucket.height))
        area = bucket.height * bucket.width
        enlarges = bucket.height > height or bucket.width > width
        return round(aspect, 6), -bucket.frames, enlarges, area if enlarges else -area

    fitting = [index for index, bucket in enumerate(buckets) if bucket.frames <= frames]
    return min(fitting, key=badness, default=None)


def assign_all(name: str, sizes: Sequence[tuple[int, int, int]], buckets: Sequence[Bucket]) -> np.ndarray:
    """Return the bucket of every clip, int32 [N], -1 for those that are too short for all, which are counted in the log.

    Raises:
      UserError: `name` has no clip that is long enough.
    """
    choices = {size: assign(*size, buckets) for size in set(sizes)}
    bucket_N = np.array([-1 if choices[size] is None else choices[size] for size in sizes], np.int32)
    short = np.count_nonzero(bucket_N < 0)
    shortest, longest = min(bucket.frames for bucket in buckets), max((size[0] for size in sizes), default=0)
    if short == len(sizes):
        raise UserError(
            f"{name}: no clip fills a bucket: the shortest bucket has {shortest} frames, the longest clip {longest}; choose shorter "
            "config.data.buckets, a higher config.data.fps, or longer clips"
        )
    if short:
        warn_once(
            f"{name}: {short} of {len(sizes)} clips are too short for every bucket (the shortest has {shortest} frames)"
        )
    return bucket_N


def _round_down(count: int) -> int:
    """Keep the three leading bits of a count; at least 1."""
    if count < 1:
        return 1
    unit = 1 << max(count.bit_length() - 3, 0)
    return count // unit * unit
