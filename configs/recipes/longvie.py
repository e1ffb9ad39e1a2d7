"""LongVie: Multimodal-Guided Controllable Ultra-Long Video Generation (arXiv 2508.03694).

Mechanism:  two controls of every frame are streams: a dense one, a depth map through the same tokenizer (a token for every cell), and a
            sparse one, tracked points in bins. Clips of a long video have the same noise. Both controls are lost in a share of the clips.
Not here:   control branches copied from layers; losing the dense control alone, and blurring it; normalisation of depth over the whole
            video, which is up to who makes the maps.
Published:  100 videos of a minute: SSIM 0.557, LPIPS 0.290; without equal noise 0.49 less subject consistency.
Run:        lumos train --config=configs/recipes/longvie.py --workdir=longvie --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_longvie_has_dense_and_sparse_controls_and_equal_noise
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "longvie"
    frames, height, width = config.sequence.grid
    config.sequence.streams = ((1001, height * width), (65, 16))
    config.corruption.stream_drop = 0.15
    config.generate.noise = slot("repeated", frames=frames)
    config.generate.guidance = slot("text_streams")
    return config
