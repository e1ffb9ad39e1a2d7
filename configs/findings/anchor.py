"""The first frame as an anchor, and a history with errors, against drift (T12)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    def arm(sink, most):
        return Arm(
            recipe="art_v",
            train={
                "sequence.attention": slot("window", width=2, sink=sink), "corruption.errors": slot("uniform", most=most),
                "model.head": slot("categorical"),
            },
            generate={"cache": slot("window", width=2, sink=sink), "positions": slot("realigned")},
        )  # fmt: skip

    return Finding(
        name="anchor",
        claim="Frames that see the first frame beside the one before drift less; errors in the history of training help as well.",
        paper="ART-V (arXiv 2311.18834), anchor and noise on references",
        published="pictures and a comparison of drift, no figure",
        mechanism=(
            "test_rules.py::test_a_token_depends_on_what_it_sees_and_on_nothing_else",
            "test_history_errors.py::test_random_codes_come_at_the_drawn_rates_and_some_clips_stay_clean",
        ),
        world=World(background="noise"),
        arms={"neither": arm(0, 0.0), "anchor": arm(1, 0.0), "errors": arm(0, 0.2), "both": arm(1, 0.2)},
        measures=(RollOut("long", given=1, frames=20),),
        checks=(
            Above(
                text="background of the 20th frame: anchor against neither",
                high="anchor:long/background/late",
                low="neither:long/background/late",
                expected=0.1,
            ),
            Above(
                text="background of the 20th frame: errors against neither",
                high="errors:long/background/late",
                low="neither:long/background/late",
                expected=0.05,
            ),
            Above(
                text="background of the 20th frame: both against the anchor",
                high="both:long/background/late",
                low="anchor:long/background/late",
                expected=0.05,
            ),
        ),
        steps=500,
        cost=2.0,
        curve="long/background/frames",
    )
