"""AR-Diffusion: Asynchronous Video Generation with Auto-Regressive Diffusion (arXiv 2503.07418).

Mechanism:  ratios never fall from frame to frame (FoPP: a frame and its ratio are uniform, the others follow); in generation a frame
            begins some passes after the one before it, and several are worked on together: steps + (frames - 1) * lag passes.
Not here:   Gaussian noise and its prediction; a code that is kept stays, so noisier neighbours cannot revise it
            (--config.generate.sampler.eta=0.5 lets it compete again).
Published:  50 passes, lags 0, 1, 5, 10, 25, 50; UCF-101 FVD of 16 frames 186.6 (diffusion forcing 274.5), Sky 40.8 (251.9).
Run:        lumos train --config=configs/recipes/ar_diffusion.py --workdir=ard --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=ard --prompt="a red circle moves left" --out=ard.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_ar_diffusion_never_knows_less_of_an_earlier_frame
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "ar diffusion"
    config.corruption.frames = slot("non_decreasing")
    config.generate.plan = slot("diagonal", passes=2)
    return config
