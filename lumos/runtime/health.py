"""Numerical health: which steps were bad, and what follows when too many are.

A step whose loss or gradient is not finite changes nothing: the update is skipped on the device (training/step.py).
This file looks at the metrics one step later, on the host: it counts, finds loss spikes, and says when the run cannot go
on like this. Every process sees the same metrics, so all decide the same.
"""

from __future__ import annotations

import collections
import math

import numpy as np

MAX_BAD_STEPS = 5  # so many in a row, and `train.on_bad_steps` happens
SPIKE_ZSCORE = 8.0  # a loss so many standard deviations above the mean of the window is a spike
WINDOW = 128  # good steps that mean and deviation are taken over
_LEAST = 32  # with fewer good steps nothing is called a spike


class HealthMonitor:
    """Judges every step by its loss and gradient norm.

    Attributes:
      num_bad: bad steps so far.
      streak: the bad steps directly behind us, as (step, batch number, reason).
    """

    def __init__(self):
        self.num_bad = 0
        self.streak: list[tuple[int, int, str]] = []
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def observe(self, step: int, batch: int, loss: float, grad_norm: float) -> str | None:
        """Return why a step is bad, or None."""
        reason = self._judge(loss, grad_norm)
        if reason is None:
            self._losses.append(loss)
            self.streak = []
            return None
        self.num_bad += 1
        self.streak.append((step, batch, reason))
        return reason

    def _judge(self, loss: float, grad_norm: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"not finite: loss {loss}, gradient norm {grad_norm}"
        if len(self._losses) < _LEAST:
            return None
        mean, deviation = float(np.mean(self._losses)), float(np.std(self._losses))
        score = (loss - mean) / max(deviation, 1e-3 * abs(mean), 1e-12)
        return f"loss spike: {loss:.4g} is {score:.1f} deviations above {mean:.4g}" if score > SPIKE_ZSCORE else None

    @property
    def healthy(self) -> bool:
        """Whether the last step was good: a checkpoint made now is one to go back to."""
        return not self.streak

    @property
    def hopeless(self) -> bool:
        """Whether too many bad steps lie directly behind us."""
        return len(self.streak) >= MAX_BAD_STEPS

    def describe(self) -> str:
        """Return one line about the streak."""
        steps, batches, reasons = zip(*self.streak)
        return (
            f"{len(steps)} bad steps in a row ({steps[0]} to {steps[-1]}, batches {batches[0]} to {batches[-1]}); the last: "
            f"{reasons[-1]}"
        )

    def forget(self) -> None:
        """Start anew: after going back to a checkpoint, or where another term enters the loss."""
        self.streak = []
        self._losses.clear()
