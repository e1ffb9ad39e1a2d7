"""What to start and where: the one description from which every launcher's files are rendered."""

from __future__ import annotations

import dataclasses
import re
import shlex

from lumos.chips import Topology, parse_topology
from lumos.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a verb on a cluster."""

    name: str
    verb: tuple[str, ...]  # such as ("train", "--config=...", "--workdir=/mnt/...")
    topology: Topology
    image: str = ""  # container image, where the cluster runs one
    per: str = "node"  # node | gpu: what gets a process of its own (GPUs)
    max_restarts: int = 100
    time_limit: str = "24:00:00"  # SLURM
    setup: str = ""  # shell command before the verb; "" = install lumos with jax for the devices

    def __post_init__(self):
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
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

    @property
    def command(self) -> str:
        """The command of one process, quoted for a shell. The run refuses to start on fewer devices than it should have."""
        return f"env LUMOS_NUM_DEVICES={self.topology.num_devices} {shlex.join(['lumos', *self.verb])}"

    @property
    def install(self) -> str:
        return self.setup or f"pip install --quiet 'lumos-video[{'tpu' if self.topology.is_tpu else 'gpu'}]'"

    @property
    def num_nodes(self) -> int:
        """Hosts of one slice (TPU), or all (GPU)."""
        if self.topology.is_tpu:
            return max(self.topology.devices_per_slice // chips_per_host(self.topology), 1)
        return self.topology.num_slices


def chips_per_host(topology: Topology) -> int:
    """Return how many chips hang on one TPU host: 4, or all of a v5e or v6e slice of up to 8."""
    if topology.chip_name in ("v5e", "v6e") and topology.devices_per_slice <= 8:
        return topology.devices_per_slice
    return min(4, topology.devices_per_slice)


def make_job(name: str, topology: str, verb: list[str], **options) -> Job:
    """Build a job from flags. Raises UserError."""
    return Job(name=name, topology=parse_topology(topology), verb=tuple(verb), **options)
