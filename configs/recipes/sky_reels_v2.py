"""SkyReels-V2: Infinite-length Film Generative Model (arXiv 2504.13074).

Mechanism:  training draws levels that never fall from frame to frame; generation works on several frames at once, each some passes behind
            the one before it, and sees finished ones with a small part hidden.
Not here:   blocks of 5 latent frames (--config.sequence.layout.block); windows of 97 pixel frames with 17 in common (the cache slides
            instead); preference tuning; a captioner.
Published:  1.3B at 540p: 0.49 frames a second, VBench 82.7; 14B 83.9; history noise 20 of 1,000 levels; iterations S + (F - 1) s.
Run:        lumos train --config=configs/recipes/sky_reels_v2.py --workdir=sky_reels_v2 --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=sky_reels_v2 --prompt="a red circle moves left" --out=sky_reels_v2.mp4
Expected:   not measured yet.
Law:        tests/test_corruption_laws.py::test_non_decreasing_frames_have_the_marginals_of_fopp
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "skyreels v2"
    config.corruption.frames = slot("non_decreasing")
    config.generate.plan = slot("diagonal", passes=max(config.generate.steps // 4, 1))
    config.generate.history_ratio = 0.02
    return config
