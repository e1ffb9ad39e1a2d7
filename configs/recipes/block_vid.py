"""BlockVid: Block Diffusion for High-Quality and Consistent Minute-Long Video Generation (arXiv 2511.22973).

Mechanism:  more frames are remembered than seen: beside the first and the newest ones, each frame brings back those of the older frames
            that are most like the newest, until their mass is reached; long videos are measured by how far each tenth is from the first
            (lumos evaluate --what=long, VDE).
Not here:   keys by the prompt of a chunk (keys of frames here), single salient tokens of a frame (configs/recipes/deep_forcing.py has
            them), a loss against the retrieved frames, noise that grows over the chunks.
Published:  mass 0.97 or 0.98; VDE of the subject 22 % and of clarity 19 % better than the best of the others.
Run:        lumos train --config=configs/recipes/block_vid.py --workdir=block_vid --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=block_vid --prompt="a red circle moves left" --frames=401 --out=block_vid.mp4
Expected:   not measured yet.
Law:        tests/test_cache_policies.py::test_the_likest_frames_are_brought_back
Figure:     none yet
"""

from lumos.configs.recipes.lumos1 import get_config as lumos1
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = lumos1(variant)
    config.name = "block vid"
    config.generate.cache = slot(
        "retrieve", width=16, sink=0, recent=1, most=max(config.sequence.grid[0] - 2, 1), mass=0.97
    )
    config.generate.positions = slot("realigned")
    return config
