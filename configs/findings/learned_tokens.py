"""Which masks leak where codes are those of a tokenizer that was trained (T1 on learned tokens)."""

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.learned_world import LearnedWorld
from lumos.findings.measures import CrossEntropy, Reconstruction
from lumos.slots import slot


def get_finding() -> Finding:
    return Finding(
        name="learned_tokens",
        claim="On the tokens of a trained tokenizer, too, random masks let the loss of later frames collapse, and tubes keep all frames as hard.",
        paper="Lumos-1 (arXiv 2507.08801), section 3.3 and the ablation of masks",
        published="curves of the loss of frames; overall consistency 0.232 random, 0.241 independent, 0.249 tubes",
        mechanism=(
            "test_corruption.py::test_no_leak_from_earlier_frames_under_tubes",
            "test_corruption_laws.py::test_the_leak_is_what_the_docstring_says",
        ),
        world=LearnedWorld(
            background="noise", textures=4, num_train=2048, tokenizer={
                "tokenizer.quantizer": "vq", "tokenizer.levels": (64,), "tokenizer.patch_size": 8, "tokenizer.channels": 32,
                "tokenizer.channel_mult": (1,), "tokenizer.norm": "position", "tokenizer.mid_attention": False,
                "optimizer.learning_rate": 1e-2, "train.num_steps": 600,
            },
        ),
        arms={
            "tubes": Arm(),
            "random": Arm(train={"corruption.cells": slot("clip")}),
            "independent": Arm(train={"corruption.cells": slot("frame"), "corruption.frames": slot("independent")}),
        },
        measures=(Reconstruction(), CrossEntropy("own", None), CrossEntropy("tube")),
        checks=(
            Above(text="the tokenizer keeps more than 0.99 of the cells", high="tubes:kept", low=0.99, expected=0.005),
            Above(
                text="under its own masks, the random model's last frame has less than 0.9 of the loss of its first",
                high=0.9, low="random:own/imbalance", expected=0.2,
            ),
            Above(
                text="under its own masks, the independent model's last frame has less than 0.9 of the loss of its first",
                high=0.9, low="independent:own/imbalance", expected=0.2,
            ),
            Close(text="with tubes the last frame is as hard as the first (ratio 1)", one="tubes:own/imbalance", other=1.0, margin=0.1),
        ),
        steps=400,
        seeds=(0, 1, 2),
        curve="own/frames",
    )  # fmt: skip
