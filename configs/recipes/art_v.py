"""ART-V: Auto-Regressive Text-to-Video Generation with Diffusion Models (arXiv 2311.18834).

Mechanism:  a frame is made from the text, the frame before it and the first frame, which stays as an anchor; each code comes from the
            frame before (a gate for each cell nearby) or is made anew; visible codes are wrong at random rates in half of the clips,
            so that small errors of the frame before do not grow. The clean copy of the video is what frames see.
Not here:   the two branches of an image diffusion network and their warp; the same intensity of noise told to the network.
Published:  trained by 4 A100 in 2 weeks; zero-shot FVD on UCF-101 and MSR-VTT in the paper (not checked).
Run:        lumos train --config=configs/recipes/art_v.py --workdir=art_v --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=art_v --prompt="a red circle moves left" --frames=65 --out=art_v.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_art_v_sees_the_first_frame_and_the_one_before
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "art-v"
    config.sequence.copies = 2
    config.sequence.attention = slot("window", width=2, sink=1)
    config.model.head = slot("copy", reach=1)
    config.corruption.level = slot("cosine", floor=0.0)
    config.corruption.frames = slot("independent")
    config.corruption.cells = slot("frame")
    config.corruption.errors = slot("uniform")
    config.generate.cache = slot("window", width=2, sink=1)
    config.generate.history_ratio = 0.0
    return config
