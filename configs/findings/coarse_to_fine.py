"""Coarse codes with errors in training, for fine ones that are made from coarse ones with errors (T15)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    return Finding(
        name="coarse_to_fine",
        claim="A model that makes fine codes from coarse ones is more robust when its coarse codes had errors in training.",
        paper="ARLON (arXiv 2410.20502), noise on coarse tokens; HiTVideo (arXiv 2503.11513)",
        published="8 of 11 VBench dimensions better than the base model, with noise on the coarse tokens",
        world=World(side=8, frames=4),
        arms={
            "true coarse codes": Arm(recipe="g3pt", generate={"steps": 1}),
            "codes with errors": Arm(
                recipe="g3pt", train={"corruption.errors": slot("uniform", most=0.2)}, generate={"steps": 1}
            ),
        },
        measures=(RollOut(), RollOut("alone", given=0)),
        checks=(
            Above(
                text="right codes behind one frame",
                high="codes with errors:videos/codes",
                low="true coarse codes:videos/codes",
                expected=0.03,
            ),
            Above(
                text="background that fits one pattern, from nothing",
                high="codes with errors:alone/stripes",
                low="true coarse codes:alone/stripes",
                expected=0.03,
            ),
        ),
        steps=600,
        cost=2.0,
        curve="videos/codes/frames",
    )
