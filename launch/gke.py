"""A Kubernetes JobSet: one job per TPU slice, or one for all GPU nodes; restarted as a whole, resuming by itself."""

from __future__ import annotations

from lumos.errors import EXIT_PREEMPTED, UserError
from lumos.launch.spec import Job, chips_per_host

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


def render(job: Job) -> str:
    """Return the JobSet as YAML."""
    if not job.image:
        raise UserError("--cluster=gke needs --image: a container with lumos installed")
    topology = job.topology
    accelerator = _ACCELERATORS[topology.chip_name]
    if topology.is_tpu:
        replicas, resource, count = topology.num_slices, "google.com/tpu", chips_per_host(topology)
        shape = "x".join(map(str, topology.shape))
        selector = f"cloud.google.com/gke-tpu-accelerator: {accelerator}\n                cloud.google.com/gke-tpu-topology: {shape}"
        # GKE tells every pod of a slice its peers; several slices find each other through the first.
        environment = ""
    else:
        replicas, resource, count = 1, "nvidia.com/gpu", topology.devices_per_slice
        selector = f"cloud.google.com/gke-accelerator: {accelerator}"
        environment = f"""
                  env:
                  - name: JAX_COORDINATOR_ADDRESS
                    value: {job.name}-slice-0-0.{job.name}:{_PORT}
                  - name: JAX_NUM_PROCESSES
                    value: "{job.num_nodes}"
                  - name: JAX_PROCESS_ID
                    valueFrom:
                      fieldRef:
                        fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
                  - name: JAX_LOCAL_DEVICE_IDS
                    value: "{",".join(map(str, range(count)))}\""""
    return f"""apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {job.name}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: {job.max_restarts}
    rules:
    - action: FailJobSet  # bad input does not get better
      onJobFailureReasons: [PodFailurePolicy]
  network:
    enableDNSHostnames: true
  replicatedJobs:
  - name: slice
    replicas: {replicas}
    template:
      spec:
        parallelism: {job.num_nodes}
        completions: {job.num_nodes}
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: lumos
              operator: In
              values: [2]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300  # SIGTERM: save, then exit with {EXIT_PREEMPTED}; the JobSet starts again
            nodeSelector:
                {selector}
            containers:
                - name: lumos
                  image: {job.image}
                  command: ["bash", "-c"]
                  args:
                  - |
                    set -e
                    exec {job.command}{environment}
                  ports:
                  - containerPort: {_PORT}
                  resources:
                    limits:
                      {resource}: {count}
"""
