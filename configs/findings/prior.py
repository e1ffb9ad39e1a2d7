"""An autoregressive prior in the training of a tokenizer, from the start or late (T17)."""

import dataclasses

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.learned_world import LearnedWorld
from lumos.findings.measures import Loss, Reconstruction, RollOut

_STEPS = 600
_WORLD = LearnedWorld(
    side=4, num_train=2048, tokenizer={
        "tokenizer.body": "holistic", "tokenizer.num_queries": 32, "tokenizer.patch_size": 4, "tokenizer.temporal_compression": 4,
        "tokenizer.channels": 96, "tokenizer.num_res_blocks": 2, "tokenizer.quantizer": "svq", "tokenizer.levels": (128,),
        "tokenizer.entropy_weight": 0.02, "tokenizer.entropy_boost_steps": 200, "train.num_steps": _STEPS,
    },
)  # fmt: skip


def get_finding() -> Finding:
    def arm(weight, start=0):
        changes = {**_WORLD.tokenizer, "tokenizer.prior_weight": weight, "tokenizer.prior_start": start}
        return Arm(recipe="larp", world=dataclasses.replace(_WORLD, tokenizer=changes))

    return Finding(
        name="prior",
        claim="With the loss of an autoregressive prior a tokenizer rebuilds clips slightly worse, and its tokens are easier to predict one "
        "after another; a prior that starts when the tokenizer can rebuild clips costs less.",
        paper="LARP (arXiv 2410.21264), ablation of the prior",
        published="UCF-101 FVD 57 with a prior; worse without, with a slightly better reconstruction",
        mechanism=(
            "test_findings_known.py::test_codes_learn_to_be_what_the_prior_expects",
            "test_holistic.py::test_prior_is_autoregressive_and_uses_its_table",
        ),
        world=_WORLD,
        arms={"no prior": arm(0.0), "from the start": arm(0.06), "late": arm(0.06, _STEPS // 2)},
        measures=(Reconstruction(), Loss(draws=1), RollOut(given=0)),
        checks=(
            Above(
                text="cells read back from the reconstruction: no prior against one from the start",
                high="no prior:kept", low="from the start:kept", expected=0.02,
            ),
            Close(
                text="cells read back from the reconstruction: a late prior is as good as none",
                one="late:kept", other="no prior:kept", margin=0.02,
            ),
            Above(
                text="loss of the next token: no prior against one from the start",
                high="no prior:nll", low="from the start:nll", expected=0.1,
            ),
            Above(
                text="loss of the next token: no prior against a late one",
                high="no prior:nll", low="late:nll", expected=0.1,
            ),
            Above(
                text="generated background that fits one pattern: a late prior against none",
                high="late:videos/stripes", low="no prior:videos/stripes", expected=0.05,
            ),
            Above(
                text="generated frames with a whole block of the right colour: a late prior against none",
                high="late:videos/whole", low="no prior:videos/whole", expected=0.05,
            ),
        ),
        steps=400,
        seeds=(0, 1, 2),
        cost=2.0,
        curve="videos/stripes/frames",
        note="Losses are in nats a token. A token is one of 128, and a clip 32 of them, in all arms. The weight of the prior is the published 0.06.",
    )  # fmt: skip
