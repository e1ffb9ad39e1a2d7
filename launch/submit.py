"""`lumos launch`: processes on this machine, or the files and the command for a cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from lumos.errors import UserError
from lumos.launch import gke, skypilot, slurm, tpu_vm
from lumos.launch.spec import Job

# Cluster -> (renderer, suffix of the file, command that submits it).
CLUSTERS: dict[str, tuple[Callable[[Job], str], str, list[str]]] = {
    "slurm": (slurm.render, ".sbatch", ["sbatch"]),
    "gke": (gke.render, ".yaml", ["kubectl", "apply", "-f"]),
    "tpu-vm": (tpu_vm.render, ".sh", ["bash"]),
    "skypilot": (skypilot.render, ".yaml", ["sky", "jobs", "launch", "--yes"]),
}


def check_cluster(cluster: str) -> None:
    """Raise UserError for a cluster that there is no launcher for."""
    if cluster not in CLUSTERS:
        raise UserError(f"--cluster={cluster!r} must be one of {', '.join(CLUSTERS)}; or run here with --local")


def submit_job(job: Job, cluster: str, *, dry_run: bool) -> int:
    """Print the file of a job (dry run), or write and submit it. Raises UserError."""
    check_cluster(cluster)
    render, suffix, submit = CLUSTERS[cluster]
    text = render(job)
    if dry_run:
        print(text, end="")
        return 0
    path = Path(job.name + suffix)
    path.write_text(text)
    print(f"wrote {path}; running {' '.join(submit)} {path}")
    try:
        return subprocess.run([*submit, str(path)], check=False).returncode
    except FileNotFoundError as error:
        raise UserError(f"{submit[0]} is not installed here; submit {path} where it is, or use --dry_run") from error
