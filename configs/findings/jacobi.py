"""Jacobi iteration of a next-token model: the same codes in fewer passes (T14)."""

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.measures import Solved
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    chunk = lambda num, **more: Arm(recipe="next_token", generate={"sampler": slot("jacobi", chunk=num, **more)})
    return Finding(
        name="jacobi",
        claim="Codes that are solved together by iteration are those of generation one by one, in a fraction of the "
        "passes; fewer where the "
        "iteration starts from the frame before.",
        paper="STARFlow-V (arXiv 2511.20462), decoding; Speculative Jacobi Decoding (arXiv 2410.01699)",
        published="chunks of 32 and 128 codes, at most 32 iterations; 2 times fewer passes (speculative)",
        mechanism=(
            "test_jacobi.py::test_the_fixed_point_is_what_is_generated_one_by_one",
            "test_jacobi.py::test_the_previous_frame_is_a_good_guess_of_a_still_clip",
        ),
        world=World(background="noise"),
        arms={"chunks of 5": chunk(5), "chunks of 25": chunk(25), "chunks of 25, from nothing": chunk(25, from_previous=False)},
        measures=(Solved(),),
        checks=(
            Close(text="codes are those of one by one", one="chunks of 25:solved/same", other=1.0, margin=1e-6),
            Above(text="passes for each code: less than half, chunks of 25", high=0.5, low="chunks of 25:solved/passes", expected=0.1),
            Above(text="passes for each code: chunks of 5 "
            "against 25", high="chunks of 5:solved/passes", low="chunks of 25:solved/passes", expected=0.05),
            Above(
                text="passes for each code: from nothing against from the frame before",
                high="chunks of 25, from nothing:solved/passes", low="chunks of 25:solved/passes", expected=0.02,
            ),
        ),
        steps=600,
        note="The frame before shows the block where it was, which may mislead the codes behind it more than codes of the background do. The "
        "statement about the first guess has had no longer run yet; that the codes are the same is the known answer of the implementation.",
    )  # fmt: skip
