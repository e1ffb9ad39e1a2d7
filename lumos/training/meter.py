"""How fast a run is: step time, data wait, throughput, mask-exact MFU."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import jax

from lumos.training import flops


class Meter:
    """Speed between two log lines: step time, data wait, throughput, mask-exact MFU.

    Times are taken where metrics arrive from the device, so they are those of finished steps. `flops_per_step` gives the
    FLOPs of a step on a batch of a shape (see `Task`). There is no MFU where the peak of the devices is unknown.
    """

    def __init__(self, flops_per_step: Callable[[tuple[int, ...]], float], step: int):
        self._flops = functools.cache(flops_per_step)
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start a new window after `step`: time spent on evaluation and saving is not step time."""
        self._start, self._step = time.perf_counter(), step
        self._dispatched: list[tuple[tuple[int, ...], float]] = []

    def count(self, batch: dict[str, jax.Array], wait_ms: float) -> None:
        """Count a dispatched step on a batch of all processes."""
        self._dispatched.append(((batch["tokens"] if "tokens" in batch else batch["video"]).shape, wait_ms))

    def take(self, step: int) -> dict[str, float]:
        """Return the averages over the steps from the last window to `step`, and start the next one."""
        now, steps = time.perf_counter(), step - self._step
        window, self._dispatched = self._dispatched[:steps], self._dispatched[steps:]
        seconds, self._start, self._step = now - self._start, now, step
        # Positions are tokens [B, T, H, W], or pixels of [B, F, Y, X, 3].
        positions = sum(math.prod(shape[:4]) for shape, _ in window)
        speed = {
            "step_time_ms": 1e3 * seconds / steps,
            "data_wait_ms": sum(wait for _, wait in window) / steps,
            "positions_per_s": positions / seconds,
        }
        peak = flops.peak_flops_per_device()
        if peak:
            speed["mfu"] = sum(self._flops(shape) for shape, _ in window) / seconds / (peak * jax.device_count())
        return speed
