"""Yume: An Interactive World Generation Model (arXiv 2507.17744).

Mechanism:  older frames are seen through fewer and fewer memory tokens; the sampler looks passes ahead, keeps the best of what it finds
            there and hides the rest again (the discrete counterpart of its SDE with a look ahead).
Not here:   quantised camera motion as words (captions may hold them); masked training with an interpolator; artefact removal by low
            frequencies; distillation to 14 steps with reused residuals.
Published:  looks 5 passes ahead every 5 passes; 2 frames at (1, 2, 2), 4 at (1, 4, 4), 17 at (1, 8, 8). Yume-Bench: 6 measures of 70 cases.
Run:        lumos train --config=configs/recipes/yume.py --workdir=yume --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=yume --prompt="a red circle moves left" --frames=401 --out=yume.mp4
Expected:   not measured yet.
Law:        tests/test_ladder.py::test_what_a_frame_costs_does_not_grow_like_the_video
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "yume"
    last = config.sequence.grid[0] - 1
    config.model.memory = (2, 4)
    config.sequence.attention = slot("ladder", frames=(1, max(last // 2, 2)))
    config.generate.cache = slot("ladder", width=last)
    config.generate.positions = slot("relative", horizon=last)
    config.generate.sampler = slot("time_travel", ahead=1 if config.generate.steps < 10 else 5, every=5)
    return config
