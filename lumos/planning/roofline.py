"""Where the time of a step goes: matmuls, attention, memory traffic, and what travels between devices.

    seconds = matmuls / (peak * e_matmul) + attention / (peak * fill * e_attention) + elementwise bytes / HBM rate
              + the part of communication that computation does not hide

Elementwise work does not overlap with matmuls; collectives inside a slice do, up to a leak; what exceeds the computation
shows in full. `fill` is how much of the matrix unit a head uses: head_dim over its width. The published long-sequence
runs have a half; a full one is credited with 2/3, because the softmax between the matmuls does not get faster. The efficiencies come from published runs
(lumos/planning/calibration.py).
"""

from __future__ import annotations

import dataclasses

from lumos.chips import Chip, Topology
from lumos.planning.workload import Workload

_BF16 = 2


@dataclasses.dataclass(frozen=True)
class Efficiency:
    matmul: float
    attention: float
    leak: float  # share of hidden communication that shows after all


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step by cause, and what they add up to."""

    matmul: float
    attention: float
    hbm: float
    ici: float
    dcn: float
    seconds: float
    mfu: float
    hfu: float
    bound: str  # matmul | attention | hbm | ici | dcn


def communication(w: Workload) -> dict[str, dict[str, float]]:
    """Return bytes that each device receives per step, by kind of collective and mesh axis."""
    layer = w.layer_weights * _BF16 / w.tensor
    head = w.model_dim * w.head_size * _BF16 / w.tensor
    weights = w.num_layers * layer + head
    share = (w.fsdp - 1) / w.fsdp
    kv = 2 * w.num_layers * w.tokens_per_device * w.num_kv_heads * w.head_dim * _BF16 / w.tensor * w.accumulation
    activations = w.num_layers * w.tokens_per_device * w.model_dim * _BF16 * w.accumulation
    rows = w.tokens_per_device * w.model_dim * _BF16 * w.accumulation
    out: dict[str, dict[str, float]] = {"all-gather": {}, "reduce-scatter": {}, "all-reduce": {}, "all-to-all": {}}
    if w.fsdp > 1:  # weights before the forward and the backward pass; gradients after it
        out["all-gather"]["fsdp"] = 2 * weights * share * w.accumulation
        out["reduce-scatter"]["fsdp"] = weights * share * w.accumulation
        out["all-to-all"]["fsdp"] = 2 * rows * share  # embedding rows and their gradients
    if w.context > 1:  # keys and values forward, again when attention is recomputed, and their gradients
        passes = 2 if "attention" in w.kept else 3
        out["all-gather"]["context"] = (passes - 1) * kv * (w.context - 1)
        out["reduce-scatter"]["context"] = kv * (w.context - 1)
    if w.tensor > 1:  # two sums of activations per layer and pass, recomputed ones included
        passes = 2 if {"out", "down"} <= set(w.kept) else 3
        out["all-reduce"]["tensor"] = 2 * 2 * passes * activations * (w.tensor - 1) / w.tensor
    # What is left of the gradients after the reduce-scatter is summed over the axes that only hold copies.
    copies = {"context": w.context, "replica": w.replica}
    for axis, size in copies.items():
        if size > 1:
            out["all-reduce"][axis] = 2 * weights / w.fsdp * (size - 1) / size
    return {kind: axes for kind, axes in out.items() if axes}


def elementwise_bytes(w: Workload) -> float:
    """Return HBM traffic per device of everything that is not a matmul's own streaming of operands.

    Per token and layer, forward: norms and residuals touch 10 D numbers, rotation, QK-norm and layouts 8 per query and 6
    per key/value channel, the gated unit 5 M. The backward pass moves twice that, recomputation once. The optimizer
    reads and writes every parameter and moment once, in float32.
    """
    heads = (8 * w.num_heads + 6 * w.num_kv_heads) * w.head_dim
    per_token = _BF16 * (10 * w.model_dim + (heads + 5 * w.mlp_dim) / w.tensor)
    passes = 3 if "gate" in w.kept else 4
    layers = passes * w.num_layers * per_token * w.tokens_per_device * w.accumulation
    params = (w.num_layers * w.layer_weights + 2 * w.vocab_size * w.model_dim) / (w.fsdp * w.tensor)
    return layers + 32 * params


def roofline(w: Workload, topology: Topology, efficiency: Efficiency) -> Roofline:
    """Predict the seconds of one step."""
    chip, devices = topology.chip, w.num_devices
    matmul = w.dense_flops / devices / chip.flops / efficiency.matmul
    fill = matrix_fill(w.head_dim, chip)
    attention = w.attention_flops / devices / chip.flops / fill / efficiency.attention
    hbm = elementwise_bytes(w) / chip.hbm_rate
    ici, dcn = _network_seconds(w, topology)
    computing = matmul + attention + hbm
    seconds = computing + efficiency.leak * (ici + dcn) + max(0.0, max(ici, dcn) - computing)
    parts = {"matmul": matmul, "attention": attention, "hbm": hbm, "ici": ici, "dcn": dcn}
    exposed = max(ici, dcn) > computing
    bound = max(("ici", "dcn") if exposed else ("matmul", "attention", "hbm"), key=parts.get)
    peak = devices * chip.flops * seconds
    executed = w.dense_flops + w.attention_flops
    return Roofline(**parts, seconds=seconds, mfu=w.model_flops / peak, hfu=executed / peak, bound=bound)


def matrix_fill(head_dim: int, chip: Chip) -> float:
    """Return the share of the matrix unit's rate that attention over heads of this size can use."""
    return min(2 / 3, head_dim / chip.matrix)


def _network_seconds(w: Workload, topology: Topology) -> tuple[float, float]:
    chip, ici, dcn = topology.chip, 0.0, 0.0
    for axes in communication(w).values():
        for axis, size in axes.items():
            if axis == "replica" and topology.num_slices > 1:
                dcn += size / chip.dcn_rate
            elif not topology.is_tpu and getattr(w, axis) > chip.node:
                dcn += size / (chip.dcn_rate * chip.node)  # rings through every device's own network card
            else:
                ici += size / _inside_rate(chip, getattr(w, axis), topology)
    return ici, dcn


def _inside_rate(chip: Chip, axis_size: int, topology: Topology) -> float:
    """Return bytes/s that a collective over an axis receives per device: both directions of the links it spans."""
    if not topology.is_tpu:
        return chip.link_rate
    spanned, reach = 0, 1
    for size in sorted(topology.shape, reverse=True):
        if reach < axis_size and size > 1:
            spanned, reach = spanned + 1, reach * size
    return 2 * chip.link_rate * max(spanned, 1)
