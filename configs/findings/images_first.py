"""Images before videos: the same loss in fewer steps on videos (T26)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import CrossEntropy, RollOut
from lumos.findings.worlds import World


def get_finding() -> Finding:
    return Finding(
        name="images_first",
        claim="A model that has learnt images first reaches a lower loss on videos in the same number of steps on videos.",
        paper="Lumos-1 (arXiv 2507.08801), stages of training; the same in most large models",
        published="a choice of the recipe, without a figure",
        world=World(),
        arms={
            "videos alone": Arm(recipe="diffusion_forcing"),
            "images first": Arm(recipe="diffusion_forcing", before={"data.image_fraction": 1.0, "train.num_steps": 300}),
        },
        measures=(CrossEntropy("half", {"level": {"name": "constant", "ratio": 0.7}, "cells": "frame"}), RollOut()),
        checks=(
            Above(text="loss on videos: without images first "
            "against with", high="videos alone:half", low="images first:half", expected=0.05),
            Above(
                text="loss of the first frames", high="videos alone:half/first", low="images first:half/first", expected=0.05,
            ),
        ),
        steps=200,
        curve="half/frames",
    )  # fmt: skip
