"""Levels that never fall from frame to frame, for schedules in which they never do; what a lag between frames costs (T11)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    lags = {
        f"non-decreasing, lag {n}": Arm(recipe="ar_diffusion", generate={"plan": slot("diagonal", passes=n)})
        for n in (0, 1, 2, 6)
    }
    return Finding(
        name="schedules",
        claim="Under a schedule in which later frames are never clearer than earlier ones, training on such levels "
        "alone is better than on "
        "independent levels; a larger lag between frames is better up to a point.",
        paper="AR-Diffusion (arXiv 2503.07418), sections 3.2 and 3.3, and the tables of FVD",
        published="UCF-101 FVD of 16 frames 186.6 against 274.5 (diffusion forcing); Sky 40.8 against 251.9",
        mechanism=(
            "test_corruption_laws.py::test_levels_of_non_decreasing_frames_are_those_of_the_definition",
            "test_laws_generation.py::test_every_group_gets_all_its_passes_in_order",
        ),
        world=World(),
        arms=lags | {"independent, lag 2": Arm(recipe="diffusion_forcing", generate={"plan": slot("diagonal", passes=2)})},
        measures=(RollOut(),),
        checks=(
            Above(
                text="right codes, lag 2: non-decreasing levels against independent ones",
                high="non-decreasing, lag 2:videos/codes", low="independent, lag 2:videos/codes", expected=0.03,
            ),
            Above(
                text="right codes: lag 2 against all frames at once",
                high="non-decreasing, lag 2:videos/codes", low="non-decreasing, lag 0:videos/codes", expected=0.03,
            ),
            Above(
                text="right codes: one frame after another against lag 1",
                high="non-decreasing, lag 6:videos/codes", low="non-decreasing, lag 1:videos/codes", expected=0.02,
            ),
        ),
        steps=800,
        curve="videos/codes/frames",
    )  # fmt: skip
