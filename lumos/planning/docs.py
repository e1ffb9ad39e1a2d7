"""Render docs/plans.md: `python -m lumos.planning.docs > docs/plans.md`."""

from __future__ import annotations

import json
from pathlib import Path

from lumos import config_loading
from lumos.chips import GIB, parse_topology
from lumos.planning import calibration, estimate
from lumos.planning.report import Plan

_KEEP = "save:query,key,value,attention,out,gate,up"
_LONG = {"sequence.grid": "(50, 32, 56)"}  # 89,600 codes
# Shipped large configs with the settings that --search finds, tidied to common mesh shapes.
PLANS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("lumos_500m.py", "v5e:16x16", {"mesh.replica": "16", "mesh.fsdp": "16", "data.batch_size": "256", "model.remat": _KEEP}),
    ("lumos_500m.py", "v5p:8x8x4", {"mesh.replica": "16", "mesh.fsdp": "16", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_500m.py", "v6e:16x16", {"mesh.replica": "16", "mesh.fsdp": "16", "data.batch_size": "256", "model.remat": _KEEP}),
    ("lumos_1b.py", "v5e:16x16", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "256", "model.remat": _KEEP}),
    ("lumos_1b.py", "v5p:8x8x4", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_1b.py:lumos1", "v5e:16x16", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "256", "model.remat": _KEEP}),
    ("lumos_1b.py:lumos1", "v5p:8x8x4", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_1b.py", "v6e:16x16", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "256", "model.remat": _KEEP}),
    ("lumos_1b.py", "2*v5e:16x16", {"mesh.replica": "8", "mesh.fsdp": "64", "data.batch_size": "512", "model.remat": "minimal"}),
    ("lumos_3b.py", "v5e:16x16", {"mesh.replica": "2", "mesh.fsdp": "64", "mesh.context": "2", "data.batch_size": "128", "model.remat": "save:query,key,value,attention,out,gate"}),
    ("lumos_3b.py", "v5p:8x8x4", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_3b.py", "v6e:16x16", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "256", "model.remat": "minimal"}),
    ("lumos_500m.py:wide", "v5e:16x16", {"mesh.replica": "8", "mesh.fsdp": "32", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_500m.py:wide", "v5p:8x8x4", {"mesh.replica": "8", "mesh.fsdp": "32", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_500m.py:wide", "v6e:16x16", {"mesh.replica": "8", "mesh.fsdp": "32", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_1b.py:wide", "v5e:16x16", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "256", "model.remat": _KEEP}),
    ("lumos_1b.py:wide", "v5p:8x8x4", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_1b.py:wide", "v6e:16x16", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "512", "model.remat": _KEEP}),
    ("lumos_3b.py:wide", "v6e:16x16", {"mesh.replica": "4", "mesh.fsdp": "64", "data.batch_size": "256", "model.remat": _KEEP}),
    ("lumos_1b.py", "v5p:8x8x4", _LONG | {"mesh.fsdp": "64", "mesh.context": "4", "data.batch_size": "64", "model.remat": "minimal"}),
    ("lumos_3b.py", "v5p:8x8x4", _LONG | {"mesh.fsdp": "64", "mesh.context": "4", "data.batch_size": "64", "model.remat": "minimal"}),
    ("lumos_1b.py", "h100:64", {"mesh.fsdp": "64", "data.batch_size": "64", "model.remat": "minimal"}),
    ("lumos_3b.py", "h100:64", {"mesh.fsdp": "64", "data.batch_size": "64", "model.remat": "minimal"}),
)  # fmt: skip
_WIDE_1B = {"model.head_dim": "256", "model.num_heads": "8", "model.num_kv_heads": "2"}
_WIDE_500M = {"model.head_dim": "256", "model.num_heads": "4", "model.num_kv_heads": "2"}
# v6e: the plans above, and changes of them.
V6E = {
    name: overrides
    for name, topology, overrides in PLANS
    if topology == "v6e:16x16" and not name.startswith("lumos_3b.py")
}
TRIED: dict[str, tuple[dict[str, str], ...]] = {
    "lumos_500m.py": (
        _WIDE_500M, {"data.batch_size": "512"}, _WIDE_500M | {"data.batch_size": "512"}, {"mesh.replica": "8", "mesh.context": "2"},
        {"mesh.replica": "1", "mesh.fsdp": "256"}, {"model.remat": "minimal"},
    ),
    "lumos_1b.py": (
        _WIDE_1B, {"data.batch_size": "512"}, _WIDE_1B | {"data.batch_size": "512"}, {"mesh.replica": "2", "mesh.context": "2"},
        {"mesh.replica": "1", "mesh.fsdp": "256"}, {"model.remat": "minimal"},
    ),
}  # fmt: skip
# Generation: rows of `evaluate.batch_size` over all devices.
GENERATE: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("lumos_500m.py", "v5e:1x1", {"evaluate.batch_size": "1"}),
    ("lumos_500m.py", "v5e:4x4", {"evaluate.batch_size": "64"}),
    ("lumos_500m.py", "v5p:1x1x1", {"evaluate.batch_size": "1"}),
    ("lumos_500m.py", "h100:1", {"evaluate.batch_size": "1"}),
    ("lumos_500m.py", "h100:8", {"evaluate.batch_size": "64"}),
    ("lumos_1b.py", "v5e:1x1", {"evaluate.batch_size": "1"}),
    ("lumos_1b.py", "v6e:1x1", {"evaluate.batch_size": "1"}),
    ("lumos_1b.py", "v5e:4x4", {"evaluate.batch_size": "64"}),
    ("lumos_1b.py", "v5e:4x4", {"evaluate.batch_size": "64", "model.param_dtype": "bfloat16"}),
    ("lumos_3b.py", "v5p:2x2x4", {"evaluate.batch_size": "64", "model.param_dtype": "bfloat16"}),
    ("lumos_1b.py", "h100:8", {"evaluate.batch_size": "64", "model.param_dtype": "bfloat16"}),
    ("lumos_3b.py", "h100:8", {"evaluate.batch_size": "64", "model.param_dtype": "bfloat16"}),
)  # fmt: skip
COMPILED = json.loads((Path(__file__).parent / "compiled.json").read_text())


def estimate_of(spec: str, topology: str, overrides: dict[str, str]) -> estimate.Estimate:
    """Estimate a train step from strings, as the command does."""
    config = estimate.fill_vocabulary_sizes(config_loading.load(spec, overrides))
    return estimate.estimate_train(config, parse_topology(topology))


def render() -> str:
    """Return the page."""
    return "\n".join([
        "# Plans", "",
        "Generated by `python -m lumos.planning.docs > docs/plans.md`. Nothing here ran on an accelerator: memory is an estimate or what",
        "the TPU compiler said, time is a model fitted to published runs of other code.", "",
        "## Shipped configs", "", *_plans(), "",
        "## What bounds v6e", "", *_v6e(), "",
        "## Generation", "", *_generation(), "",
        "## Estimated and compiled memory", "", *_compiled(), "",
        "## The time model and published runs", "", *_calibration(), "",
    ])  # fmt: skip


def _plans():
    yield "`lumos plan --config=configs/FILE --topology=TOPOLOGY` with the settings as `--config.FIELD=VALUE`; add `--search` to look for others."
    yield ""
    yield "| config | topology | settings | tokens | GiB of | s per step | MFU | bound |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, topology, overrides in PLANS:
        guess, chip = estimate_of(f"configs/{name}", topology, overrides), parse_topology(topology).chip
        config = estimate.fill_vocabulary_sizes(config_loading.load(f"configs/{name}", overrides))
        settings = " ".join(f"{k}={v}" for k, v in overrides.items())
        roof, tokens = guess.roofline, estimate.make_layout(config).num_read
        yield (
            f"| {name} | {topology} | {settings} | {tokens:,} | {guess.memory.total / GIB:.1f} of {chip.hbm / GIB:.1f} | {roof.seconds:.2f} | "
            f"{roof.mfu:.1%} | {roof.bound} |"
        )


def _v6e():
    yield "By the time model. v6e has 4.7 times the arithmetic of v5e, but twice its memory rate, and a matrix unit 256 wide: a head of 128 fills half of it."
    yield ""
    yield "| config | change | MFU | of the step: matmul | attention | memory | links that show |"
    yield "|---|---|---|---|---|---|---|"
    for name, base in V6E.items():
        for change in ({}, *TRIED.get(name, ())):
            roof = estimate_of(f"configs/{name}", "v6e:16x16", base | change).roofline
            parts = (roof.matmul, roof.attention, roof.hbm, roof.seconds - roof.matmul - roof.attention - roof.hbm)
            shares = " | ".join(f"{part / roof.seconds:.0%}" for part in parts)
            yield f"| {name} | {' '.join(f'{k}={v}' for k, v in change.items()) or 'as above'} | {roof.mfu:.1%} | {shares} |"
    yield ""
    yield "Heads of 256 bring 3 to 4 points, twice the clips 1 to 2, a sequence over two chips and other meshes nothing. Fewer, wider layers of as many parameters (the"
    yield 'variant "wide") bring 3.5 to 5 more: lumos_1b.py:wide reaches the aim of 50 %, the 0.5B does not. Fewer layers may learn less: the demo'
    yield "model learns less with half of its layers (docs/results.md). What is left: matmuls at the 71 % of the published runs, attention, and norms, rotations and gates, which the rate of the memory bounds. Not in the model, as no"
    yield "published run has them: int8 matmuls (`model.matmul_dtype=int8`, twice the arithmetic of bf16 by the data sheet), other block sizes of splash (512 queries and"
    yield "512 or 1,024 keys here, 2,048 in those runs), and kernels that fuse keys with values or norms into matmuls."


def _generation():
    yield "`lumos plan --for=generate` with the settings: the program of whole clips that `lumos generate`, `evaluate` and `sweep` run, one batch of"
    yield "`evaluate.batch_size` clips over all devices, `generate.steps` (here 50) + 1 passes a frame, with guidance. Estimates; what travels is not in the time."
    yield "One H100 makes a clip of lumos_500m.py in 3.8 s (docs/results.md), 1.6 times the estimate: norms and sampling between the matmuls are not in it."
    yield ""
    yield "| config | topology | settings | tokens | GiB of | s per batch | codes per s | ms per latent frame | MFU | bound |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, topology, overrides in GENERATE:
        config, place = (
            estimate.fill_vocabulary_sizes(config_loading.load(f"configs/{name}", overrides)),
            parse_topology(topology),
        )
        guess, settings = estimate.estimate_generate(config, place), " ".join(f"{k}={v}" for k, v in overrides.items())
        roof, tokens = guess.roofline, estimate.make_layout(config, copies=1).length
        codes, seconds = Plan(config, place, "generate", {}, guess, None).made
        yield (
            f"| {name} | {topology} | {settings} | {tokens:,} | {guess.memory.total / GIB:.1f} of {place.chip.hbm / GIB:.1f} | {roof.seconds:.1f} | "
            f"{codes:,.0f} | {1000 * seconds:,.0f} | {roof.mfu:.1%} | {roof.bound} |"
        )


def _compiled():
    yield f"The real train step, compiled without the hardware ({COMPILED['versions']}). The model was made and mended with the plans that are not held out:"
    yield "copies of dq are counted by the block sizes of the kernel (lumos_1b.py:lumos1 on v5e:16x16 was 12.1% too low before); moments of one parameter at a"
    yield "time pass through the device when the optimizer's state is offloaded (10.1% too low before); a head of 64 takes the memory of one of 128, a layer's"
    yield "backward pass needs 17 arrays as wide as all heads beside the copies of dq, and of a chunk's logits only the float32 is alive (lumos_500m.py on v5e:16x16"
    yield "was 11.0% too high before, lumos_1b.py:released 8.2% too low); on v6e one more array as wide as the MLP (lumos_500m.py:wide was 6.5% too low before)."
    yield "Collectives are bytes per device and step, expected in brackets."
    yield ""
    yield "| config | topology | settings | held out | compiled peak, GiB | estimate, GiB | error | all-gather, GB | reduce-scatter, GB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for plan in COMPILED["plans"]:
        guess = estimate_of(plan["config"], plan["topology"], plan["overrides"])
        settings = " ".join(f"{k}={v}" for k, v in plan["overrides"].items())
        error = guess.memory.total / plan["peak"] - 1
        moved = (_moved(plan["collectives"], guess.collectives, kind) for kind in ("all-gather", "reduce-scatter"))
        yield (
            f"| {plan['config'].removeprefix('configs/')} | {plan['topology']} | {settings} | {'yes' if plan['held_out'] else 'no'} | "
            f"{plan['peak'] / GIB:.2f} | {guess.memory.total / GIB:.2f} | {error:+.1%} | {' | '.join(moved)} |"
        )
    yield ""
    yield "The train step of configs/tokenizer_sizes.py:m on v5e:4x4 has a compiled peak of 6.06 GiB; the estimate is 6.8."
    yield ""
    yield "Where one ring spans a whole slice (v5e:4x4 with fsdp=16) the compiler makes all-reduces of the gradients instead of reduce-scatters when it is kept"
    yield "from cutting collectives into steps of matmuls, as it is here to count them; left alone it moves the same bytes as permutations beside the matmuls."


def _moved(compiled: dict[str, int], expected: dict[str, float], kind: str) -> str:
    if kind not in compiled:
        return "none" if "all-reduce" in compiled else "not printed"
    return f"{compiled[kind] / 1e9:.2f} ({expected[kind] / 1e9:.2f})"


def _calibration():
    yield "Seconds per step; the error is that of a fit without the run (lumos/planning/calibration.py names the sources)."
    yield ""
    yield "| source | run | topology | measured | model | error when left out |"
    yield "|---|---|---|---|---|---|"
    for run, error in zip(calibration.RUNS, calibration.left_out_errors()):
        seconds = run.predicted(calibration.efficiency_of(run.place))
        yield f"| {run.source} | {run.name} | {run.topology} | {run.measured:.2f} | {seconds:.2f} | {error:+.0%} |"
    yield ""
    for kind, e in calibration.fit().items():
        yield f"- {kind}: matmul {e.matmul:.0%}, attention {e.attention:.0%} of the matrix unit it fills, {e.leak:.0%} of communication shows."
    yield ""
    yield f"Mean absolute error {calibration.mean_error():.0%}. What the model does not know: attention whose heads fill a 128-wide matrix unit"
    yield "(credited with 2/3; no published long run has it), input and host stalls, other jobs on the data center network."


if __name__ == "__main__":
    print(render(), end="")
