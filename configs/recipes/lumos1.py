"""Lumos-1: On Autoregressive Video Generation from a Unified Model Perspective (arXiv 2507.08801).

Mechanism:  AR-DF: frame-causal, one temporal tube with one cosine ratio hidden in all frames and predicted in place; frame by
            frame, and 70 % of a finished frame are hidden again before later ones see it; MM-RoPE. The defaults of lumos.
Not here:   the tokens and markers of the released models: configs/lumos_1b.py:lumos1, and docs/released_weights.md.
Published:  0.5 to 3.6 B parameters, Cosmos DV4x8x8 codes, 25 frames of 448x256; 50 passes a frame, guidance 15 to 16, ratio floor
            and history ratio 0.7, text dropped in 10 % (add --config.generate.steps=50 --config.generate.guidance.scale=15).
Run:        lumos train --config=configs/recipes/lumos1.py --workdir=lumos1 --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=lumos1 --prompt="a red circle moves left" --out=lumos1.mp4
Expected:   not measured yet at this size; a smaller model of the same method is in docs/results.md.
Law:        tests/test_recipes.py::test_lumos1_hides_one_tube_in_training_and_its_share_in_generation
Figure:     docs/results.md
"""

from lumos.configs.transformer_small import get_config as small


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "lumos1"
    return config
