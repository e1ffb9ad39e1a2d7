"""A number with what it was measured on: its interval, how many clips, and the protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_RESAMPLES = 1000
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number, or a curve of numbers, and the ends of its 95 % bootstrap interval over clips.

    better: "high", "low", or "" where neither is.
    """

    value: float | list[float]
    low: float | list[float]
    high: float | list[float]
    n: int
    protocol: str
    better: str = ""
    values: np.ndarray | None = dataclasses.field(
        default=None, repr=False, compare=False
    )  # [N], where it is their mean

    def to_dict(self) -> dict[str, Any]:
        """Return all but the values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "values"}


def mean(values, protocol: str, better: str = "") -> Metric:
    """Return the mean over clips of values [N], or of curves [N, F], with its percentile bootstrap interval."""
    values_NF = np.asarray(values, np.float64)
    low, high = np.quantile(_means(values_NF), ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2), axis=0)
    ends = [x.tolist() for x in (values_NF.mean(axis=0), low, high)]
    return Metric(*ends, len(values_NF), protocol, better, values_NF if values_NF.ndim == 1 else None)


def ratio(above, below, protocol: str, better: str = "") -> Metric:
    """Return the sum of `above` [N, ...] over that of `below`, with its percentile bootstrap interval over clips."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    low, high = np.quantile(_means(above) / _means(below), ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2), axis=0)
    ends = [x.tolist() for x in (above.mean(axis=0) / below.mean(axis=0), low, high)]
    return Metric(*ends, len(above), protocol, better)


def statistic(
    call: Callable[..., float], sizes: tuple[int, ...], protocol: str, better: str = "", *, resamples: int = 40
) -> Metric:
    """Return a number of whole sets of clips, and how far it moves with other clips: the bootstrap interval around its own mean.

    Clips that are drawn twice make a distance between two sets larger. The resampled values therefore lie beside the value; their
    spread is what as many other clips would do to it.

    Args:
      call: takes for each set how often each of its clips counts, int64 [N], and returns the number.
      sizes: N of each set.
    """
    rng, value = np.random.default_rng(0), call(*(np.ones(num, np.int64) for num in sizes))
    draw = lambda num: np.bincount(rng.integers(0, num, num), minlength=num)
    drawn = np.array([call(*map(draw, sizes)) for _ in range(resamples)])
    low, high = value + np.quantile(drawn - drawn.mean(), ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return Metric(float(value), float(low), float(high), sizes[0], protocol, better)


def usage(tokens: Iterable[np.ndarray], size: int) -> Callable[[np.ndarray], float]:
    """Return the function of how often each clip counts that gives the share of codes in use, of `size`; one array a clip."""
    codes = [np.unique(row) for row in tokens]
    return lambda count_N: len(np.unique(np.concatenate([codes[i] for i in np.flatnonzero(count_N)]))) / size


def _means(values_NF: np.ndarray) -> np.ndarray:
    """Return the means of as many clips drawn with replacement, [resamples, F], the same draws for any values."""
    num = len(values_NF)
    counts = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), size=_RESAMPLES)
    return np.tensordot(counts / num, values_NF, axes=1)
