"""The likelihood bound rises with the block that is predicted by unmasking (T10)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    block = lambda *size, **more: Arm(recipe="acdit", train={"sequence.layout": slot("compact", block=size), **more})
    return Finding(
        name="likelihood",
        claim="Between one code at a time and the whole clip at once, the bound on the likelihood gets worse with every step.",
        paper="ACDiT (arXiv 2412.07720), table of perplexities (OpenWebText)",
        published="perplexity 17.5 one by one, 21.6 with blocks of 8, 22.8 of 128, 23.0 of 256",
        mechanism=("test_laws_training.py::test_the_bound_is_the_mean_over_masks",),
        world=World(),
        arms={
            "code": block(1, 1, 1),
            "row": block(1, 1, 0),
            "frame": block(1, 0, 0),
            "clip": block(0, 0, 0, **{"corruption.frames": slot("shared"), "corruption.cells": slot("clip")}),
        },
        measures=(Loss("bound"),),
        checks=(
            Above(text="rows against single codes", high="row:bound", low="code:bound", expected=0.02),
            Above(text="frames against rows", high="frame:bound", low="row:bound", expected=0.02),
            Above(text="the clip against frames", high="clip:bound", low="frame:bound", expected=0.02),
        ),
        steps=700,
        cost=2.0,
        note="The same two-copy model and the same number of hidden codes for all blocks. A row's share of the "
        "frame's hidden codes varies "
        "around its mean, so its bound is that of independent masks up to one code.",
    )
