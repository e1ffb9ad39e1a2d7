"""What to start and where: the one description from which every launcher's files are rendered."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path

from lumos.chips import Topology, parse_topology
from lumos.errors import UserError

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_WORD = re.compile(r"[\w./@:%+,=-]+")  # what stands in a file without quotes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a verb on a cluster. What only one kind of cluster has is named in `ONLY`."""

    name: str
    verb: tuple[str, ...]  # such as ("train", "--config=...", "--workdir=/mnt/...")
    topology: Topology
    image: str = ""  # container image with lumos in it
    max_restarts: int = 100
    setup: str = ""  # shell command before the verb; "" = install the wheel, if there is one
    wheel: str = ""  # of lumos (`make wheel`)
    per: str = "node"  # node | gpu: what gets a process of its own
    time_limit: str = "24:00:00"
    partition: str = ""
    account: str = ""
    qos: str = ""
    array: str = ""  # jobs alike: how many, or their indices, such as 0-7%2
    mounts: tuple[str, ...] = ()  # HOST:CONTAINER, with an image
    sbatch: tuple[str, ...] = ()  # further options of sbatch
    queue: str = ""  # local queue of Kueue
    service_account: str = ""  # of Kubernetes, which may stand for one of the cloud
    volume: tuple[str, ...] = ()  # CLAIM:FOLDER, persistent volume claims and where they are mounted

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"--name={self.name!r}: lower-case letters, digits and dashes, at most 40, starting with a letter"
            )
        if not self.verb:
            raise UserError(
                "lumos launch: what to run? put the verb behind --, as in: lumos launch ... -- train --config=..."
            )
        if self.per not in ("node", "gpu"):
            raise UserError(f"--per={self.per!r} must be node or gpu")
        if not re.fullmatch(r"(\d+-)?\d{1,2}:\d{2}:\d{2}", self.time_limit):
            raise UserError(f"--time_limit={self.time_limit!r} must be hours:minutes:seconds")
        if self.array and not re.fullmatch(r"[\d,:-]+(%\d+)?", self.array):
            raise UserError(f"--array={self.array!r} must be a number of jobs, or indices such as 0-7, 0-7%2 or 1,3,5")
        if self.array and self.verb[0] != "sweep" and not self.array.endswith("%1"):
            raise UserError(
                f"--array={self.array}: jobs that run at once must share their work, as those of lumos sweep do; %1 runs one after another"
            )
        for flag in ("image", "partition", "account", "qos", "queue", "service_account"):
            if (value := getattr(self, flag)) and not _WORD.fullmatch(value):
                raise UserError(f"--{flag}={value!r} must be one word of letters, digits and ./@:%+,=-")
        for flag, form in (("mounts", "HOST:CONTAINER"), ("volume", "CLAIM:FOLDER")):
            for value in getattr(self, flag):
                if not re.fullmatch(r"[^:\s,]+:/[^:\s,]*", value):
                    raise UserError(f"--{flag}={value!r} must be {form}, the latter beginning with /")
        for option in self.sbatch:
            if not re.fullmatch(r"--[\w-]+(=\S+)?", option):
                raise UserError(f"--sbatch={option!r} must be an option of sbatch, such as --sbatch=--mem=0")
        if self.wheel and not re.fullmatch(r"\S*lumos_video-[\w.+-]+\.whl", self.wheel):
            raise UserError(
                f"--wheel={self.wheel}: the wheel of lumos is called lumos_video-VERSION-py3-none-any.whl; run make wheel"
            )
        if self.wheel and not Path(self.wheel).is_file():
            raise UserError(f"--wheel={self.wheel}: no such file; run make wheel")
        if self.wheel and self.setup:
            raise UserError("--wheel is what the usual setup installs; give --setup or --wheel, not both")

    @property
    def command(self) -> str:
        """The command of one process, quoted for a shell. The run refuses to start on fewer devices than it should have."""
        return f"env LUMOS_NUM_DEVICES={self.topology.num_devices} {shlex.join(['lumos', *self.verb])}"

    def install(self, wheel: str, *, here: bool = False) -> str:
        """Return the shell command that makes `lumos` a command.

        Args:
          wheel: where the wheel lies on the machine that runs it.
          here: that machine sees the folders of this one, and so the environment in which this command runs.

        Raises UserError where nothing says how lumos gets there.
        """
        if self.setup:
            return self.setup
        if self.wheel:
            return f"pip install --quiet {shlex.quote(f'{wheel}[{self.extra}]')}"
        if self.image:
            return "true"  # it is in the image
        if here:
            return f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
        raise UserError(
            "lumos is in no package registry: give --wheel=dist/lumos_video-... (make wheel builds it), --image with lumos in it "
            "(docker/Dockerfile), or --setup"
        )

    @property
    def extra(self) -> str:
        """The extra of the package that brings JAX for the devices."""
        return "tpu" if self.topology.is_tpu else "gpu"

    @property
    def num_nodes(self) -> int:
        """Hosts of one slice (TPU), or all (GPU)."""
        if self.topology.is_tpu:
            return max(self.topology.devices_per_slice // chips_per_host(self.topology), 1)
        return self.topology.num_slices


# Flag -> the clusters that have it.
ONLY = {
    **dict.fromkeys(("per", "time_limit", "partition", "account", "qos", "array", "mounts", "sbatch"), ("slurm",)),
    **dict.fromkeys(("queue", "service_account", "volume"), ("gke",)),
    "wheel": ("slurm", "tpu-vm", "skypilot"),
    "image": ("slurm", "gke", "skypilot"),
    "setup": ("slurm", "tpu-vm", "skypilot"),
}


def chips_per_host(topology: Topology) -> int:
    """Return how many chips hang on one TPU host: 4, or all of a v5e or v6e slice of up to 8."""
    if topology.chip_name in ("v5e", "v6e") and topology.devices_per_slice <= 8:
        return topology.devices_per_slice
    return min(4, topology.devices_per_slice)


def make_job(name: str, topology: str, verb: list[str], cluster: str = "", **options) -> Job:
    """Build a job from flags. Raises UserError, also for flags that the cluster does not have."""
    for flag in options:
        if cluster and cluster not in ONLY.get(flag, (cluster,)):
            raise UserError(f"--{flag} is for --cluster={' and '.join(ONLY[flag])}, not {cluster}")
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return Job(name=name, topology=parse_topology(topology), verb=tuple(verb), **options)
