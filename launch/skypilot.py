"""A SkyPilot managed job: `sky jobs launch` starts it again elsewhere after a preemption."""

from __future__ import annotations

from lumos.errors import EXIT_PREEMPTED, UserError
from lumos.launch.spec import Job
from lumos.launch.tpu_vm import accelerator_type

_GPUS = {"a100": "A100-80GB"}  # whose name is not that of the chip
_PORT = 8476


def render(job: Job) -> str:
    """Return the task as YAML."""
    topology = job.topology
    if topology.num_slices > 1 and topology.is_tpu:
        raise UserError(f"--cluster=skypilot starts one slice, not {topology.num_slices}: use gke for several")
    accelerators = (
        f"tpu-{accelerator_type(job)}:1"
        if topology.is_tpu
        else f"{_GPUS.get(topology.chip_name, topology.chip_name.upper())}:{topology.devices_per_slice}"
    )
    nodes = 1 if topology.is_tpu else job.num_nodes
    if topology.is_tpu:
        join = "export LUMOS_CLUSTER=tpu"
    else:
        join = f"""export JAX_COORDINATOR_ADDRESS=$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{_PORT}
  export JAX_NUM_PROCESSES=$SKYPILOT_NUM_NODES JAX_PROCESS_ID=$SKYPILOT_NODE_RANK
  export JAX_LOCAL_DEVICE_IDS={",".join(map(str, range(topology.devices_per_slice)))}"""
    image = f"\n  image_id: docker:{job.image}" if job.image else ""
    return f"""name: {job.name}
num_nodes: {nodes}
resources:
  accelerators: {accelerators}
  use_spot: true
  job_recovery:
    strategy: FAILOVER
    max_restarts_on_errors: {job.max_restarts}
    recover_on_exit_codes: [{EXIT_PREEMPTED}]{image}
setup: |
  {job.install}
run: |
  {join}
  exec {job.command}
"""
