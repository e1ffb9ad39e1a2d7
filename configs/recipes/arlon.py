"""ARLON: Boosting Diffusion Transformers with Autoregressive Models for Long Video Generation (arXiv 2410.20502), its two levels.

Mechanism:  coarse codes of a frame first, finer ones from them; in training half of the clips have wrong codes at random rates, so that
            fine codes tolerate what the coarse level gets wrong.
Not here:   the diffusion transformer as the fine level and its adaptive norms; a coarse tokenizer of its own; overlapping segments.
Published:  8 of 11 dimensions of VBench better than OpenSora 1.2.
Run:        lumos train --config=configs/recipes/arlon.py --workdir=arlon --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=arlon --prompt="a red circle moves left" --out=arlon.mp4
Expected:   not measured yet.
Law:        tests/test_findings_recipes.py::test_arlon_sees_wrong_coarse_codes
Figure:     docs/findings.md
"""

from lumos.configs.recipes.g3pt import get_config as g3pt
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = g3pt(variant)
    config.name = "arlon"
    config.corruption.errors = slot("uniform")
    return config
