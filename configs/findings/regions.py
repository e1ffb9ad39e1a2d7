"""Codes that are drawn together lie far apart or side by side (T9)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss, RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    return Finding(
        name="regions",
        claim="Codes that are drawn at once should lie far apart: neighbours depend on each other, and do not fit "
        "when they are drawn together.",
        paper="PAR (arXiv 2412.15119), table of ablations",
        published="FID 2.29 with distant codes, 10.05 with adjacent ones, 5.87 without a sequential start",
        world=World(side=6),
        arms={
            "distant": Arm(recipe="par"),
            "adjacent": Arm(recipe="nbp", train={"sequence.layout": slot("compact", block=(1, 2, 2))}),
        },
        measures=(Loss(draws=1), RollOut(given=0)),
        checks=(
            Above(text="loss: adjacent against distant", high="adjacent:nll", low="distant:nll", expected=0.02),
            Above(
                text="whole blocks: distant against adjacent",
                high="distant:videos/whole",
                low="adjacent:videos/whole",
                expected=0.1,
            ),
            Above(
                text="background that fits one pattern: distant against adjacent",
                high="distant:videos/stripes",
                low="adjacent:videos/stripes",
                expected=0.05,
            ),
        ),
        steps=700,
        cost=1.4,
        curve="videos/whole/frames",
        note="Four codes in every pass in both arms: one in each quarter of the frame, or a square of 2 x 2.",
    )
