"""The temperature of the confidence in the released sampler shrinks twice over, so that it soon is as good as none (T25)."""

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.measures import Diversity, RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    sampler = lambda name, temperature: Arm(
        recipe="diffusion_forcing", generate={"steps": 12, "sampler": slot(name, temperature=temperature)}
    )
    return Finding(
        name="temperature",
        claim="The temperature by which codes are kept makes videos more diverse; in the released code it shrinks "
        "cumulatively, and is as good "
        "as none.",
        paper="Lumos-1 (arXiv 2507.08801), released code; MaskGIT (arXiv 2202.04200), choice of tokens",
        published="a departure of the code from the paper, without a figure",
        mechanism=(
            "test_findings_known.py::test_temperatures_fall_to_nothing_and_the_released_ones_at_once",
            "test_findings_known.py::test_a_temperature_decides_how_often_the_least_probable_cell_is_kept",
        ),
        world=World(motion="turning", captions="colour"),
        arms={
            "greedy": sampler("confidence", 0.0),
            "linear, 1": sampler("confidence", 1.0),
            "linear, 4.5": sampler("confidence", 4.5),
            "released, 4.5": sampler("released", 4.5),
        },
        measures=(Diversity(), RollOut()),
        checks=(
            Above(
                text="diversity: linear, 4.5 against greedy",
                high="linear, 4.5:diversity",
                low="greedy:diversity",
                expected=0.01,
            ),
            Close(
                text="diversity: released, 4.5 against greedy",
                one="released, 4.5:diversity",
                other="greedy:diversity",
                margin=0.01,
            ),
            Above(
                text="legal moves: greedy against linear, 4.5",
                high="greedy:videos/legal",
                low="linear, 4.5:videos/legal",
                expected=0.05,
            ),
        ),
        steps=800,
        curve="videos/legal/frames",
    )
