"""Which masks leak: losses over frames of random, independent and tube masks, and whose model is better where it generates (T1, T2)."""

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.measures import CrossEntropy
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    return Finding(
        name="tubes",
        claim="With random masks a model copies hidden codes of later frames from earlier ones, so their loss "
        "collapses; with tubes all "
        "frames are as hard, and the model is better where earlier frames hide the same cells, as they do in generation.",
        paper="Lumos-1 (arXiv 2507.08801), section 3.3 and the ablation of masks",
        published="overall consistency 0.232 random, 0.241 independent, 0.249 tubes; imaging quality 0.424, 0.540, 0.559",
        world=World(background="noise", textures=8),
        arms={
            "tubes": Arm(),
            "random": Arm(train={"corruption.cells": slot("clip")}),
            "independent": Arm(train={"corruption.cells": slot("frame"), "corruption.frames": slot("independent")}),
        },
        measures=(CrossEntropy("own", None), CrossEntropy("tube")),
        checks=(
            Above(
                text="under its own masks, the random model's last frame has less than 0.9 of the loss of its first",
                high=0.9, low="random:own/imbalance", expected=0.2,
            ),
            Above(
                text="under its own masks, the independent model's last frame has less than 0.9 of the loss of its first",
                high=0.9, low="independent:own/imbalance", expected=0.2,
            ),
            Close(text="with tubes the last frame is as hard as the first (ratio 1)", one="tubes:own/imbalance", other=1.0, margin=0.1),
            Above(text="under tubes, late frames: random is worse "
            "than tubes", high="random:tube/late", low="tubes:tube/late", expected=0.05),
            Above(
                text="under tubes, late frames: independent is worse than tubes",
                high="independent:tube/late", low="tubes:tube/late", expected=0.02,
            ),
        ),
        steps=800,
        seeds=(1, 2, 3, 4),
        curve="own/frames",
    )  # fmt: skip
