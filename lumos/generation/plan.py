"""Slot 5, the plan: which groups are worked on in which pass, and how many of their tokens stay hidden.

Work goes in rounds. A round is a few passes over the groups in flight, consecutive ones; at its end the first of them is
finished, enters the cache, and the next one joins. `passes[p, w]` says which of its own passes the w-th group in flight
has in pass p of a round, -1 for none. With one group in flight, generation is group by group; with several, each lags
behind the one before it (the asynchronous diagonal of AR-Diffusion), down to all at once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from lumos.slots import Slot


class Plan(Slot):
    """When each group begins."""

    both_ways: ClassVar[bool] = False  # whether groups in flight see later ones that are in flight too
    is_whole: ClassVar[bool] = False  # whether it makes whole clips alone, not one frame after another

    def check(self, groups, in_place: bool) -> None:
        """Raise ValueError where it does not go with the groups of a layout."""

    def lag(self, steps: int) -> int:
        """Return how many passes a group begins after the one before it, of the `steps` that each gets."""
        raise NotImplementedError

    def in_flight(self, steps: int, num_groups: int) -> int:
        """Return how many groups are worked on together at most."""
        lag = self.lag(steps)
        return min(num_groups, -(-steps // lag) if lag else num_groups)

    def rounds(self, steps: int, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the passes of the first round, [steps, W], and of every later one, [lag, W]."""
        lag, width = self.lag(steps), self.in_flight(steps, num_groups)
        of_group = (
            np.arange(steps)[:, None] - lag * np.arange(width)[None]
        )  # pass of group w, p passes after the start of the first
        first = np.where((of_group >= 0) & (of_group < steps), of_group, -1)
        return first, first[steps - lag :]

    def num_iterations(self, steps: int, num_groups: int) -> int:
        """Return the passes for so many groups: steps + (groups - 1) * lag."""
        first, rest = self.rounds(steps, num_groups)
        return len(first) + (num_groups - 1) * len(rest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneByOne(Plan, name="one_by_one"):
    """A group begins when the one before it is finished (Lumos-1)."""

    def lag(self, steps):
        return steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagonal(Plan, name="diagonal"):
    """A group begins `lag` passes after the one before it (AR-Diffusion, arXiv 2503.07418 section 3.3); 0 = all at once."""

    passes: int = 1  # the lag; as many as there are steps is one by one

    def __post_init__(self):
        if self.passes < 0:
            raise ValueError(f"passes={self.passes} must be at least 0")

    def lag(self, steps):
        return min(self.passes, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rolling(Plan, name="rolling"):
    """A window of groups at rising levels that see each other both ways: each moves on in every pass, the first one leaves, a
    hidden one joins (Rolling Forcing, arXiv 2509.25161; Yan). Without `sampler.eta` what is kept is not revised.

    With as many groups as steps, N groups take N + steps - 1 passes.
    """

    window: int = 0  # groups in flight at most; 0 = as many as there are steps, 1 = one by one

    def __post_init__(self):
        if self.window < 0:
            raise ValueError(f"window={self.window} must be at least 0")

    both_ways = True

    def lag(self, steps):
        return -(-steps // (self.window or steps))


def cosine(num_cells: int, steps: int) -> np.ndarray:
    """Return how many cells of a group are hidden after each of `steps` passes, int32 [steps], ending in 0.

    MaskGIT's cosine schedule with Lumos-1's rule (section 3.4): max(1, min(hidden - 1, floor(N cos(pi/2 (s+1)/S)))).
    """
    counts, hidden = [], num_cells
    for s in range(1, steps):
        hidden = max(1, min(hidden - 1, math.floor(num_cells * math.cos(math.pi / 2 * s / steps))))
        counts.append(hidden)
    return np.array([*counts, 0], np.int32)


def history_mask(num_cells: int, ratio: float, *, always: bool = False) -> np.ndarray:
    """Return which content cells of a finished group are masked before it enters the cache, bool [cells].

    A fixed periodic pattern, the same for all frames like a training tube: cells round(i n / m), m = round(ratio n)
    (Lumos-1 section 3.4). With `always`, ratio 0 masks one cell, as the released code does.
    """
    mask = np.zeros(num_cells, bool)
    if ratio > 0 or always:
        count = max(1, round(ratio * num_cells))
        mask[np.rint(np.arange(count) * num_cells / count).astype(int)] = True
    return mask
