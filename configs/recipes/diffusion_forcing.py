"""Diffusion Forcing: Next-token Prediction Meets Full-Sequence Diffusion (arXiv 2407.01392).

Mechanism:  every frame has a ratio and a mask of its own, and the model is told the ratio; so any schedule of ratios over frames may be
            generated: one by one here, or --config.generate.plan=diagonal --config.generate.plan.passes=4 (the pyramid).
Not here:   Gaussian noise (hidden codes instead), the recurrent network of the paper, guidance by rewards.
Published:  no token settings; ratios are uniform. Losses are not comparable with those of tubes: a hidden code may be copied from an
            earlier frame (sequence/corruption.py).
Run:        lumos train --config=configs/recipes/diffusion_forcing.py --workdir=df --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=df --prompt="a red circle moves left" --out=df.mp4
Expected:   not measured yet at this size; the demo (configs/demo.py) uses these masks without the ratio as an input.
Law:        tests/test_recipes.py::test_diffusion_forcing_draws_every_frame_for_itself
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "diffusion forcing"
    config.model.level_embedding = True
    config.corruption.frames = slot("independent")
    config.corruption.cells = slot("frame")
    config.corruption.level = slot("uniform")
    config.generate.history_ratio = 0.0
    return config
