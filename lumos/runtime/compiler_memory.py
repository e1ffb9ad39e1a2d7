"""What the compiler has used is given back to the system.

XLA:CPU leaves a few hundred MB of freed memory with malloc after it has compiled a training step. It lies in pieces too small for the
arrays of the step, so a process would hold both (benchmarks/training_memory.py).
"""

from __future__ import annotations

import ctypes
import functools
import platform

import jax

_EVENT, _SECONDS = "/jax/core/compile/backend_compile_duration", 1.0  # shorter compilations leave little behind


def give_back() -> None:
    """Return freed memory to the system, where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def give_back_after_compiling() -> None:
    """From now on, do so at the end of every long compilation: before the program runs for the first time."""
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: give_back() if event == _EVENT and seconds > _SECONDS else None
    )
