"""Profiles of a few steps: at a step of the config, or when the process receives SIGUSR1."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from pathlib import Path

import jax

from lumos import files

_log = logging.getLogger(__name__)


class Profiler:
    """Call `step` before every step. Traces go to `workdir/profile`, for TensorBoard or xprof."""

    def __init__(self, workdir: str | Path, *, at: int, num_steps: int = 3):
        """Profile `num_steps` steps from step `at` on (0: only on SIGUSR1)."""
        self._folder, self._at, self._num_steps = files.path(workdir) / "profile", at, num_steps
        self._asked, self._stop_at = False, None
        self._is_main_thread = threading.current_thread() is threading.main_thread()
        self._old = signal.signal(signal.SIGUSR1, self._ask) if self._is_main_thread else None

    def _ask(self, *_):
        self._asked = True

    def step(self, step: int) -> None:
        """Start or stop a trace, as `step` (finished updates) says."""
        if self._stop_at is not None:
            if step >= self._stop_at:
                self._finish()
        elif self._asked or (self._at and step == self._at):
            self._asked, self._stop_at = False, step + self._num_steps
            self._trace = self._folder / f"step_{step:08d}"
            self._local = Path(tempfile.mkdtemp()) if files.is_remote(self._trace) else self._trace
            jax.profiler.start_trace(str(self._local))

    def _finish(self):
        jax.profiler.stop_trace()
        self._stop_at = None
        if self._local != self._trace:
            files.put_tree(self._local, self._trace)
            files.remove_tree(self._local)
        _log.info("wrote a profile to %s", self._folder)

    def close(self) -> None:
        if self._stop_at is not None:
            self._finish()
        if self._is_main_thread:
            signal.signal(signal.SIGUSR1, self._old)
