"""One model for prediction, past prediction, interpolation and generation from nothing (T13)."""

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.measures import CrossEntropy
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    given = lambda past, future: {"name": "segments", "sizes": (1, 3, 1), "past_drop": past, "future_drop": future}
    level = {"name": "cosine", "floor": 0.0}
    of = lambda name, *drop: CrossEntropy(name, {"level": level, "cells": "clip", "given": given(*drop)})
    return Finding(
        name="four_tasks",
        claim="One model that loses its past and its future at random does four tasks, each about as well as a model "
        "of its own; the more is "
        "given, the better.",
        paper="MCVD (arXiv 2205.09853), masks of past and future, and the BAIR table",
        published="BAIR FVD 89.5 with all tasks in one model, 87.9 the best variant",
        world=World(),
        arms={
            "all tasks": Arm(recipe="mcvd"),
            "prediction alone": Arm(recipe="mcvd", train={"corruption.given": slot(**given(0.0, 1.0))}),
            "interpolation alone": Arm(recipe="mcvd", train={"corruption.given": slot(**given(0.0, 0.0))}),
        },
        measures=(of("interpolation", 0.0, 0.0), of("prediction", 0.0, 1.0), of("past", 1.0, 0.0), of("nothing", 1.0, 1.0)),
        checks=(
            Above(
                text="prediction is harder than interpolation",
                high="all tasks:prediction", low="all tasks:interpolation", expected=0.02,
            ),
            Above(text="generation from nothing is harder than "
            "prediction", high="all tasks:nothing", low="all tasks:prediction", expected=0.05),
            Close(
                text="prediction: one model for all tasks against one for it alone",
                one="all tasks:prediction", other="prediction alone:prediction", margin=0.1,
            ),
            Close(
                text="interpolation: one model for all tasks against one for it alone",
                one="all tasks:interpolation", other="interpolation alone:interpolation", margin=0.1,
            ),
        ),
        steps=700,
    )  # fmt: skip
