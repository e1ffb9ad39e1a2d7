"""Rotary positions in one and in three dimensions (T3)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import CrossEntropy
from lumos.findings.worlds import World


def get_finding() -> Finding:
    rope = lambda kind: Arm(recipe="diffusion_forcing", train={"model.rope": kind})
    return Finding(
        name="rope",
        claim="Positions in three dimensions are better than in one, and interleaved ones (MM-RoPE) are better than contiguous ones.",
        paper="Lumos-1 (arXiv 2507.08801), section 3.2 and the curves of validation losses",
        published="curves alone: 1-D worst, then contiguous 3-D, then interleaved and scaled 3-D (MM-RoPE)",
        mechanism=(
            "test_rope.py::test_mm_rope_equals_the_official_tables",
            "test_rope.py::test_rotation_keeps_norms_and_depends_on_differences_only",
        ),
        world=World(side=7),
        arms={"1d": rope("1d"), "3d": rope("3d"), "mm": rope("mm")},
        measures=(CrossEntropy("half", {"level": {"name": "constant", "ratio": 0.5}, "cells": "frame"}),),
        checks=(
            Above(text="loss: 1-D against MM", high="1d:half", low="mm:half", expected=0.03),
            Above(text="loss: contiguous 3-D against MM", high="3d:half", low="mm:half", expected=0.01),
        ),
        base={"model.head_dim": 64},
        steps=500,
        cost=2.0,
        curve="half/frames",
        note="Contiguous 3-D gives columns the slowest frequencies. Across the seven columns of this grid their fastest channel turns by 0.15 "
        "radians (rows: 4.8), so the model hardly tells columns apart.",
    )
