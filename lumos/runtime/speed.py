"""How fast a run is: step time, data wait, throughput, mask-exact MFU."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from lumos.chips import peak_of_device


class SpeedMeter:
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
        peak = peak_flops_per_device()
        if peak:
            speed["mfu"] = sum(self._flops(shape) for shape, _ in window) / seconds / (peak * jax.device_count())
        return speed | memory()


@functools.cache
def peak_flops_per_device() -> float | None:
    """Return the peak of this process's devices in FLOP/s, None if it is unknown.

    Accelerators have that of their data sheet (lumos/chips.py). A CPU's is measured once, as the rate of a large float32
    matmul.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        return peak_of_device(device.device_kind)
    size = 1024
    a = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(lambda a: a @ a)
    matmul(a).block_until_ready()
    best = min(_seconds(matmul, a) for _ in range(5))
    return 2.0 * size**3 / best / max(jax.local_device_count(), 1)


def _seconds(f, x) -> float:
    start = time.perf_counter()
    f(x).block_until_ready()
    return time.perf_counter() - start


def memory() -> dict[str, float]:
    """Return gigabytes in use: by this process, and at most so far on its first device, where it says so."""
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"host_memory_gb": resident_bytes() / 1e9} | ({"device_memory_gb": device / 1e9} if device else {})


def resident_bytes() -> int:
    """Return the host memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
