"""Run a verb as several real processes on this machine, on CPU devices: what a cluster does, small."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from lumos.errors import UserError

_GRACE = 60.0  # seconds between asking the others to stop and stopping them


def run(verb: list[str], *, num_processes: int, devices_per_process: int) -> int:
    """Start the processes, pass their output on with a prefix, forward SIGTERM and SIGINT; return the exit code.

    When one process fails, the others are stopped: they would wait for it. The code is that of the first to fail.
    """
    if not verb:
        raise UserError(
            "lumos launch: what to run? put the verb behind --, as in: lumos launch --local -- train --config=..."
        )
    if num_processes < 1 or devices_per_process < 1:
        raise UserError(
            f"--num_processes={num_processes} and --devices_per_process={devices_per_process} must be at least 1"
        )
    address = f"localhost:{_free_port()}"
    started = [_start(verb, i, num_processes, devices_per_process, address) for i in range(num_processes)]
    readers = [threading.Thread(target=_pass_on, args=(i, process)) for i, process in enumerate(started)]
    for reader in readers:
        reader.start()
    forward = lambda number, _: [process.send_signal(number) for process in started if process.poll() is None]
    old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = _wait(started)
    finally:
        for process in started:
            process.kill()
        for reader in readers:
            reader.join()
        for number, handler in old.items():
            signal.signal(number, handler)
    return code


def _start(verb, index, num_processes, devices, address) -> subprocess.Popen:
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_PROCESS_ID": str(index),
        "LUMOS_NUM_DEVICES": str(num_processes * devices),
        "XLA_FLAGS": " ".join(flags),
    }
    command = [sys.executable, "-m", "lumos", *verb]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def _pass_on(index: int, process: subprocess.Popen) -> None:
    for line in process.stdout:
        print(f"[{index}] {line}", end="", flush=True)


def _wait(started: list[subprocess.Popen]) -> int:
    """Wait until all have ended, or one has failed and the rest have had their time."""
    deadline, code = None, 0
    while any(process.poll() is None for process in started):
        failed = [process.returncode for process in started if process.returncode]
        if failed and deadline is None:
            deadline, code = time.monotonic() + _GRACE, failed[0]
            for process in started:
                process.terminate()
        if deadline is not None and time.monotonic() > deadline:
            return code
        time.sleep(0.1)
    return code or next((process.returncode for process in started if process.returncode), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
