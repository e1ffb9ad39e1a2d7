"""Emu3: Next-Token Prediction is All You Need (arXiv 2409.18869); the same method: VideoPoet, Cosmos-Predict1, OmniTokenizer-LM.

Mechanism:  every code is a stage of its own, predicted from the one before it in raster order; nothing is hidden; all codes weigh the
            same; one forward pass a code in generation.
Not here:   end-of-line and frame tokens, the loss on text, cross-attention to a text encoder (Cosmos), full attention inside the
            prompt (VideoPoet: --config.sequence.attention=prefix).
Published:  Emu3: 8 B parameters, 4x8x8 compression, 32,768 codes. Cosmos-Predict1: 4 and 12 B, 8x16x16, top-p 0.8 to 0.9.
Run:        lumos train --config=configs/recipes/next_token.py --workdir=next --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=next --prompt="a red circle moves left" --out=next.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_next_token_predicts_from_the_code_before_and_sees_no_later_one
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "next token"
    config.sequence.layout = slot("compact", block=(1, 1, 1))
    config.sequence.targets = slot("next")
    config.corruption.level = slot("constant", ratio=0.0)
    config.loss.weights = slot("all")
    config.generate.top_p = 0.9
    return config
