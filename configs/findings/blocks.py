"""The block of next-block prediction: larger blocks take fewer passes and predict worse (T7)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss, RollOut, Seconds
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    block = lambda *size: Arm(recipe="nbp", train={"sequence.layout": slot("compact", block=size)})
    return Finding(
        name="blocks",
        claim="The larger the block that is predicted at once, the higher the loss and the fewer the seconds; videos "
        "are best with small blocks, "
        "not with single codes.",
        paper="NBP (arXiv 2502.07737), table of block sizes",
        published="FVD 29.0, 25.7, 25.5, 32.1, 43.7, 67.0 and 0.8, 5.2, 8.9, 10.8, 14.1, 17.1 frames a second with "
        "blocks of 1, 8, 16, 32, 64, 256",
        mechanism=(
            "test_findings_known.py::test_codes_of_a_block_do_not_know_of_each_other",
            "test_laws_training.py::test_losses_of_blocks_are_those_of_every_code_at_its_source",
        ),
        world=World(motion="turning", captions="colour"),
        arms={"code": block(1, 1, 1), "row": block(1, 1, 0), "frame": block(1, 0, 0)},
        measures=(Loss(), RollOut(), Seconds()),
        checks=(
            Above(text="loss: rows against single codes", high="row:nll", low="code:nll", expected=0.02),
            Above(text="loss: frames against rows", high="frame:nll", low="row:nll", expected=0.05),
            Above(
                text="legal moves: rows are better than single codes",
                high="row:videos/legal",
                low="code:videos/legal",
                expected=0.05,
            ),
            Above(
                text="legal moves: rows are better than frames",
                high="row:videos/legal",
                low="frame:videos/legal",
                expected=0.1,
            ),
            Above(text="seconds: single codes against rows", high="code:seconds", low="row:seconds", expected=0.05),
            Above(text="seconds: rows against frames", high="row:seconds", low="frame:seconds", expected=0.01),
        ),
        steps=700,
        curve="videos/legal/frames",
        note="In a world whose blocks turn at random, the codes of a frame depend on each other; drawn at once they do not fit.",
    )
