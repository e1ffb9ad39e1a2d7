"""URSA: Uniform Discrete Diffusion with Metric Path for Video Generation (arXiv 2510.24717).

Mechanism:  codes drift to codes of near embeddings and then to any, on a path that the level of each frame sets; all codes have a loss;
            generation begins with random codes and may revise every code in every pass (jumps of a Markov chain).
Not here:   the shift of time with the resolution, and the mixture of tasks by levels of single frames beyond independent ones.
Published:  0.6 and 1.7 B parameters on Cosmos tokens, guidance 7, 25 or 50 passes; VBench 82.4 (1.7 B).
Run:        lumos train --config=configs/recipes/ursa.py --workdir=ursa --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=ursa --prompt="a red circle moves left" --out=ursa.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_ursa_begins_with_random_codes_and_revises_all_of_them
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "ursa"
    config.model.level_embedding = True
    config.corruption.level = slot("uniform")
    config.corruption.frames = slot("independent")
    config.corruption.cells = slot("frame")
    config.corruption.kernel = slot("metric")
    config.loss.weights = slot("all")
    config.generate.sampler = slot("jumps")
    config.generate.guidance = slot("text", scale=7.0)
    config.generate.history_ratio = 0.0
    return config
