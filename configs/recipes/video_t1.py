"""Video-T1: Test-Time Scaling for Video Generation (arXiv 2503.18942).

Mechanism:  several first frames are generated, each goes on for some frames, and then the best of them alone: a tree that is pruned
            early costs a fraction of as many whole videos. The score is how much more probable the text made the codes.
Not here:   scorers that look (any function of the codes can be one: --config.generate.search.score=module:function), branches inside
            of a frame, and prompts that change from stage to stage.
Published:  VBench of NOVA 78.6 to 79.8, of Pyramid-Flow-FLUX 81.6 to 86.5; a tree takes a third of the operations of best of N.
Run:        lumos train --config=configs/recipes/video_t1.py --workdir=t1 --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=t1 --prompt="a red circle moves left" --out=t1.mp4
Expected:   the best of 2 or 4 follows prompts of moving shapes no better than the first clip (docs/results.md); trees not measured yet.
Law:        tests/test_search.py::test_what_a_tree_costs
Figure:     docs/results.md
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "video-t1"
    config.generate.search = slot("tree", branches=(5,), prune=(2,), score="text_ratio")
    return config
