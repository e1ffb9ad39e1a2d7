"""Published training runs, and the efficiencies of the time model that describe them best.

Every row is a run whose model, batch, mesh and rematerialisation are published together with its speed. Speeds are
tokens per second and device. MaxText's older tables give TFLOP/s instead, counted with full (not causal) attention:
those were converted by that definition. Sources:

    maxtext-2024   AI-Hypercomputer/maxtext README and MaxText/configs/{v5e,v5p}/*.sh of 2024
    tiering        maxtext docs/reference/models/tiering.md
    trillium       AI-Hypercomputer/tpu-recipes training/trillium
    ironwood       AI-Hypercomputer/tpu-recipes training/ironwood
    jax-toolbox    NVIDIA/JAX-Toolbox docs/frameworks/maxtext
    a3, a3ultra    maxtext configs/gpu/a3 README; AI-Hypercomputer/gpu-recipes a3ultra
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from lumos.chips import Topology, parse_topology
from lumos.planning.roofline import Efficiency, roofline
from lumos.planning.workload import Workload

# layers, model_dim, mlp_dim, heads, kv heads, head_dim, vocabulary
_LLAMA2_7B = (32, 4096, 11008, 32, 32, 128, 32000)
_LLAMA2_70B = (80, 8192, 28672, 64, 8, 128, 32000)
_LLAMA3_8B = (32, 4096, 14336, 32, 8, 128, 128256)
_LLAMA3_70B = (80, 8192, 28672, 64, 8, 128, 128256)
_MAXTEXT_16B = (32, 4096, 28672, 64, 64, 128, 32000)
_MAXTEXT_32B = (32, 8192, 28672, 64, 64, 128, 32000)
_MAXTEXT_256B = (64, 16384, 57344, 128, 128, 128, 32000)

_FULL: tuple[str, ...] = ()
_DOTS = ("query", "key", "value", "out", "gate", "up", "down")
_QKV = ("query", "key", "value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One published run; `per_device` sequences of `length` tokens, causal."""

    source: str
    name: str
    topology: str
    model: tuple[int, ...]
    length: int
    per_device: float
    kept: tuple[str, ...]
    tokens_per_second: float = 0.0
    tflops: float = 0.0  # instead: TFLOP/s/device with full attention
    fsdp: int = 0  # 0: all devices of a slice that `tensor` leaves
    tensor: int = 1
    context: int = 1
    block: int = 512  # of the attention kernel
    backward_matmuls: int = 7

    @functools.cached_property
    def place(self) -> Topology:
        return parse_topology(self.topology)

    @functools.cached_property
    def workload(self) -> Workload:
        layers, dim, mlp, heads, kv_heads, head_dim, vocab = self.model
        place = self.place
        fsdp = self.fsdp or (place.devices_per_slice if place.is_tpu else place.num_devices) // (
            self.tensor * self.context
        )
        blocks = -(-self.length // self.block)
        return Workload(
            num_layers=layers, model_dim=dim, mlp_dim=mlp, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
            vocab_size=vocab, head_size=vocab, head_positions=self.length, length=self.length,
            num_tokens=self.length,
            pairs=self.length * (self.length + 1) / 2, computed_pairs=blocks * (blocks + 1) / 2 * self.block**2,
            backward_pairs=blocks * (blocks + 1) / 2 * self.block**2,
            batch_size=round(self.per_device * place.num_devices), kept=self.kept,
            backward_matmuls=self.backward_matmuls, fsdp=fsdp, tensor=self.tensor, context=self.context,
            replica=place.num_devices // (fsdp * self.tensor * self.context),
        )  # fmt: skip

    @property
    def measured(self) -> float:
        """Seconds per step."""
        tokens = self.per_device * self.length
        if self.tokens_per_second:
            return tokens / self.tokens_per_second
        w = self.workload
        weights = w.num_layers * w.layer_weights + w.model_dim * w.head_size
        attention = 12.0 * w.num_layers * w.num_heads * w.head_dim * self.length
        return tokens * (6.0 * weights + attention) / (self.tflops * 1e12)

    def predicted(self, efficiency: Efficiency) -> float:
        return roofline(self.workload, self.place, efficiency).seconds


RUNS = (
    Run(source="maxtext-2024", name="16B", topology="v5e:16x16", model=_MAXTEXT_16B, length=2048, per_device=6, kept=_FULL, tflops=120),
    Run(source="maxtext-2024", name="32B", topology="v5e:16x16", model=_MAXTEXT_32B, length=2048, per_device=4, kept=_FULL, tflops=132),
    Run(source="maxtext-2024", name="16B", topology="32*v5e:16x16", model=_MAXTEXT_16B, length=2048, per_device=6, kept=_FULL, tflops=108),
    Run(source="maxtext-2024", name="32B", topology="32*v5e:16x16", model=_MAXTEXT_32B, length=2048, per_device=4, kept=_FULL, tflops=119),
    Run(source="maxtext-2024", name="32B", topology="v5p:4x4x4", model=_MAXTEXT_32B, length=2048, per_device=7, kept=_DOTS, tflops=328, tensor=4),
    Run(source="maxtext-2024", name="256B", topology="v5p:8x8x8", model=_MAXTEXT_256B, length=2048, per_device=1, kept=_DOTS, tflops=316, tensor=8),
    Run(source="trillium", name="Llama 3.1 8B", topology="v6e:2x4", model=_LLAMA3_8B, length=8192, per_device=3, kept=(*_QKV, "out"), tokens_per_second=7139, block=2048, backward_matmuls=5),
    Run(source="trillium", name="Llama 3.1 70B", topology="v6e:16x16", model=_LLAMA3_70B, length=8192, per_device=4, kept=_QKV, tokens_per_second=948, block=2048, backward_matmuls=5),
    Run(source="ironwood", name="Llama 3.1 70B, 131k", topology="tpu7x:8x8x4", model=_LLAMA3_70B, length=131072, per_device=1, kept=_QKV, tokens_per_second=963, block=2048, backward_matmuls=5),
    Run(source="jax-toolbox", name="Llama 2 7B", topology="h100:8", model=_LLAMA2_7B, length=4096, per_device=4, kept=(*_DOTS, "attention"), tokens_per_second=11361, block=128, backward_matmuls=5),
    Run(source="a3", name="Llama 2 7B", topology="h100:8", model=_LLAMA2_7B, length=4096, per_device=4, kept=(*_DOTS, "attention"), tflops=492, block=128, backward_matmuls=5),
    Run(source="a3", name="Llama 2 7B", topology="h100:128", model=_LLAMA2_7B, length=4096, per_device=4, kept=(*_DOTS, "attention"), tflops=375, fsdp=8, block=128, backward_matmuls=5),
    Run(source="a3ultra", name="Llama 3.1 70B", topology="h200:256", model=_LLAMA3_70B, length=8192, per_device=2, kept=_QKV, tokens_per_second=1056, block=128, backward_matmuls=5),
)  # fmt: skip


def kind_of(place: Topology) -> str:
    """Return the group of chips that share efficiencies."""
    return "gpu" if not place.is_tpu else f"tpu{place.chip.matrix}"


_IDEAL = Efficiency(1.0, 1.0, 0.0)
_MATMUL, _ATTENTION, _LEAK = np.arange(0.50, 1.0, 0.01), np.arange(0.30, 1.0, 0.05), np.arange(0.0, 1.05, 0.1)


@functools.cache
def _squared_errors(index: int) -> np.ndarray:
    """Return log(predicted / measured)^2 of one run for every combination of efficiencies, [matmul, attention, leak]."""
    run = RUNS[index]
    ideal = roofline(run.workload, run.place, _IDEAL)
    computing = ideal.matmul / _MATMUL[:, None, None] + ideal.attention / _ATTENTION[:, None] + ideal.hbm
    network = max(ideal.ici, ideal.dcn)
    seconds = computing + _LEAK * (ideal.ici + ideal.dcn) + np.maximum(network - computing, 0)
    return np.square(np.log(seconds / run.measured))


@functools.cache
def fit(without: int | None = None) -> dict[str, Efficiency]:
    """Fit efficiencies by least squares of log(predicted / measured) on a grid; `without` leaves one run out.

    Matmuls have an efficiency for each kind of chip, attention one for TPUs and one for GPUs, and so has the leak.
    """
    found = {}
    for kinds in (("tpu128", "tpu256"), ("gpu",)):
        errors = {
            kind: sum(_squared_errors(i) for i, run in enumerate(RUNS) if kind_of(run.place) == kind and i != without)
            for kind in kinds
        }
        total = sum(error.min(axis=0) for error in errors.values())  # each kind has its own matmul efficiency
        a, k = np.unravel_index(np.argmin(total), total.shape)
        for kind, error in errors.items():
            matmul = _MATMUL[np.argmin(error[:, a, k])]
            found[kind] = Efficiency(float(matmul), float(_ATTENTION[a]), float(_LEAK[k]))
    return found


def left_out_errors() -> list[float]:
    """Return predicted / measured - 1 of every run, by efficiencies that were fitted without it."""
    return [run.predicted(fit(i)[kind_of(run.place)]) / run.measured - 1 for i, run in enumerate(RUNS)]


def efficiency_of(place: Topology) -> Efficiency:
    """Return the efficiencies for a topology, fitted to all runs."""
    return fit()[kind_of(place)]


@functools.cache
def mean_error() -> float:
    """Return the mean absolute left-out error of the time model."""
    return float(np.mean(np.abs(left_out_errors())))
