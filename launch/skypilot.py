"""A SkyPilot managed job: `sky jobs launch` starts it again elsewhere after a preemption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumos.errors import EXIT_PREEMPTED, UserError
from lumos.launch.spec import Job
from lumos.launch.tpu_vm import accelerator_type
from lumos.launch.yaml_text import dump

_GPUS = {"a100": "A100-80GB"}  # whose name is not that of the chip
_PORT = 8476
_FOLDER = "/tmp/lumos"  # of the wheel, on every host


def render(job: Job) -> str:
    """Return the task as YAML."""
    topology = job.topology
    if topology.num_slices > 1 and topology.is_tpu:
        raise UserError(f"--cluster=skypilot starts one slice, not {topology.num_slices}: use gke for several")
    recovery = {
        "strategy": "FAILOVER",
        "max_restarts_on_errors": job.max_restarts,
        "recover_on_exit_codes": [EXIT_PREEMPTED],
    }
    if topology.is_tpu:
        accelerators, nodes, join = f"tpu-{accelerator_type(job)}:1", 1, "export LUMOS_CLUSTER=tpu"
    else:
        chip = _GPUS.get(topology.chip_name, topology.chip_name.upper())
        accelerators, nodes = f"{chip}:{topology.devices_per_slice}", job.num_nodes
        join = (
            f'export JAX_COORDINATOR_ADDRESS=$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{_PORT}\n'
            "export JAX_NUM_PROCESSES=$SKYPILOT_NUM_NODES JAX_PROCESS_ID=$SKYPILOT_NODE_RANK\n"
            f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(topology.devices_per_slice)))}"
        )
    resources: dict[str, Any] = {"accelerators": accelerators, "use_spot": True, "job_recovery": recovery}
    if job.image:
        resources["image_id"] = f"docker:{job.image}"
    task: dict[str, Any] = {"name": job.name, "num_nodes": nodes, "resources": resources}
    place = f"{_FOLDER}/{Path(job.wheel).name}"
    if job.wheel:
        task["file_mounts"] = {place: str(Path(job.wheel).absolute())}
    return dump(task | {"setup": f"{job.install(place)}\n", "run": f"{join}\nexec {job.command}\n"})
