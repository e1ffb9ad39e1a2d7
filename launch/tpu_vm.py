"""A script for TPU VMs: creates a queued resource, installs, starts the verb on all hosts, starts again after preemption."""

from __future__ import annotations

import shlex
from pathlib import Path

from lumos.errors import EXIT_PREEMPTED, UserError
from lumos.launch.spec import Job

# Cloud names of accelerators count cores for v4 and v5p, chips for the others.
_NAMES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1), "tpu7x": ("tpu7x", 2)}
_RUNTIMES = {"v4": "tpu-ubuntu2204-base", "v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e", "tpu7x": "v2-alpha-tpu7"}  # fmt: skip


def accelerator_type(job: Job) -> str:
    """Return the cloud's name of a slice, such as v5p-512."""
    name, factor = _NAMES[job.topology.chip_name]
    return f"{name}-{job.topology.devices_per_slice * factor}"


def render(job: Job) -> str:
    """Return the text of a bash script."""
    if not job.topology.is_tpu:
        raise UserError(f"--cluster=tpu-vm is for TPUs, not {job.topology}")
    if job.topology.num_slices > 1:
        raise UserError(f"--cluster=tpu-vm starts one slice, not {job.topology.num_slices}: use gke for several")
    place = Path(job.wheel).name
    copy = f'tpu tpu-vm scp {shlex.quote(job.wheel)} "$name": --worker=all\n  ' if job.wheel else ""
    return f"""#!/bin/bash
# usage: PROJECT=... ZONE=... bash {job.name}.sh
set -euo pipefail
: "${{PROJECT:?}}" "${{ZONE:?}}"
name={job.name}
tpu() {{ gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }}

create() {{
  tpu queued-resources create "$name" --node-id="$name" --accelerator-type={accelerator_type(job)} \\
    --runtime-version={_RUNTIMES[job.topology.chip_name]} --spot
  until [ "$(tpu queued-resources describe "$name" --format='value(state.state)')" = ACTIVE ]; do sleep 30; done
}}

delete() {{ tpu queued-resources delete "$name" --quiet --force || true; }}

run() {{
  {copy}tpu tpu-vm ssh "$name" --worker=all --command="$(cat <<'REMOTE'
set -e
{job.install(place)}
export LUMOS_CLUSTER=tpu
exec {job.command}
REMOTE
)"
}}

for attempt in $(seq 0 {job.max_restarts}); do
  if [ "$(tpu queued-resources describe "$name" --format='value(state.state)' 2>/dev/null)" != ACTIVE ]; then
    delete
    create
  fi
  code=0
  run || code=$?
  case $code in
    0 | 2) exit $code ;;  # done, or bad input
  esac
  echo "attempt $attempt ended with $code ({EXIT_PREEMPTED} is a preemption); resuming" >&2
done
exit 1
"""
