"""NOVA: Autoregressive Video Generation without Vector Quantization (arXiv 2412.14169).

Mechanism:  frames are causal; inside of a frame sets of cells are generated in random order; training ratios follow a normal
            distribution around 1, cut at 0.7, for every frame; a small network carries noise to the value of a cell, given its hidden
            state.
Not here:   continuous latents (the head predicts the points of FSQ codes, which cells then have); separate temporal and spatial
            networks; the motion score and the scale and shift of the temporal output.
Published:  0.6 B parameters, 64 sets a frame, 100 denoising steps; VBench 80.1, GenEval 0.75.
Run:        lumos train --config=configs/recipes/nova.py --workdir=nova --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=nova --prompt="a red circle moves left" --out=nova.mp4
Expected:   not measured yet. "nll" is the squared error of the network.
Law:        tests/test_recipes.py::test_nova_hides_most_of_each_frame_and_draws_points
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py; the smoke variant has 30 codes."""
    config = small(variant)
    config.name = "nova"
    config.model.head = slot("flow", levels=(5, 2, 3) if variant.endswith("smoke") else (8, 5, 5, 5))
    config.corruption.level = slot("normal")
    config.corruption.frames = slot("independent")
    config.corruption.cells = slot("frame")
    config.generate.sampler = slot("random")
    config.generate.history_ratio = 0.0
    return config
