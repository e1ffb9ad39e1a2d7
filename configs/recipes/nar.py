"""NAR, Neighboring Autoregressive Modeling for Efficient Visual Generation (arXiv 2503.10696).

Mechanism:  cells of equal t + y + x are one stage; a code predicts its next column, row and frame with a head for each axis, and the
            logits of all heads that reach a cell are averaged: T + H + W - 2 forward passes.
Not here:   heads at successive depths of the trunk's end (an MLP of each head on the same hidden states instead); learned absolute
            positions (MM-RoPE).
Published:  369 and 694 M parameters, 4x16x16 LARP-like codes, guidance 1.25, 3,000 epochs; UCF-101 FVD 96.2 and 71.1 in 34 passes;
            ImageNet FID with one shared head 66.3, averaged heads 3.06.
Run:        lumos train --config=configs/recipes/nar.py --workdir=nar --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=nar --prompt="a red circle moves left" --out=nar.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_nar_has_a_stage_for_each_plane_and_a_head_for_each_axis
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "nar"
    config.sequence.layout = slot("planes")
    config.sequence.targets = slot("neighbours")
    config.model.head = slot("axes")
    config.corruption.level = slot("constant", ratio=0.0)
    config.loss.weights = slot("all")
    config.generate.guidance = slot("text", scale=1.25)
    return config
