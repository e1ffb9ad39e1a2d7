"""LARP: Tokenizing Videos with a Learned Autoregressive Generative Prior (arXiv 2410.21264), its generator.

Mechanism:  a video is a row of tokens that learnt queries have read from it, in an order that the tokenizer's own prior made easy to
            predict; the generator is plain next-token prediction over that row, with 1-D positions.
Not here:   the published sizes; the tokenizer is a run of its own (tokenizer.body=holistic, with prior_weight and prior_start).
Published:  1,024 tokens, codebook 8,192; UCF-101 FVD 57 (632 M, class-conditional) and 102 (343 M), K600 5.1; reconstruction 20.
Run:        lumos train --config=configs/recipes/larp.py --workdir=larp --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=larp --prompt="a red circle moves left" --out=larp.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_larp_is_next_token_over_one_row
Figure:     none yet
"""

from lumos.configs.recipes.next_token import get_config as next_token


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = next_token(variant)
    config.name = "larp"
    config.model.rope = "1d"
    config.sequence.grid = (1, 1, 48 if variant.endswith("smoke") else 320)
    return config
