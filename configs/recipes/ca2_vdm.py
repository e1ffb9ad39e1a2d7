"""Ca2-VDM: Efficient Autoregressive Video Diffusion Model with Causal Generation and Cache Sharing (arXiv 2411.16375).

Mechanism:  ViD-GPT's clean prefix and queue; temporal positions are cyclic with the length of training clips, so that they never leave
            the trained range; keys of finished frames are computed once and serve all passes.
Not here:   a random phase of the positions in training (positions are a choice of generation alone, so a frame that stands before its
            past was never seen in training: compare --config.generate.positions=relative); slight noise on the prefix; chunks; prefix
            frames in spatial attention, which one joint attention includes.
Published:  period 33, queue of 25 or 41 latent frames, prefixes in steps of 8 frames; UCF-101 FVD 184.5; 80 frames of 256x256 in 52.1 s on
            one A100 (130.1 s with a growing context that is computed again); cache 0.86 GB.
Run:        lumos train --config=configs/recipes/ca2_vdm.py --workdir=ca2 --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=ca2 --prompt="a red circle moves left" --frames=65 --out=ca2.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_ca2_vdm_gives_every_frame_that_is_seen_a_trained_place_of_its_own
Figure:     none yet
"""

from lumos.configs.recipes.vid_gpt import get_config as vid_gpt
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = vid_gpt(variant)
    config.name = "ca2 vdm"
    config.generate.positions = slot("cyclic", period=config.sequence.grid[0])
    return config
