"""What is asked of a run from outside: stop (SIGTERM) and save (the clock). All processes hear it at the same step.

Every step each process adds its requests to a maximum over all processes, which is read one step later: nothing waits for
it, and every process decides the same at the same step.
"""

from __future__ import annotations

import logging
import signal
import threading
import time

import jax
from jax.sharding import Mesh

from lumos import sharding

_log = logging.getLogger(__name__)

SAVE, STOP = 1, 2  # STOP outranks SAVE in the maximum, and saves too
SAVE_SECONDS = 1800.0  # no more work than this is at stake, however long `train.checkpoint_every` steps take


class Requests:
    """Collects requests while it is entered. A second SIGTERM ends the process at once."""

    def __init__(self, mesh: Mesh):
        self._mesh, self._stop = mesh, False
        self._handlers: dict[int, object] = {}
        self.saved()

    def saved(self) -> None:
        """Start the clock anew: there is a new checkpoint."""
        self._saved = time.monotonic()

    def ask(self) -> jax.Array | int:
        """Return the requests of all processes, to be read with int() later."""
        # Only the clock of process 0 counts: clocks differ.
        due = jax.process_index() == 0 and time.monotonic() - self._saved > SAVE_SECONDS
        request = STOP if self._stop else SAVE if due else 0
        return request if jax.process_count() == 1 else sharding.max_over_processes(self._mesh, request)

    def __enter__(self) -> Requests:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._handlers = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_signal)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame) -> None:
        self._stop = True
        signal.signal(number, signal.SIG_DFL)  # the second one ends the process, whatever it is doing
        _log.warning("%s: saving, then leaving; once more to leave at once", signal.Signals(number).name)
