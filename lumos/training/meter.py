"""How fast a run is: step time, data wait, throughput, mask-exact MFU."""

from __future__ import annotations

import time

import jax

from lumos.training import flops


def num_positions(batch: dict[str, jax.Array]) -> int:
    """Return the tokens (transformer) or pixels (tokenizer) of a batch, over all processes."""
    return batch["tokens"].size if "tokens" in batch else batch["video"].size // 3


class Meter:
    """Speed between two log lines: step time, data wait, throughput, mask-exact MFU.

    Times are taken where metrics arrive from the device, so they are those of finished steps.
    """

    def __init__(self, flops_per_step: float, step: int):
        self._flops = flops_per_step
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start a new window after `step`: time spent on evaluation and saving is not step time."""
        self._start, self._step = time.perf_counter(), step
        self._dispatched: list[tuple[int, float]] = []

    def count(self, positions: int, wait_ms: float) -> None:
        """Count a dispatched step."""
        self._dispatched.append((positions, wait_ms))

    def take(self, step: int) -> dict[str, float]:
        """Return the averages over the steps from the last window to `step`, and start the next one."""
        now, steps = time.perf_counter(), step - self._step
        window, self._dispatched = self._dispatched[:steps], self._dispatched[steps:]
        seconds, self._start, self._step = now - self._start, now, step
        peak = flops.peak_flops_per_device() * jax.device_count()
        return {
            "step_time_ms": 1e3 * seconds / steps,
            "data_wait_ms": sum(wait for _, wait in window) / steps,
            "positions_per_s": sum(positions for positions, _ in window) / seconds,
            "mfu": self._flops * steps / seconds / peak,
        }
