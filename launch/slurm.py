"""A SLURM batch script: one process per node or per GPU, requeued after preemption or failure."""

from __future__ import annotations

from lumos.errors import EXIT_PREEMPTED, UserError
from lumos.launch.spec import Job


def render(job: Job) -> str:
    """Return the text of an sbatch script."""
    if job.topology.is_tpu:
        raise UserError(
            f"--cluster=slurm is for GPUs, not {job.topology}: TPUs are started with tpu-vm, gke or skypilot"
        )
    gpus, nodes = job.topology.devices_per_slice, job.num_nodes
    tasks = 1 if job.per == "node" else gpus
    # A process per node sees all of the node's GPUs; with a process per GPU, jax takes the one of its local rank.
    devices = f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(gpus)))}\n" if job.per == "node" else ""
    return f"""#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --gpus-per-node={gpus}
#SBATCH --exclusive
#SBATCH --time={job.time_limit}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={job.name}-%j.log
#SBATCH --signal=B:TERM@120
# SIGTERM comes two minutes before the limit, or at preemption; the run saves itself and exits with {EXIT_PREEMPTED}.
set -uo pipefail

{job.install}
{devices}export JAX_COORDINATOR_ADDRESS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((61000 + SLURM_JOB_ID % 4000))"

srun --kill-on-bad-exit=1 --wait=120 bash -c '
  export JAX_NUM_PROCESSES=$SLURM_NTASKS JAX_PROCESS_ID=$SLURM_PROCID
  exec "$@"' start {job.command} &
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
