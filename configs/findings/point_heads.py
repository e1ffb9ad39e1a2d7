"""Heads that predict points: one normal distribution, a mixture, a flow (T16)."""

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.measures import CrossEntropy, RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    head = lambda name, **more: Arm(
        recipe="diffusion_forcing",
        train={"model.head": slot(name, **more)},
        generate={"sampler": slot("random"), "steps": 12},
    )
    levels = (4, 5)  # 4 textures and 4 colours of 4 cells
    return Finding(
        name="point_heads",
        claim="Where the future has several modes, a head of one mode (as squared errors imply) fails, and a mixture "
        "or a diffusion head does not.",
        paper="DiCoDe (arXiv 2412.04446), UniGenX (arXiv 2503.06687), NOVA (arXiv 2412.14169)",
        published="choices of the papers; no comparison of heads at one size",
        mechanism=(
            "test_heads.py::test_continuous_heads_learn_which_code_follows",
            "test_heads.py::test_a_flow_along_straight_lines_ends_in_the_data",
        ),
        world=World(motion="turning", captions="colour"),
        arms={
            "softmax": head("categorical"),
            "one normal": head("mixture", levels=levels, components=1),
            "eight normals": head("mixture", levels=levels, components=8),
            "flow": head("flow", levels=levels),
        },
        measures=(CrossEntropy("half", {"level": {"name": "constant", "ratio": 0.5}, "cells": "frame"}), RollOut()),
        checks=(
            Above(
                text="nats a code: one normal against eight",
                high="one normal:half",
                low="eight normals:half",
                expected=0.1,
            ),
            Above(
                text="legal moves: eight normals against one",
                high="eight normals:videos/legal",
                low="one normal:videos/legal",
                expected=0.1,
            ),
            Above(
                text="legal moves: flow against one normal",
                high="flow:videos/legal",
                low="one normal:videos/legal",
                expected=0.1,
            ),
            Close(
                text="legal moves: eight normals against a softmax",
                one="eight normals:videos/legal",
                other="softmax:videos/legal",
                margin=0.1,
            ),
        ),
        steps=600,
        curve="videos/legal/frames",
    )
