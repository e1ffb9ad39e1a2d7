"""Stable Video Infinity: Infinite-Length Video Generation with Error Recycling (arXiv 2510.09212).

Mechanism:  visible codes are replaced by errors that the model made in earlier steps, kept for each true code and each bin of the hidden
            ratio; half of the clips stay clean; the loss is on hidden and on wrong codes.
Not here:   residuals that are added to latents: codes do not add up, and a wrong prediction of another clip is no error of this one, so the
            bank holds what was predicted for the same true code. Errors of the initial noise: codes have none.
Published:  50 bins of 500 errors, probability 0.9 each for the video and its reference, half of the clips clean (0.2 in the released
            script). 250 s: subject 97.5, imaging 71.5 (FramePack 79.4 / 57.6); from 50 to 250 s the subject loses 0.6 points.
Run:        lumos train --config=configs/recipes/stable_video_infinity.py --workdir=stable_video_infinity --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=stable_video_infinity --prompt="a red circle moves left" --frames=401 --out=stable_video_infinity.mp4
Expected:   not measured yet.
Law:        tests/test_history_errors.py::test_a_bank_gives_errors_of_the_true_code_from_every_bin_alike
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "stable video infinity"
    last = config.sequence.grid[0] - 1
    config.corruption.errors = slot("bank", bins=50)
    config.generate.cache = slot("fifo", width=last)
    config.generate.positions = slot("relative", horizon=last)
    return config
