"""Layers that attend along one axis at a time against full attention (T19)."""

from lumos.findings.finding import Arm, Close, Finding
from lumos.findings.measures import CrossEntropy, RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    attention = lambda name: Arm(recipe="diffusion_forcing", train={"sequence.attention": slot(name)})
    return Finding(
        name="axial",
        claim="Layers that attend along time, rows and columns in turn, or to their frame and along time in turn, are "
        "nearly as good as full "
        "attention, for a fraction of its pairs.",
        paper="Axial attention (arXiv 1912.12180), density of images and videos; space-time layers: Genie (arXiv 2402.15391)",
        published="3.76 bits a dimension on ImageNet 32, as good as full attention of its time",
        mechanism=("test_rules.py::test_a_token_depends_on_what_it_sees_and_on_nothing_else",),
        world=World(),
        arms={"full": attention("causal"), "axial": attention("axial_turns"), "space-time": attention("space_time")},
        measures=(CrossEntropy("half", {"level": {"name": "constant", "ratio": 0.5}, "cells": "frame"}), RollOut()),
        checks=(
            Close(text="loss: axial against full", one="axial:half", other="full:half", margin=0.05),
            Close(text="loss: space-time against full", one="space-time:half", other="full:half", margin=0.05),
            Close(
                text="right codes: axial against full", one="axial:videos/codes", other="full:videos/codes", margin=0.1
            ),
        ),
        base={"model.num_layers": 6, "model.model_dim": 48, "model.mlp_dim": 128},
        steps=600,
        cost=1.5,
        curve="videos/codes/frames",
    )
