"""ViD-GPT: Introducing GPT-style Autoregressive Generation in Video Diffusion Models (arXiv 2406.10981).

Mechanism:  frame-causal; a clean prefix of random length stands before frames that share one ratio, so that finished frames can be
            kept in a cache for all passes; the oldest leave it (a queue), and videos go on at constant memory.
Not here:   Gaussian noise; separate attention over space and time (they are one here); chunks of frames that are generated together
            (frame by frame instead: a bounded cache takes groups that are parts of single frames).
Published:  no token settings; the released code is a stub, and Ca2-VDM (configs/recipes/ca2_vdm.py) has the numbers.
Run:        lumos train --config=configs/recipes/vid_gpt.py --workdir=vid_gpt --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=vid_gpt --prompt="a red circle moves left" --frames=65 --out=vid_gpt.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_vid_gpt_trains_on_clean_prefixes_and_keeps_as_many_frames
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "vid gpt"
    config.corruption.frames = slot("clean_prefix", rising=False)
    config.generate.cache = slot("fifo", width=config.sequence.grid[0] - 1)  # as many as there were in training
    return config
