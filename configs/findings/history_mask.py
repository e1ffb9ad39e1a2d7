"""The history mask of generation: a model of tubes wants a history that is hidden as in training (T4)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import RollOut
from lumos.findings.worlds import World


def get_finding() -> Finding:
    return Finding(
        name="history_mask",
        claim="A model that was trained with tubes generates best when as much of every finished frame is hidden again as in training; "
        "with a history that is wholly visible it is worse.",
        paper="Lumos-1 (arXiv 2507.08801), section 3.4",
        published="0.7 is used; without it the videos are severely harmed (pictures, no figure)",
        mechanism=(
            "test_corruption.py::test_history_masks_equal_the_official_pattern",
            "test_interop_lumos1.py::test_history_patterns_equal_the_official_ones",
        ),
        world=World(),
        arms={f"{ratio}": Arm(generate={"history_ratio": ratio}) for ratio in (0.0, 0.3, 0.7, 0.9, 1.0)},
        measures=(RollOut(),),
        checks=(
            Above(
                text="right codes: 0.7 hidden is better than nothing hidden",
                high="0.7:videos/codes",
                low="0.0:videos/codes",
                expected=0.05,
            ),
            Above(
                text="right codes: 0.7 hidden is better than all hidden",
                high="0.7:videos/codes",
                low="1.0:videos/codes",
                expected=0.05,
            ),
        ),
        steps=2000,
        curve="videos/codes/frames",
    )
