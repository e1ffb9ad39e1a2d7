"""MCVD: Masked Conditional Video Diffusion for Prediction, Generation, and Interpolation (arXiv 2205.09853).

Mechanism:  one model for four tasks: past and future frames stand around those that are predicted, and each of both is hidden in half of
            the clips: prediction, prediction of the past, interpolation, and generation from nothing. All frames are one group with full
            attention; codes are unmasked in the whole clip together.
Not here:   Gaussian noise and the convolutional network; blocks that follow one another (a new block takes the last frames as its past).
Published:  past and current frames: SMMNIST 5 and 5, BAIR 2 and 5 (28 predicted), KTH 10 and 5. BAIR FVD 89.5 (2 to 14 frames).
Run:        lumos train --config=configs/recipes/mcvd.py --workdir=mcvd --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=mcvd --prompt="a red circle moves left" --video=FIRST_FRAMES.mp4 --out=mcvd.mp4
            Interpolation is in the library: Engine.decode(..., kept_BTHW=...), which says what codes are given.
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_mcvd_hides_past_and_future_each_in_half_of_the_clips
Figure:     none yet
"""

from lumos.configs.recipes.maskgit import get_config as maskgit
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = maskgit(variant)
    config.name = "mcvd"
    frames = config.sequence.grid[0]
    config.corruption.given = slot("segments", sizes=(1, frames - 2, 1))
    return config
