"""GenDoP: Auto-regressive Camera Trajectory Generation as a Director of Photography (arXiv 2504.07083).

Mechanism:  a trajectory is a sequence of poses of ten numbers in 256 bins of equal width, generated token by token from the text; a bin
            read back is wrong by half its width at most (data.streams with low and high). The same tokens beside a video are its cameras:
            sequence.streams=((257, 10),).
Not here:   CLIP's text and depth as conditions; the data set. A folder of tokens holds poses in the place of cells, [30, 1, 10].
Published:  30 poses, 10 tokens each, 256 bins.
Run:        lumos train --config=configs/recipes/gendop.py --workdir=gendop --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_gendop_reads_poses_back_within_half_a_bin
Figure:     none yet
"""

from lumos.configs.recipes.next_token import get_config as next_token


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = next_token(variant)
    config.name = "gendop"
    config.sequence.grid = (3 if variant.endswith("smoke") else 30, 1, 10)
    config.model.visual_vocab = 256
    return config
