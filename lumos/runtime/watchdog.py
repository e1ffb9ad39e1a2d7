"""The watchdog: a process that makes no progress dumps the stacks of all its threads and exits.

A hang (a collective whose peer died, a stuck file system, a decoder in a loop) would otherwise hold every device of the
job until someone looks. Each phase of a run has its own deadline. The deadline of each process counts by itself, so
one stuck process takes the others down as soon as they have waited for it too long, and the scheduler restarts all.

This file imports nothing heavy: it watches from the first moment of the process.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lumos import files
from lumos.errors import EXIT_STUCK

PHASES = ("start", "restore", "compile", "step", "save", "evaluate")
_START_SECONDS = 1800.0  # until the config is read
_BACKSTOP_SECONDS = 5.0
_PARTING_SECONDS = 3.0  # those who wait with this process write their stacks before its end takes them down
_stderr = sys.__stderr__  # a file descriptor, whatever a notebook or a test has put in the place of sys.stderr


class Watchdog:
    """Watches from construction until `stop`; a context manager.

    Two alarms: a Python thread, which can say what is wrong, and behind it faulthandler's timer, which is written in C
    and fires even when a stuck extension holds the interpreter lock (exit code 1 then).
    """

    def __init__(self):
        self._deadlines = dict.fromkeys(PHASES, _START_SECONDS)
        self._report: Path | None = None
        self._stopped = threading.Event()
        self.enter("start")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def configure(self, deadlines: Sequence[float], folder: str | Path) -> None:
        """Set the seconds of each of PHASES (0 = no limit), and the folder that stacks go to beside stderr."""
        self._deadlines = dict(zip(PHASES, deadlines, strict=True))
        # A report is written as the process dies: to a disk of its own where the workdir is a bucket.
        folder = tempfile.gettempdir() if files.is_remote(folder) else folder
        self._report = Path(folder) / f"stacks-{socket.gethostname()}-{os.getpid()}.txt"

    def enter(self, phase: str, detail: str = "") -> None:
        """Say what the main thread does from now on; its deadline starts anew."""
        self._now = (phase, detail, time.monotonic())

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._stopped.wait(0.2):
            phase, detail, began = self._now
            limit = self._deadlines[phase]
            if not limit:
                faulthandler.cancel_dump_traceback_later()
                continue
            waited = time.monotonic() - began
            if waited > limit:
                self._expire(phase, detail, waited)
            faulthandler.dump_traceback_later(limit - waited + _BACKSTOP_SECONDS, exit=True, file=_stderr)

    def _expire(self, phase: str, detail: str, waited: float) -> None:
        text = (
            f"lumos: watchdog: no progress for {waited:.1f} s in phase {phase!r}{detail and ' of ' + detail} (deadline "
            f"{self._deadlines[phase]:g} s); the stacks of all threads follow, then exit code {EXIT_STUCK}\n"
        )
        _stderr.write(text)
        _stderr.flush()
        faulthandler.dump_traceback(file=_stderr, all_threads=True)
        if self._report:
            try:
                with self._report.open("a") as file:
                    file.write(text)
                    file.flush()
                    faulthandler.dump_traceback(file=file, all_threads=True)
            except OSError as error:
                _stderr.write(f"lumos: watchdog: cannot write {self._report}: {error}\n")
        time.sleep(_PARTING_SECONDS)
        os._exit(EXIT_STUCK)
