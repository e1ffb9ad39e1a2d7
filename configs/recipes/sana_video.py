"""SANA-Video: Efficient Video Generation with Block Linear Diffusion Transformer (arXiv 2509.24695).

Mechanism:  linear attention: what layers have seen are sums of constant size in place of a cache, whatever the length of a video; levels
            never fall from frame to frame, so that a clean past stands before noisy frames.
Not here:   Gaussian noise on continuous latents, the temporal convolution in the feed-forward layers, the three stages of training.
Published:  2 B parameters; 480p, 81 frames in 60 s on an H100; VBench 83.7; LongSANA 27 frames a second in 4 steps.
Run:        lumos train --config=configs/recipes/sana_video.py --workdir=sana --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=sana --prompt="a red circle moves left" --out=sana.mp4
Expected:   not measured yet.
Law:        tests/test_linear.py::test_an_endless_video_keeps_its_size_and_all_it_has_seen
Figure:     none yet
"""

from lumos.configs.recipes.ar_diffusion import get_config as ar_diffusion
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = ar_diffusion(variant)
    config.name = "sana-video"
    config.model.mixer = slot("linear")
    config.generate.plan = slot("one_by_one")
    return config
