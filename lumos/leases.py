"""Leases: which of several processes does a piece of work, where each may join, die and come back at any time.

Processes share a folder (of this machine, of a network file system, or of a bucket) and do not talk to each other. Who holds the lease of
a piece may work on it. A lease is a file that its holder touches; one that was not touched for long, or whose holder on this machine is
gone, is taken over by whoever makes the file of the next generation, which only one can. So there is no moment at which a lease is
deleted and made anew, and a holder that was only slow finds out that it has lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lumos import files

_STALE = 60.0  # seconds without a touch
_TOUCH = 10.0


class Lost(Exception):
    """Another process has taken the lease over."""


class Leases:
    """The leases in a folder, as seen by one process. Makes the folder, if the one that it lies in is there."""

    def __init__(self, folder: Path, *, stale: float = _STALE, touch: float = _TOUCH):
        self.folder, self._stale, self._touch = folder, stale, touch
        self.owner = {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}
        folder.mkdir(exist_ok=True)
        self._ahead = self._clock() - time.time()

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[Lease | None]:
        """Hold the lease of a piece of work while the body runs; None where another process has it."""
        path = self._acquire(name)
        if path is None:
            yield None
            return
        done = threading.Event()
        toucher = threading.Thread(target=self._keep, args=(path, done), daemon=True)
        toucher.start()
        try:
            yield Lease(self, name, path)
        finally:
            done.set()
            toucher.join()
            with contextlib.suppress(Exception):  # who has it next need not wait
                files.write_text(path, self._text(released=True))

    def is_free(self, name: str) -> bool:
        """Return whether nobody works on it."""
        newest = self.newest(name)
        return newest is None or self._is_stale(newest)

    def newest(self, name: str) -> Path | None:
        """Return the file of the newest generation."""
        path, number = None, 0
        while (following := self.folder / f"{name}.{number}").exists():
            path, number = following, number + 1
        return path

    def _acquire(self, name: str) -> Path | None:
        newest = self.newest(name)
        if newest is not None and not self._is_stale(newest):
            return None
        path = self.folder / f"{name}.{0 if newest is None else int(newest.suffix[1:]) + 1}"
        return path if files.create_text(path, self._text()) else None

    def _is_stale(self, path: Path) -> bool:
        try:
            age = time.time() + self._ahead - files.size_and_time(path)[1]
            owner = json.loads(files.read_text(path))
        except FileNotFoundError:
            return False
        except ValueError:  # being written
            return age > self._stale
        if owner["host"] == self.owner["host"] and _started(owner["pid"]) != owner["started"]:
            return True  # its process is gone
        return age > self._stale or owner["released"]

    def _keep(self, path: Path, done: threading.Event) -> None:
        text = self._text()
        while not done.wait(self._touch):
            with contextlib.suppress(Exception):  # the next touch may come through
                files.write_text(path, text) if files.is_remote(path) else os.utime(path)

    def _text(self, released: bool = False) -> str:
        return json.dumps(self.owner | {"id": uuid.uuid4().hex, "released": released})

    def _clock(self) -> float:
        """Return the time by the clock that dates files here, which may be that of a server."""
        path = self.folder / f".clock.{uuid.uuid4().hex}"
        files.write_text(path, "")
        try:
            return files.size_and_time(path)[1]
        finally:
            path.unlink()


class Lease:
    """A lease that this process holds."""

    def __init__(self, leases: Leases, name: str, path: Path):
        self._leases, self._name, self._path = leases, name, path

    @property
    def generation(self) -> int:
        """How many held it before."""
        return int(self._path.suffix[1:])

    def check(self) -> None:
        """Raise `Lost` if another process has taken it over."""
        if self._leases.newest(self._name) != self._path:
            raise Lost(self._name)


def _host() -> str:
    """Return what tells machines apart, and containers whose processes have numbers of their own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """Return when a process of this machine started, in ticks since boot; "" where it is gone (or a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "" if os.path.isdir("/proc/self") else "unknown"
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
