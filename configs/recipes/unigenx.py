"""UniGenX: Unified Generation of Sequence and Structure with Autoregressive Diffusion (arXiv 2503.06687).

Mechanism:  tokens follow one another, and numbers among them are drawn by a small diffusion network from the hidden state of the token
            before.
Not here:   molecules and materials; words and numbers in one sequence (text is not predicted with this head).
Published:  structures of crystals and molecules; none of videos.
Run:        lumos train --config=configs/recipes/unigenx.py --workdir=unigenx --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=unigenx --prompt="a red circle moves left" --out=unigenx.mp4
Expected:   not measured yet.
Law:        tests/test_findings_recipes.py::test_unigenx_draws_the_next_point_from_noise
Figure:     docs/findings.md
"""

from lumos.configs.recipes.next_token import get_config as next_token
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py; the smoke variant has 30 codes."""
    config = next_token(variant)
    config.name = "unigenx"
    config.model.head = slot("flow", levels=(5, 2, 3) if variant.endswith("smoke") else (8, 5, 5, 5))
    config.generate.top_p, config.generate.sampler = 1.0, slot("random")
    return config
