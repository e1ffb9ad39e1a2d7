"""Joins the processes of a run, one or several per host, through `jax.distributed`.

A launcher sets JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID in every process.
Where the last two are missing, jax asks the cluster (SLURM, Open MPI, Kubernetes, Cloud TPU).
"""

from __future__ import annotations

import os

from lumos.errors import UserError


def join() -> None:
    """Connect to the other processes, if a launcher started any; must precede the first use of devices.

    Blocks until all are there; the watchdog limits how long.

    Raises:
      UserError: the environment variables make no sense.
    """
    if "JAX_COORDINATOR_ADDRESS" not in os.environ:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    numbers = {}
    for argument, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
        text = os.environ.get(name, "")
        if text and not text.isdecimal():
            raise UserError(f"{name}={text!r} must be a number")
        numbers[argument] = int(text) if text else None
    try:
        jax.distributed.initialize(**numbers, initialization_timeout=10**6)  # the deadline is the watchdog's
    except (ValueError, IndexError) as error:
        address = os.environ["JAX_COORDINATOR_ADDRESS"]
        raise UserError(f"cannot join the processes of JAX_COORDINATOR_ADDRESS={address!r}: {error}") from error
