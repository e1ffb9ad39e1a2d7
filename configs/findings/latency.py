"""Seconds of a video: code by code, by masks without a cache, by masks with one (T5)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Seconds
from lumos.findings.worlds import World


def get_finding() -> Finding:
    return Finding(
        name="latency",
        claim="Prediction of masks is faster than code by code, and much faster with a cache than without.",
        paper="Lumos-1 (arXiv 2507.08801), table of inference",
        published="one video of the 1 B model: 960.0 s code by code, 383.0 s by masks without a cache, 77.8 s with one",
        world=World(frames=7, side=12, num_train=64),
        arms={"code by code": Arm(recipe="next_token"), "masks": Arm(generate={"steps": 16})},
        measures=(Seconds(videos=1, whole=True),),
        checks=(
            Above(
                text="seconds: masks without a cache against with one",
                high="masks:seconds/whole",
                low="masks:seconds",
                expected=0.5,
            ),
            Above(
                text="seconds: code by code against masks with a cache",
                high="code by code:seconds",
                low="masks:seconds",
                expected=0.5,
            ),
            Above(
                text="seconds: code by code against masks without a cache",
                high="code by code:seconds",
                low="masks:seconds/whole",
                expected=0.5,
            ),
        ),
        steps=2,
        note="One video at a time, 16 passes a frame. Seconds of a small model on a CPU: a pass over one code is "
        "cheap there, on an accelerator it "
        "costs as much as one over a frame, so the order of code by code is that of the device; exact counts of "
        "passes are in step_counts.",
    )
