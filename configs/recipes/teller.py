"""Teller: Real-Time Streaming Audio-Driven Portrait Animation (arXiv 2503.18429); the same method: X-Actor.

Mechanism:  each chunk of audio has its tokens before the motion tokens of its frames; levels are independent (X-Actor), and old frames
            leave through a window, so that it goes on without end.
Not here:   the renderer of the face and the refinement of its motion; Whisper and the codec of motion, whose tokens the user brings;
            continuous latents (X-Actor).
Published:  4 frames are 32 tokens, 200 ms of audio a chunk; 25 frames a second, 0.92 s for a second of video.
Run:        lumos train --config=configs/recipes/teller.py --workdir=teller --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_teller_hears_its_chunk_and_those_before
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "teller"
    config.sequence.grid = (config.sequence.grid[0], 1, 8 if variant.endswith("smoke") else 32)
    config.sequence.streams = ((1025, 5),)
    config.generate.guidance = slot("none")
    config.generate.cache = slot("fifo", width=config.sequence.grid[0] - 1)
    config.generate.positions = slot("relative", horizon=config.sequence.grid[0] - 1)
    return config
