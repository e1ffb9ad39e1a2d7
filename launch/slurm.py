"""A SLURM batch script: one process per node or per GPU, requeued after preemption or failure."""

from __future__ import annotations

from pathlib import Path

from lumos.errors import EXIT_PREEMPTED, UserError
from lumos.launch.spec import Job


def render(job: Job) -> str:
    """Return the text of an sbatch script."""
    if job.topology.is_tpu:
        raise UserError(
            f"--cluster=slurm is for GPUs, not {job.topology}: TPUs are started with tpu-vm, gke or skypilot"
        )
    if job.mounts and not job.image:
        raise UserError("--mounts are those of a container: give --image too")
    gpus = job.topology.devices_per_slice
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.num_nodes}",
        f"--ntasks-per-node={1 if job.per == 'node' else gpus}",
        f"--gpus-per-node={gpus}",
        "--exclusive",
        f"--time={job.time_limit}",
        "--requeue",
        "--open-mode=append",
        f"--output={job.name}-{'%A_%a' if job.array else '%j'}.log",
        "--signal=B:TERM@120",
        *(f"--{name}={value}" for name in ("partition", "account", "qos") if (value := getattr(job, name))),
        *([f"--array={f'0-{int(job.array) - 1}' if job.array.isdigit() else job.array}"] if job.array else []),
        *job.sbatch,
    ]
    # A process per node sees all of the node's GPUs; with a process per GPU, jax takes the one of its local rank.
    devices = f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(gpus)))}\n" if job.per == "node" else ""
    wheel = str(Path(job.wheel).absolute()) if job.wheel else ""
    install, inside, container = job.install(wheel, here=True), "", ""
    if job.image:  # there is nothing to be installed on the host
        mounts = [*job.mounts, *([f"{Path(wheel).parent}:{Path(wheel).parent}"] if wheel else [])]
        container = f" --container-image={job.image}" + (f" --container-mounts={','.join(mounts)}" if mounts else "")
        # In the quotes of bash -c.
        install, inside = "", f"  {install}\n".replace("'", "'\\''")
    lines = "\n".join(f"#SBATCH {option}" for option in options)
    return f"""#!/bin/bash
{lines}
# SIGTERM comes two minutes before the limit, or at preemption; the run saves itself and exits with {EXIT_PREEMPTED}.
set -uo pipefail

{install}
{devices}export JAX_COORDINATOR_ADDRESS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((61000 + SLURM_JOB_ID % 4000))"

srun{container} --kill-on-bad-exit=1 --wait=120 bash -c '
  export JAX_NUM_PROCESSES=$SLURM_NTASKS JAX_PROCESS_ID=$SLURM_PROCID
{inside}  exec "$@"' start {job.command} &
step=$!
trap 'kill -TERM $step' TERM
wait $step; code=$?
trap - TERM
wait $step 2>/dev/null; late=$?
if [ $code -gt 128 ] && [ $late -ne 127 ]; then code=$late; fi  # the first wait ended by the signal

if [ $code -ne 0 ] && [ $code -ne 2 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {job.max_restarts} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""
