"""NBP, Next Block Prediction: Video Generation via Semi-Autoregressive Modeling (arXiv 2502.07737).

Mechanism:  blocks of codes, here rows, are stages; a code predicts the code in its place of the next block, so a whole block takes one
            forward pass; inside a block attention is full; the codes of the first block come one by one.
Not here:   learned absolute positions (MM-RoPE instead); the start tokens of other blocks.
Published:  700 M to 3 B parameters, 5x16x16 codes of 64,000, blocks 1x1x16, top-k 16,000 and top-p 0.9; K600 FVD by block size 1 / 8 / 16 /
            32 / 64 / 256: 29.0 / 25.7 / 25.5 / 32.1 / 43.7 / 67.0; 8.89 frames a second against 0.80 of single tokens (700 M).
Run:        lumos train --config=configs/recipes/nbp.py --workdir=nbp --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=nbp --prompt="a red circle moves left" --out=nbp.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_nbp_predicts_the_same_place_of_the_next_row
Figure:     none yet
"""

from lumos.configs.recipes.next_token import get_config as next_token
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = next_token(variant)
    config.name = "nbp"
    config.sequence.layout = slot("compact", block=(1, 1, 0))
    return config
