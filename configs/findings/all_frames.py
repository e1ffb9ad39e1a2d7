"""All frames at once against frame by frame: whose errors grow (T23)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    return Finding(
        name="all_frames",
        claim="Frame by frame, errors add up from frame to frame; a model that makes all frames at once does not lose "
        "its way like that.",
        paper="DAWN (arXiv 2410.13726), comparison with autoregressive generation",
        published="pictures and FVD of talking heads; the claim is that errors do not accumulate",
        mechanism=(
            "test_laws_training.py::test_all_at_once_is_one_group_in_which_everything_sees_everything",
            "test_laws_generation.py::test_a_diagonal_without_lag_is_all_frames_at_once",
        ),
        world=World(frames=8, side=6, motion="diagonal"),
        arms={
            "frame by frame": Arm(recipe="diffusion_forcing", generate={"steps": 6}),
            "all at once": Arm(
                recipe="maskgit",
                train={"corruption.given": slot("tasks", frames=((), (0,)))},
                generate={"steps": 24, "sampler": slot("confidence", temperature=1.0)},
            ),
        },
        measures=(RollOut(),),
        checks=(
            Above(
                text="right codes lost between the first generated frame and the last: frame by frame against all at once",
                high="frame by frame:videos/codes/drop", low="all at once:videos/codes/drop", expected=0.05,
            ),
            Above(
                text="blocks out of place that were in it before: frame by frame against all at once",
                high="frame by frame:videos/place/drop", low="all at once:videos/place/drop", expected=0.05,
            ),
        ),
        steps=700,
        cost=1.6,
        curve="videos/place/frames",
        note="Neither arm learns to move the block in this budget: it is in place in under 2 % of the generated frames from the first one on. "
        "So the statement about blocks has nothing to lose, and says nothing at this size.",
    )  # fmt: skip
