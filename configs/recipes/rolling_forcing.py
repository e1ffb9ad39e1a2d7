"""Rolling Forcing: Autoregressive Long Video Diffusion in Real Time (arXiv 2509.25161).

Mechanism:  a window of frames at rising levels is worked on in every pass, its frames see each other both ways, the first leaves finished
            and a hidden one joins; drawn codes may be hidden again, so later frames still correct earlier ones; the first frame stays in
            the cache and stands directly before the recent ones.
Not here:   distillation on the model's own rollouts from a teacher that sees both ways (configs/recipes/long_live.py has the causal one);
            Gaussian noise. Training hides as much or more of each later frame and attends causally, so the view both ways inside of a
            window is untrained.
Published:  5 levels, blocks of 3 latent frames, context of 3 sink, 3 recent and 15 frames in flight; 15.8 frames a second. Drift of quality
            over 30 s 0.01 (Self Forcing 1.66), without the rolling window 5.5, without the sink 4.6.
Run:        lumos train --config=configs/recipes/rolling_forcing.py --workdir=rolling_forcing --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=rolling_forcing --prompt="a red circle moves left" --frames=401 --out=rolling_forcing.mp4
Expected:   not measured yet.
Law:        tests/test_rolling.py::test_a_window_is_what_recomputing_gives
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "rolling forcing"
    config.corruption.frames = slot("non_decreasing")
    config.generate.plan = slot("rolling", window=2)
    config.generate.sampler = slot("confidence", eta=0.5)
    config.generate.cache = slot("window", width=config.sequence.grid[0] - 1, sink=1)
    config.generate.positions = slot("realigned")
    return config
