"""STARFlow-V: End-to-End Video Generative Modeling with Normalizing Flows (arXiv 2511.20462), its decoding and its layers.

Mechanism:  codes follow one another; most layers see their own frame alone and one in four sees all (global-local); generation solves
            a frame's codes in chunks, all codes of a chunk at once from frozen noise, beginning with the codes of the frame before,
            until nothing changes: the codes are those of one by one.
Not here:   the invertible flow on continuous latents, its likelihood and its denoiser; the layers' own order (local ones at the end).
Published:  7 B parameters, 480p at 16 frames a second; chunks of 16 for the first frame and 64 or 128 for later ones, at most 32 iterations.
Run:        lumos train --config=configs/recipes/starflow_v.py --workdir=starflow --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=starflow --prompt="a red circle moves left" --out=starflow.mp4
Expected:   the codes of generation one by one; with a frame at once in 28 % of its passes (moving shapes, docs/results.md).
Law:        tests/test_jacobi.py::test_the_fixed_point_is_what_is_generated_one_by_one
Figure:     docs/results.md
"""

from lumos.configs.recipes.next_token import get_config as next_token
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py; layers come in groups of two."""
    config = next_token(variant)
    config.name = "starflow-v"
    config.sequence.attention = slot("local_global", every=2)
    config.model.num_layers = -(-config.model.num_layers // 2) * 2
    config.generate.sampler = slot("jacobi", chunk=config.sequence.grid[2])
    config.generate.top_p = 1.0
    return config
