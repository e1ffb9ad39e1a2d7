"""Wrong codes in the history of training, against errors that grow in long videos (T24)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss, RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    long = {"cache": slot("fifo", width=4), "positions": slot("relative", horizon=4)}
    return Finding(
        name="history_errors",
        claim="A model that has seen wrong codes in its history is a little worse on a true history, and keeps longer videos right.",
        paper="1X world model (rates of 0 to 0.2); Loong (arXiv 2410.02757), long videos; DrivingWorld (arXiv 2412.19505)",
        published="pictures and a baseline of 8.79 nats a code (1X), no comparison",
        world=World(background="noise", motion="diagonal"),
        arms={
            "true history": Arm(recipe="acdit", generate=long),
            "wrong codes": Arm(recipe="acdit", train={"corruption.errors": slot("uniform", most=0.2)}, generate=long),
        },
        measures=(Loss("bound"), RollOut("long", given=2, frames=20)),
        checks=(
            Above(text="bound on a true history: wrong codes "
            "are worse", high="wrong codes:bound", low="true history:bound", expected=0.01),
            Above(
                text="background, last of 20 frames (4 times the length of training)",
                high="wrong codes:long/background/late", low="true history:long/background/late", expected=0.05,
            ),
            Above(text="blocks in their place, 20 frames", high="wrong codes:long/place", low="true history:long/place", expected=0.05),
        ),
        steps=700,
        cost=2.0,
        curve="long/background/frames",
    )  # fmt: skip
