"""Yan: Foundational Interactive Video Generation (arXiv 2508.08601), structure before appearance.

Mechanism:  the codes of a depth map of every frame, which a first model makes from actions (the recipes nfd and game_factory on tokens of
            depth), are the stream of a second one that makes the appearance from them and a text: another text leaves the structure as it
            is.
Not here:   its staggered denoising of frames (recipe rolling_forcing); the global and the local caption in texts of their own; 8-bit
            kernels and a smaller decoder.
Published:  1080p, 50 to 60 frames a second on two GPUs, 0.07 to 0.11 s from key to picture.
Run:        lumos train --config=configs/recipes/yan.py --workdir=yan --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_yan_has_the_structure_of_each_frame_before_it
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "yan"
    frames, height, width = config.sequence.grid
    config.sequence.streams = ((1001, height * width),)
    config.corruption.stream_drop = 0.1
    config.generate.guidance = slot("text_streams")
    return config
