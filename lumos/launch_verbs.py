"""The verb that starts others on a cluster, or as several processes here: its flags, and the function that it calls."""

from __future__ import annotations

from lumos.flag_definitions import Verb, group, many, number, switch, text

_OPTIONS = (
    text("image", "", "container image with lumos (gke, skypilot; slurm: run with pyxis)"),
    text(
        "setup", "", "shell command before the verb (slurm: once, in the batch script; tpu-vm, skypilot: on every host)"
    ),
    text(
        "wheel", "", "wheel of lumos that is installed before the verb, built by make wheel (slurm, tpu-vm, skypilot)"
    ),
    number("max_restarts", 100, "after failures and preemptions"),
    text("per", "node", "node | gpu: what gets a process of its own (slurm)"),
    text("time_limit", "24:00:00", "of one allocation; the job is requeued after it (slurm)"),
    text("partition", "", "partition (slurm)"),
    text("account", "", "account (slurm)"),
    text("qos", "", "quality of service (slurm)"),
    text("array", "", "number of jobs alike that share a sweep, or their indices, such as 0-7%2 (slurm)"),
    many("mounts", "HOST:CONTAINER, a folder of the host in the container; repeat the flag (slurm, with --image)"),
    many("sbatch", "a further option of sbatch, such as --sbatch=--mem=0; repeat the flag (slurm)"),
    text("queue", "", "local queue of Kueue (gke)"),
    text("service_account", "", "service account of Kubernetes, for gs:// (gke)"),
    many("volume", "CLAIM:FOLDER, a persistent volume claim and where it is mounted; repeat the flag (gke)"),
)


def _launch(values, overrides):
    from lumos.launch import local
    from lumos.launch.spec import make_job
    from lumos.launch.submit import check_cluster, submit_job

    if values.local:
        processes, devices = values.num_processes, values.devices_per_process
        return local.run(values.verb, num_processes=processes, devices_per_process=devices)
    check_cluster(values.cluster)
    names = [name for name in _NAMES if values[name].present]
    options = {name: values[name].value for name in names}
    job = make_job(values.name, values.topology, values.verb, values.cluster, **options)
    return submit_job(job, values.cluster, dry_run=values.dry_run)


_NAMES = (
    "image", "setup", "wheel", "max_restarts", "per", "time_limit", "partition", "account", "qos", "array", "mounts", "sbatch", "queue",
    "service_account", "volume",
)  # fmt: skip

VERBS: dict[str, Verb] = {
    "launch": Verb(
        group(
            switch("local", False, "run processes on this machine, on CPU devices"),
            number("num_processes", 2, "with --local: processes"),
            number("devices_per_process", 1, "with --local: CPU devices of each"),
            text("cluster", "slurm", "slurm | gke | tpu-vm | skypilot"),
            text("topology", "h100:8", "devices of the job: h100:64, v5p:8x8x4, 2*v5e:16x16"),
            text("name", "lumos", "of the job"),
            *_OPTIONS,
            switch("dry_run", False, "print the file instead of submitting it"),
            many("verb", "what to run: everything behind --"),
        ),
        _launch,
        no_overrides="lumos launch: config overrides belong behind --, to the verb",
    ),
}
