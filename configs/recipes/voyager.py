"""Voyager: Long-Range and World-Consistent Video Diffusion for Explorable 3D Scene Generation (arXiv 2506.04225), its frames.

Mechanism:  a frame has the codes of its depth in rows below those of its colours; both are of one group and see each other. What a world
            cache knows of either is given and kept (generation/engine.py: kept_BTHW).
Not here:   the cache of points and its renders; metric depth; half-overlapping segments (recipe view_stitching).
Published:  RealEstate10K PSNR 18.751, SSIM 0.715; WorldScore 77.62; with depth 74.98 -> 85.04 in camera control.
Run:        lumos train --config=configs/recipes/voyager.py --workdir=voyager --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_voyager_has_depth_below_colour_in_one_group
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "voyager"
    frames, height, width = config.sequence.grid
    config.sequence.grid = (frames, 2 * height, width)
    return config
