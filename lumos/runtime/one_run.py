"""One training run at a time in a workdir: two would write each other's checkpoints."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from lumos import files
from lumos.errors import UserError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def one_run(workdir: Path) -> Iterator[None]:
    """Hold the lock of a workdir, `workdir/lock`, in the first process of a run. The system gives it back when the process ends, however it ends.

    Buckets, and file systems without locks, cannot say that another run is there.

    Raises:
      UserError: another process holds it.
    """
    if files.is_remote(workdir) or jax.process_index() > 0:
        yield
        return
    with (workdir / "lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by another run ({file.read().strip()}): stop that one, or give another --workdir"
            ) from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): make sure that no second run uses it", workdir, error)
        file.truncate(0)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        yield
