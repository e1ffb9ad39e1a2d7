"""NFD: Playing with Transformer at 30+ FPS via Next-Frame Diffusion (arXiv 2506.01380).

Mechanism:  frames are made in a few passes, each of all cells at once, with the action by scales and shifts of every layer; every frame has
            a level of its own. The next frame is made as if the key stayed, and taken back where it did not (generation/draft.py, lumos
            play --speculate): frames are the same, bit for bit.
Not here:   flow matching of continuous latents and its consistency distillation; two passes of masked sampling take its place.
Published:  A100, one viewer: 310M FVD 212 at 6.15 frames a second, distilled 227 at 31.14; speculation up to 1.26x, cache up to 1.33x.
Run:        lumos train --config=configs/recipes/nfd.py --workdir=nfd --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos play --workdir=nfd --speculate
Expected:   not measured yet.
Law:        tests/test_worlds.py::test_speculation_changes_no_frame
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "nfd"
    config.sequence.streams = ((7, 1),)
    config.model.streams = slot("adaln")
    config.generate.steps = 2
    config.generate.guidance = slot("none")
    config.generate.cache = slot("fifo", width=config.sequence.grid[0] - 1)
    config.generate.positions = slot("relative", horizon=config.sequence.grid[0] - 1)
    return config
