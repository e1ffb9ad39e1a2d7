"""Infinity-RoPE: Action-Controllable Infinite Video Generation Emerges From Autoregressive Self-Rollout (arXiv 2511.20649).

Mechanism:  no training: the first frame stays in the cache (the sink) beside the newest ones, and times are counted so that the new
            frame stands at most at the trained horizon; new prompts flush the cache and scene cuts jump in time (generation/session.py:
            switch(how="flush"), cut).
Not here:   the distilled four-step diffusion model it was shown on; blocks of three frames.
Published:  six cached frames with one sink, horizon 21, as long as the clips in training; VBench of 5 s 0.838, of 240 s 0.831; 17.0 frames a
            second, as without.
Run:        lumos train --config=configs/recipes/infinity_rope.py --workdir=infinity --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=infinity --prompt="a red circle moves left" --frames=401 --out=infinity.mp4
            With a finished run of configs/recipes/lumos1.py: lumos generate --workdir=lumos1 --config.generate.cache=window
            --config.generate.cache.width=4 --config.generate.positions=relative --config.generate.positions.horizon=4 ...
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_infinity_rope_keeps_the_first_frame_and_times_inside_the_trained_range
Figure:     none yet
"""

from lumos.configs.recipes.lumos1 import get_config as lumos1
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = lumos1(variant)
    config.name = "infinity rope"
    last = config.sequence.grid[0] - 1  # the last frame of a clip in training, and how many it saw
    config.generate.cache = slot("window", width=last, sink=1)
    config.generate.positions = slot("relative", horizon=last)
    return config
