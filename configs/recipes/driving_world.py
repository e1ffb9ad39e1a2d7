"""DrivingWorld: Constructing World Model for Autonomous Driving via Video GPT (arXiv 2412.19505), its robust training.

Mechanism:  every visible code is any other with probability 0.3 in some of the clips, targets are clean, and every code has a loss.
Not here:   next-state features and raster order inside of a frame (hidden codes of a frame together instead); the tokens of the car's
            state, which come first in a frame: given, they are streams (yaw, x and y in bins: --config.sequence.streams="((513, 1), (129, 1), (129, 1))",
            data.streams with low and high); they are not generated.
Published:  0.3 of the codes; 15 frames of history; top-k 30; nuScenes FID 7.4, FVD 90.9, 40 s.
Run:        lumos train --config=configs/recipes/driving_world.py --workdir=driving_world --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=driving_world --prompt="a red circle moves left" --frames=401 --out=driving_world.mp4
Expected:   not measured yet.
Law:        tests/test_history_errors.py::test_random_codes_come_at_the_drawn_rates_and_some_clips_stay_clean
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "driving world"
    last = config.sequence.grid[0] - 1
    config.corruption.errors = slot("uniform", least=0.3, most=0.3)
    config.loss.weights = slot("all")
    config.generate.top_k = 30
    config.generate.cache = slot("fifo", width=last)
    config.generate.positions = slot("relative", horizon=last)
    return config
