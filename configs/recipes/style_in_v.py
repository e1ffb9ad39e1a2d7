"""StyleInV: A Temporal Style Modulated Inversion Network for Unconditional Video Generation (arXiv 2308.16909), its access to any frame.

Mechanism:  the first frame is the anchor; any other one is made from it and from those that are there, at its own time, in any order: a
            frame can be asked for without those before it.
Not here:   the generator of images and the inversion network, which are adversarial.
Published:  no figures that could be checked.
Run:        lumos train --config=configs/recipes/style_in_v.py --workdir=style_in_v --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_style_in_v_makes_any_frame_from_the_anchor
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "style in v"
    config.sequence.order = slot("random", share=1.0, first=1)
    config.corruption.frames = slot("clean_prefix")
    return config
