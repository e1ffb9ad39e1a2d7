"""Heads of neighbouring prediction: one for each axis, and the mean of their logits where several reach a cell (T8)."""

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss, RollOut
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    return Finding(
        name="axis_heads",
        claim="A single head cannot say which neighbour it predicts; a head for each axis can, and the mean of their "
        "logits is better than one "
        "axis alone.",
        paper="NAR (arXiv 2503.10696), ablation of heads",
        published="FID 66.3 with one shared head; 75.9 with columns alone where axes overlap, 25.7 with rows alone, 3.06 with the mean",
        mechanism=(
            "test_findings_recipes.py::test_an_axis_alone_predicts_all_that_it_reaches",
            "test_laws_training.py::test_neighbours_average_the_logits_of_the_heads_that_reach_a_cell",
        ),
        world=World(),
        arms={
            "mean": Arm(recipe="nar"),
            "columns": Arm(recipe="nar", train={"sequence.targets": slot("neighbours", alone="column")}),
            "rows": Arm(recipe="nar", train={"sequence.targets": slot("neighbours", alone="row")}),
            "shared": Arm(recipe="nar", train={"model.head": slot("axes", shared=True)}),
        },
        measures=(Loss(), RollOut(given=0)),
        checks=(
            Above(
                text="loss: one shared head against a head for each axis",
                high="shared:nll",
                low="mean:nll",
                expected=0.05,
            ),
            Above(text="loss: columns alone against the mean", high="columns:nll", low="mean:nll", expected=0.02),
            Above(text="loss: rows alone against the mean", high="rows:nll", low="mean:nll", expected=0.02),
            Above(
                text="background that fits one pattern: the mean against one shared head",
                high="mean:videos/stripes",
                low="shared:videos/stripes",
                expected=0.05,
            ),
        ),
        steps=700,
        curve="videos/stripes/frames",
    )
