"""G3PT: Unleash the Power of Autoregressive Modeling in 3D Generation via Cross-scale Querying Transformer (arXiv 2409.06322).

Mechanism:  tokens come in scales, coarse to fine; all tokens of a scale are generated in one pass by queries that see all coarser scales.
            Here a scale is every 4th, every 2nd, then every row and column of a frame, and a query is the code of its parent on the
            scale before, at its own place, in a second copy of the sequence.
Not here:   3-D shapes and their tokenizer; scales that sum up as residuals; queries of their own for each scale.
Published:  0.1 to 1.5 B parameters, a power law of the loss in their number.
Run:        lumos train --config=configs/recipes/g3pt.py --workdir=g3pt --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=g3pt --prompt="a red circle moves left" --out=g3pt.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_g3pt_makes_a_scale_in_one_pass_from_all_coarser_ones
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "g3pt"
    config.sequence.layout = slot("scales", num_scales=3)
    config.sequence.copies = 2
    config.corruption.level = slot("constant", ratio=1.0)
    config.corruption.kernel = slot("upsampled")
    config.generate.sampler = slot("next_scale")
    config.generate.steps = 1
    config.generate.history_ratio = 0.0
    return config
