"""FAR: Long-Context Autoregressive Video Modeling with Next-Frame Prediction (arXiv 2503.19325).

Mechanism:  every frame has a ratio of its own, and is clean with probability 0.1 (stochastic clean context); near frames are seen whole,
            older ones through one memory token for every 4 x 4 cells, with an embedding of its own; the cache keeps of an old frame
            its memory tokens alone.
Not here:   flow matching on continuous latents; encoding the near frames again whenever one becomes old (memory tokens do not depend on
            it here, so a frame is written once); FlexRoPE is --config.sequence.attention.decay, off as in the paper's second version.
Published:  8 near frames of 64 tokens, older ones of 4: 300 frames are 1,680 tokens instead of 19,200. UCF-101 128x128: conditional FVD 99,
            unconditional 280; 256 frames in 104 s (171 s with one cache, 1,341 s without). Clean context: FVD 399 -> 347.
Run:        lumos train --config=configs/recipes/far.py --workdir=far --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=far --prompt="a red circle moves left" --frames=65 --out=far.mp4
Expected:   not measured yet.
Law:        tests/test_ladder.py::test_a_memory_of_every_cell_is_full_attention
Figure:     1,680 tokens for 300 frames (tests/test_ladder.py::test_what_a_frame_costs_does_not_grow_like_the_video)
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "far"
    config.corruption.frames = slot("independent", clean=0.1)
    config.model.memory = (4,)
    config.sequence.attention = slot("ladder", frames=(max(config.sequence.grid[0] // 2, 1),))
    config.generate.cache = slot("ladder", width=config.sequence.grid[0] - 1)  # as many as there were in training
    config.generate.positions = slot("relative", horizon=config.sequence.grid[0] - 1)
    return config
