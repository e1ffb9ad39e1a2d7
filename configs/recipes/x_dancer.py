"""X-Dancer: Expressive Music to Human Dance Video Generation (arXiv 2502.17414), its transformer.

Mechanism:  a frame of motion is five codes, one for each part of the body, and the music of the frame stands before them; all frames before
            are seen.
Not here:   the order of parts inside of a frame, which its GPT generates one by one (here a frame is one group; the layout 'parts' has the
            order, but no streams); confidence of parts; the image decoder.
Published:  five codebooks; 64 frames, 2,224 tokens.
Run:        lumos train --config=configs/recipes/x_dancer.py --workdir=x_dancer --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_x_dancer_has_a_code_for_each_part_of_the_body
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "x dancer"
    config.sequence.grid = (config.sequence.grid[0], 1, 5)
    config.sequence.streams = ((129, 2),)
    config.generate.guidance = slot("none")
    return config
