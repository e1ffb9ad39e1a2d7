"""One process of a run, for tests that kill, stop or hang it: `worker.py '{"config": ..., "workdir": ...}'`.

The job (JSON) has "config" and "workdir", and optionally "process", "count" and "port" of a distributed run on this
machine, and what goes wrong: "stuck_at" (a batch at which this process hangs), "slow_save" (seconds that saving takes).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def run(job: dict) -> None:
    """Run `lumos train` and end the process."""
    from lumos import cli, sharding
    from lumos.checkpoint import Checkpointer

    if job.get("count", 1) > 1:
        os.environ["JAX_COORDINATOR_ADDRESS"] = f"localhost:{job['port']}"
        os.environ |= {"JAX_NUM_PROCESSES": str(job["count"]), "JAX_PROCESS_ID": str(job["process"])}
    if "stuck_at" in job:
        put_batch, calls = sharding.put_batch, []

        def stuck(*args):
            calls.append(None)
            if len(calls) == job["stuck_at"]:
                time.sleep(1000)
            return put_batch(*args)

        sharding.put_batch = stuck
    if "slow_save" in job:
        save = Checkpointer.save
        Checkpointer.save = lambda *args, **kwargs: (time.sleep(job["slow_save"]), save(*args, **kwargs))
    sys.argv[1:] = ["train", f"--config={job['config']}", f"--workdir={job['workdir']}"]
    cli.run_and_exit()


def start(job: dict, cache: Path) -> subprocess.Popen:
    """Start a worker on one device per process, with compiled programs shared in `cache`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, __file__, json.dumps(job)]
    return subprocess.Popen(command, env=environment, cwd=REPO, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
