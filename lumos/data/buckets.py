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

    fitting = [index for index in ranked(height, width, buckets) if buckets[index].frames <= frames]
    return fitting[0] if fitting else None


def ranked(height: int, width: int, buckets: Sequence[Bucket]) -> list[int]:
    """Return the buckets for pictures of this size, the best first."""

    def badness(index: int) -> tuple:
        bucket = buckets[index]
        aspect = abs(math.log(width / height) - math.log(bucket.width / bucket.height))
        area = bucket.height * bucket.width
        enlarges = bucket.height > height or bucket.width > width
        return round(aspect, 6), -bucket.frames, enlarges, area if enlarges else -area

    return sorted(range(len(buckets)), key=badness)


_BLOCK = 1 << 20  # clips that are sorted at a time: bounds the memory


def assign_all(name: str, sizes_N3: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """Return the bucket of every clip, int32 [N], -1 for those that are too short for all, which are counted in the log.

    Args:
      sizes_N3: frames, height and width of every clip.

    Raises:
      UserError: `name` has no clip that is long enough.
    """
    bucket_N, ranks = np.full(len(sizes_N3), -1, np.int32), {}
    frames_B = np.array([bucket.frames for bucket in buckets])
    for start in range(0, len(sizes_N3), _BLOCK):
        part_N3, out_N = sizes_N3[start : start + _BLOCK], bucket_N[start : start + _BLOCK]
        pictures_U, which_N = np.unique(_packed(part_N3[:, 1:]), return_inverse=True)
        for height, width in (new := [_unpacked(int(picture), 2) for picture in pictures_U]):
            if (height, width) not in ranks:
                ranks[height, width] = ranked(height, width, buckets)
        rank_UB = np.array([ranks[picture] for picture in new], np.int32).reshape(-1, len(buckets))
        for choice_U in reversed(rank_UB.T):  # the best last, over all others
            choice_N = choice_U[which_N]
            out_N[:] = np.where(frames_B[choice_N] <= part_N3[:, 0], choice_N, out_N)
    short = np.count_nonzero(bucket_N < 0)
    shortest, longest = min(bucket.frames for bucket in buckets), int(sizes_N3[:, 0].max()) if len(sizes_N3) else 0
    if short == len(sizes_N3):
        raise UserError(
            f"{name}: no clip fills a bucket: the shortest bucket has {shortest} frames, the longest clip {longest}; choose shorter "
            "config.data.buckets, a higher config.data.fps, or longer clips"
        )
    if short:
        warn_once(
            f"{name}: {short} of {len(sizes_N3)} clips are too short for every bucket (the shortest has {shortest} frames)"
        )
    return bucket_N


def count_sizes(sizes_N3: np.ndarray) -> dict[tuple[int, int, int], int]:
    """Return how many clips there are of every size."""
    counts: dict[int, int] = {}
    for start in range(0, len(sizes_N3), _BLOCK):
        for value, number in zip(
            *map(np.ndarray.tolist, np.unique(_packed(sizes_N3[start : start + _BLOCK]), return_counts=True))
        ):
            counts[value] = counts.get(value, 0) + number
    return {_unpacked(value, 3): number for value, number in counts.items()}


_BITS = 21  # of each number of a size in one integer, which is sorted faster than three


def _packed(sizes_ND: np.ndarray) -> np.ndarray:
    packed_N = np.zeros(len(sizes_ND), np.int64)
    for axis in range(sizes_ND.shape[1]):
        packed_N = packed_N << _BITS | np.minimum(sizes_ND[:, axis], (1 << _BITS) - 1)
    return packed_N


def _unpacked(packed: int, number: int) -> tuple[int, ...]:
    return tuple(packed >> _BITS * place & (1 << _BITS) - 1 for place in reversed(range(number)))


def _round_down(count: int) -> int:
    """Keep the three leading bits of a count; at least 1."""
    if count < 1:
        return 1
    unit = 1 << max(count.bit_length() - 3, 0)
    return count // unit * unit
