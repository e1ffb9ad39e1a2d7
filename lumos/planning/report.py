"""A plan as a table and as one line of JSON."""

from __future__ import annotations

import dataclasses
import json
import math

from lumos.chips import GIB, Topology
from lumos.config import Config
from lumos.planning.aot import Compiled
from lumos.planning.calibration import mean_error
from lumos.planning.estimate import Estimate
from lumos.planning.search import HEADROOM


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of one config on one topology; `compiled` is None for an estimate alone."""

    config: Config
    topology: Topology
    purpose: str
    mesh: dict[str, int]
    estimate: Estimate
    compiled: Compiled | None
    advice: str = ""

    @property
    def hbm(self) -> float:
        return self.compiled.peak if self.compiled else self.estimate.memory.total

    @property
    def fits(self) -> bool:
        limit = self.topology.chip.hbm
        return self.compiled.fits and self.hbm <= limit if self.compiled else self.hbm <= HEADROOM * limit

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self.config.evaluate.batch_size if self.purpose == "generate" else self.config.data.batch_size

    @property
    def made(self) -> tuple[float, float] | None:
        """Codes a second of all clips together, and seconds of a latent frame, where clips are generated."""
        if self.purpose != "generate":
            return None
        grid, seconds = self.config.sequence.grid, self.estimate.roofline.seconds
        return self.batch_size * math.prod(grid) / seconds, seconds / grid[0]

    @property
    def collectives(self) -> dict[str, float]:
        """Bytes per device and step, by kind."""
        found = self.compiled.collectives if self.compiled else None
        return found.bytes if found else self.estimate.collectives

    def to_json(self) -> str:
        """Return the keys that other programs read, on one line."""
        roof = self.estimate.roofline
        return json.dumps({
            "fits": self.fits,
            "hbm_gib": round(self.hbm / GIB, 3),
            "hbm_limit_gib": round(self.topology.chip.hbm / GIB, 2),
            "predicted_mfu": round(roof.mfu, 4),
            "bound": roof.bound,
            "step_seconds": round(roof.seconds, 5),
            "collectives": {kind: round(size) for kind, size in sorted(self.collectives.items())},
            "compile_seconds": round(self.compiled.seconds, 1) if self.compiled else 0.0,
            "method": "compiled" if self.compiled else "estimate",
            "topology": str(self.topology),
            "mesh": self.mesh,
            "batch_size": self.batch_size,
            "remat": self.config.model.remat,
            "for": self.purpose,
            **dict(zip(("codes_per_second", "seconds_per_latent_frame"), (round(x, 4) for x in self.made or ()))),
        })  # fmt: skip


def table(plan: Plan) -> str:
    """Return the readable form."""
    chip, memory, roof, compiled = plan.topology.chip, plan.estimate.memory, plan.estimate.roofline, plan.compiled
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    out = [
        f"{plan.config.name}, {plan.purpose} step on {plan.topology} ({plan.topology.num_devices} devices): {mesh}",
        f"batch {plan.batch_size}" + f", remat {plan.config.model.remat}" * (plan.purpose != "generate"),
        "",
        f"memory       {plan.hbm / GIB:8.2f} of {chip.hbm / GIB:.2f} GiB per device: {verdict}"
        + (" (compiled)" if compiled else f" (estimate; {HEADROOM:.0%} may be planned for)"),
    ]
    activations = memory.activations
    temporaries = max(plan.hbm - memory.arguments - activations, 0)
    parts = {"params": memory.params, "optimizer": memory.optimizer, "ema": memory.ema, "batch": memory.batch,
             "activations": activations, "temporaries": temporaries}  # fmt: skip
    out += [f"  {name:12s} {size / GIB:7.2f}" for name, size in parts.items()]
    if compiled and compiled.largest:
        largest = ", ".join(f"{shape} {size / GIB:.2f}" for shape, size in compiled.largest[:4])
        out.append(f"  largest arrays: {largest}")
    if compiled:
        out.append(f"  estimate was {memory.total / GIB:.2f} GiB ({memory.total / max(plan.hbm, 1) - 1:+.0%})")
    if not plan.fits and plan.advice:
        out.append(f"  to make it fit: {plan.advice}")
    source = "compiled" if compiled and compiled.collectives else "estimate"
    out += ["", f"collectives, GB per device and step ({source})"]
    counts = compiled.collectives.count if compiled and compiled.collectives else {}
    for kind, size in sorted(plan.collectives.items()):
        out.append(f"  {kind:20s} {size / 1e9:8.3f}" + (f"   {counts[kind]:.0f} executed" if kind in counts else ""))
    out += ["", "time, seconds per step"]
    out += [f"  {name:12s} {getattr(roof, name):9.4f}" for name in ("matmul", "attention", "hbm", "ici", "dcn")]
    out.append(
        f"  step         {roof.seconds:9.4f}   predicted MFU {roof.mfu:.1%}, HFU {roof.hfu:.1%}; bound by {roof.bound} "
        f"(mean error of the time model on published runs: {mean_error():.0%})"
    )
    if plan.made:
        codes, seconds = plan.made
        out.append(f"  {codes:,.0f} codes a second, {1000 * seconds:,.0f} ms a latent frame")
    return "\n".join(out)
