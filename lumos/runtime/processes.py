"""Joins the processes of a run, one or several per host, through `jax.distributed`.

A launcher sets JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID in every process.
Where it does not, jax asks the cluster that started the process: SLURM, Open MPI, a Kubernetes JobSet or a Cloud TPU.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from lumos.errors import UserError

_log = logging.getLogger(__name__)


def started_by(environ: Mapping[str, str]) -> str:
    """Return what started this process as one of several, or "" if it runs alone."""
    if "JAX_COORDINATOR_ADDRESS" in environ:
        return "flags"
    if environ.get("LUMOS_CLUSTER") == "tpu" or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return "tpu"  # a TPU VM knows its peers from the metadata server
    if "," in environ.get("TPU_WORKER_HOSTNAMES", ""):
        return "tpu"
    if "SLURM_STEP_ID" in environ and int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1) > 1:
        return "slurm"
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "open mpi"
    if "JOBSET_NAME" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "jobset"
    return ""


def join() -> None:
    """Connect to the other processes, if a launcher started any; must precede the first use of devices.

    Blocks until all are there; the caller's watchdog or the launcher limits how long.

    Raises:
      UserError: the environment variables make no sense, or the coordinator cannot be reached.
    """
    cluster = started_by(os.environ)
    if not cluster:
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
        jax.distributed.initialize(**numbers, initialization_timeout=10**6)
    except (ValueError, IndexError) as error:
        address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
        raise UserError(f"cannot join the processes of JAX_COORDINATOR_ADDRESS={address!r}: {error}") from error


def keep_apart() -> None:
    """Let a process that was started with others work alone: where each GPU of a host has a process (SLURM), it takes its own.

    Must precede the first use of devices.
    """
    import jax

    index, count = (os.environ.get(name, "") for name in ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"))
    if index.isdecimal() and count.isdecimal() and int(count) > 1:
        jax.config.update("jax_cuda_visible_devices", index)


def census() -> None:
    """Log the devices of a run of several processes.

    Raises UserError unless there are LUMOS_NUM_DEVICES of them, where a launcher set it.

    A process that failed to join the others would else train on its own, as an island.
    """
    import jax

    kinds = sorted({device.device_kind for device in jax.devices()})
    found = f"{jax.device_count()} devices ({', '.join(kinds)}) of {jax.process_count()} processes"
    if jax.process_count() > 1 and jax.process_index() == 0:
        _log.info("%s, %d of them in this process", found, jax.local_device_count())
    expected = os.environ.get("LUMOS_NUM_DEVICES", "")
    if expected and expected != str(jax.device_count()):
        raise UserError(
            f"LUMOS_NUM_DEVICES={expected}, but the run sees {found}: start the missing processes, or change the variable"
        )
