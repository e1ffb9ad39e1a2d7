"""SEE4D: Pose-Free 4D Generation via Auto-Regressive Video Inpainting (arXiv 2510.26796), its inpainting.

Mechanism:  cells that are known (what a warp of the source fills) are kept as they are, the others are generated around them: training
            hides any share of any cells of every frame, generation keeps what it is given (generation/engine.py: kept_BTHW).
Not here:   depth, warps and cameras, which the user brings; noise on the warped image.
Published:  no figures that could be checked.
Run:        lumos train --config=configs/recipes/see4d.py --workdir=see4d --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=see4d --prompt="a red circle moves left" --frames=17 --out=see4d.mp4
Expected:   not measured yet.
Law:        tests/test_kept.py::test_single_cells_are_kept
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "see4d"
    config.sequence.layout = slot("compact", block=(0, 0, 0))
    config.sequence.attention = slot("full")
    return config
