"""A head that may copy from the frame before (T12)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss, RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    return Finding(
        name="copy_head",
        claim="Where most of a frame stays, a head that chooses between copying from the frame before and making anew predicts better.",
        paper="ART-V (arXiv 2311.18834), section 3.2",
        published="pictures and a comparison of drift, no figure",
        world=World(background="noise"),
        arms={"softmax": Arm(recipe="acdit"), "copy": Arm(recipe="acdit", train={"model.head": slot("copy", reach=1)})},
        measures=(Loss("bound"), RollOut()),
        checks=(
            Above(text="likelihood bound: softmax against copy", high="softmax:bound", low="copy:bound", expected=0.05),
            Above(
                text="background: copy against softmax",
                high="copy:videos/background",
                low="softmax:videos/background",
                expected=0.05,
            ),
        ),
        steps=400,
        curve="videos/background/frames",
    )
