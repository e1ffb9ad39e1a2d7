"""A Kubernetes JobSet: one job per TPU slice, or one for all GPU nodes; restarted as a whole, resuming by itself."""

from __future__ import annotations

from typing import Any

from lumos.errors import UserError
from lumos.launch.spec import Job, chips_per_host
from lumos.launch.yaml_text import dump

_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
_PORT = 8476
_GRACE = 300  # seconds between SIGTERM and the end: a run saves, exits with 75, and the JobSet starts it again


def render(job: Job) -> str:
    """Return the JobSet as YAML."""
    if not job.image:
        raise UserError("--cluster=gke needs --image: a container with lumos installed (docker/Dockerfile)")
    topology = job.topology
    metadata: dict[str, Any] = {"name": job.name}
    if job.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.queue}
    metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    ends = {"containerName": "lumos", "operator": "In", "values": [2]}  # bad input does not get better
    template = {
        "parallelism": job.num_nodes,
        "completions": job.num_nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": ends}]},
        "template": {"spec": _pod(job)},
    }
    spec = {
        "failurePolicy": {
            "maxRestarts": job.max_restarts,
            "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "network": {"enableDNSHostnames": True},
        "replicatedJobs": [
            {"name": "slice", "replicas": topology.num_slices if topology.is_tpu else 1, "template": {"spec": template}}
        ],
    }
    return dump({"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec})


def _pod(job: Job) -> dict[str, Any]:
    topology, accelerator = job.topology, _ACCELERATORS[job.topology.chip_name]
    if topology.is_tpu:
        resource, count = "google.com/tpu", chips_per_host(topology)
        shape = "x".join(map(str, topology.shape))
        selector = {"cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": shape}
    else:
        resource, count = "nvidia.com/gpu", topology.devices_per_slice
        selector = {"cloud.google.com/gke-accelerator": accelerator}
    container: dict[str, Any] = {
        "name": "lumos",
        "image": job.image,
        "command": ["bash", "-c"],
        "args": [f"set -e\nexec {job.command}\n"],
    }
    if (
        not topology.is_tpu
    ):  # GKE tells every pod of a slice its peers; several slices find each other through the first
        container["env"] = _environment(job, count)
    container["ports"] = [{"containerPort": _PORT}]
    container["resources"] = {"limits": {resource: count}}
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": _GRACE, "nodeSelector": selector}
    if job.service_account:
        pod["serviceAccountName"] = job.service_account
    if job.volume:
        claims = [value.split(":") for value in job.volume]
        container["volumeMounts"] = [{"name": f"volume-{i}", "mountPath": path} for i, (_, path) in enumerate(claims)]
        pod["volumes"] = [
            {"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": claim}}
            for i, (claim, _) in enumerate(claims)
        ]
    return pod | {"containers": [container]}


def _environment(job: Job, count: int) -> list[dict[str, Any]]:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{job.name}-slice-0-0.{job.name}:{_PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(job.num_nodes)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "JAX_LOCAL_DEVICE_IDS", "value": ",".join(map(str, range(count)))},
    ]
