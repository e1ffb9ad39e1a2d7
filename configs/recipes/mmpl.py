"""MMPL: Macro-from-Micro Planning for High-Quality and Parallelized Autoregressive Long Video Generation (arXiv 2508.03334).

Mechanism:  anchors are generated first, the frames between them later, each from anchors on both sides: a frame sees those of lower rank,
            and stands at its true time. Training draws an order for each clip, so that any order generates.
Not here:   segments that are worked on by several devices at once; the last anchor of a segment that begins the next one.
Published:  anchors early, in the middle and at the end of a segment; a minute in a third of the time with 4 devices.
Run:        lumos train --config=configs/recipes/mmpl.py --workdir=mmpl --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=mmpl --config.sequence.order=time --config.sequence.layout=ranks --prompt="a red circle moves left" --out=mmpl.mp4
Expected:   not measured yet.
Law:        tests/test_frame_order.py::test_a_later_rank_changes_no_earlier_frame
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "mmpl"
    config.sequence.order = slot("random", share=0.8, first=1)
    return config
