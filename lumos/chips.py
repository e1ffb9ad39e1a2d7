"""Accelerators: peak rates and memory, and topologies such as `v5p:8x8x4`, `2*v5e:16x16` or `h100:64`.

TPU figures are those of the Google Cloud documentation and "How to Scale Your Model" (Austin et al. 2025, chapter 2);
GPU figures are NVIDIA's data sheets, dense bf16, SXM modules (an a100 is one of 80 GB).
"""

from __future__ import annotations

import dataclasses
import math
import re

from lumos.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    kinds: tuple[str, ...]  # what JAX calls its devices (`device_kind`)
    flops: float  # bf16 FLOP/s
    hbm: float  # usable bytes: what the compiler lets a program have
    hbm_rate: float  # bytes/s
    link_rate: float  # bytes/s of one link in one direction
    num_links: int  # mesh axes with a link each way (TPU); 0 = a switch that joins `node` devices
    dcn_rate: float  # bytes/s per chip between slices or nodes
    matrix: int  # width of the matrix unit: shorter contractions leave a part of it idle
    node: int = 0  # devices behind one switch (GPU)
    cores: int = 1  # devices that JAX sees in one chip


CHIPS = {
    "v4": Chip(kinds=("TPU v4",), flops=275e12, hbm=31.75 * GIB, hbm_rate=1.2e12, link_rate=45e9, num_links=3, dcn_rate=3.1e9, matrix=128),
    "v5e": Chip(kinds=("TPU v5 lite", "TPU v5e"), flops=197e12, hbm=15.75 * GIB, hbm_rate=0.82e12, link_rate=45e9, num_links=2, dcn_rate=3.1e9, matrix=128),
    "v5p": Chip(kinds=("TPU v5", "TPU v5p"), flops=459e12, hbm=95.74 * GIB, hbm_rate=2.76e12, link_rate=90e9, num_links=3, dcn_rate=6.2e9, matrix=128),
    "v6e": Chip(kinds=("TPU v6 lite", "TPU v6e"), flops=918e12, hbm=31.25 * GIB, hbm_rate=1.64e12, link_rate=90e9, num_links=2, dcn_rate=12.5e9, matrix=256),
    "tpu7x": Chip(kinds=("TPU7x",), flops=2307e12, hbm=190 * GIB, hbm_rate=7.4e12, link_rate=100e9, num_links=3, dcn_rate=12.5e9, matrix=256, cores=2),
    "a100": Chip(kinds=("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB"), flops=312e12, hbm=76 * GIB, hbm_rate=2.04e12, link_rate=300e9, num_links=0, dcn_rate=25e9, matrix=64, node=8),
    "h100": Chip(kinds=("NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB"), flops=989e12, hbm=76 * GIB, hbm_rate=3.35e12, link_rate=450e9, num_links=0, dcn_rate=50e9, matrix=64, node=8),
    "h200": Chip(kinds=("NVIDIA H200",), flops=989e12, hbm=136 * GIB, hbm_rate=4.8e12, link_rate=450e9, num_links=0, dcn_rate=50e9, matrix=64, node=8),
    "b200": Chip(kinds=("NVIDIA B200",), flops=2250e12, hbm=171 * GIB, hbm_rate=7.7e12, link_rate=900e9, num_links=0, dcn_rate=50e9, matrix=64, node=8),
}  # fmt: skip


def peak_of_device(kind: str) -> float | None:
    """Return the bf16 FLOP/s of a JAX device of this kind; None where no data sheet is known."""
    return next((chip.flops / chip.cores for chip in CHIPS.values() if kind in chip.kinds), None)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of equal shape. `shape` is the chip grid of one slice; a GPU "slice" is a node of 8."""

    chip_name: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.chip_name]

    @property
    def devices_per_slice(self) -> int:
        return math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        return self.num_slices * self.devices_per_slice

    @property
    def is_tpu(self) -> bool:
        return self.chip.num_links > 0

    def __str__(self):
        if not self.is_tpu:
            return f"{self.chip_name}:{self.num_devices}"
        slices = f"{self.num_slices}*" if self.num_slices > 1 else ""
        return f"{slices}{self.chip_name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str) -> Topology:
    """Read `[slices*]chip:AxB[xC]` or `gpu:count`. Raises UserError."""
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text)
    if not match or match[2] not in CHIPS:
        raise UserError(
            f"--topology={text!r}: expected chip:shape like v5e:16x16, v5p:8x8x4, 2*v6e:16x16 (slices) or h100:64, with a chip of "
            f"{', '.join(CHIPS)}"
        )
    slices, name, shape = int(match[1] or 1), match[2], tuple(int(size) for size in match[3].split("x"))
    chip = CHIPS[name]
    if len(shape) not in ((1,) if not chip.num_links else (2, 3)) or 0 in shape or slices < 1:
        kind = f"a grid like {name}:{'x'.join(['4'] * chip.num_links)}" if chip.num_links else f"a count like {name}:64"
        raise UserError(f"--topology={text!r}: {name} takes {kind}")
    if chip.node:
        count = slices * shape[0]
        if count > chip.node and count % chip.node:
            raise UserError(f"--topology={text!r}: more than {chip.node} devices come in whole nodes of {chip.node}")
        return Topology(name, (min(count, chip.node),), max(count // chip.node, 1))
    return Topology(name, shape, slices)
