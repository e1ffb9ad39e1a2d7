"""Passes over a frame, and guidance: one pass draws cells that do not fit together (T6)."""

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.measures import RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    guided = {f"8, guidance {scale}": {"steps": 8, "guidance": slot("text", scale=float(scale))} for scale in (2, 8)}
    return Finding(
        name="passes",
        claim="Quality rises with the passes over a frame and then saturates; guidance helps up to a point and hurts beyond it.",
        paper="Lumos-1 (arXiv 2507.08801), settings of inference; MaskGIT (arXiv 2202.04200), number of iterations",
        published="50 passes and guidance 15 to 16 (Lumos-1); 8 to 12 passes (MaskGIT)",
        world=World(),
        arms={f"{steps}": Arm(recipe="diffusion_forcing", generate={"steps": steps}) for steps in (1, 2, 4, 8, 16)}
        | {name: Arm(recipe="diffusion_forcing", generate=changes) for name, changes in guided.items()},
        measures=(RollOut("videos", given=0),),
        checks=(
            Above(text="background that fits one pattern: 8 passes "
            "against 1", high="8:videos/stripes", low="1:videos/stripes", expected=0.1),
            Above(text="whole blocks: 8 passes against 1", high="8:videos/whole", low="1:videos/whole", expected=0.1),
            Close(text="whole blocks: 16 passes are no better than 8", one="16:videos/whole", other="8:videos/whole", margin=0.1),
            Above(
                text="whole blocks of the right colour: guidance 2 against none",
                high="8, guidance 2:videos/whole", low="8:videos/whole", expected=0.05,
            ),
            Above(
                text="background that fits one pattern: guidance 8 is worse than 2",
                high="8, guidance 2:videos/stripes", low="8, guidance 8:videos/stripes", expected=0.05,
            ),
        ),
        steps=800,
        curve="videos/whole/frames",
    )  # fmt: skip
