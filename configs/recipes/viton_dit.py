"""VITON-DiT: Learning In-the-Wild Video Try-On from Human Dance Videos via Diffusion Transformers (arXiv 2405.18326), its long videos.

Mechanism:  key frames first, then those in the gaps, each from frames on both sides, and the pose of every frame before it. Training draws
            an order for each clip, in which poses go with their frames; generation takes the layout 'ranks'.
Not here:   the garment and its encoder; pose by a control network (streams instead).
Published:  no figures that could be checked.
Run:        lumos train --config=configs/recipes/viton_dit.py --workdir=viton_dit --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_viton_dit_makes_key_frames_before_gaps_with_their_poses
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "viton dit"
    config.sequence.order = slot("random", share=0.8, first=1)
    config.sequence.streams = ((65, 8),)
    config.generate.guidance = slot("none")
    return config
