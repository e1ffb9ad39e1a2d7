"""Axial Attention in Multidimensional Transformers (arXiv 1912.12180).

Mechanism:  layers attend along time, rows and columns in turn, so that a layer costs N * (T + H + W) pairs instead of N * N.
Not here:   the outer and inner decoders that order pixels inside of a frame (hidden codes of a frame are unmasked together); layers
            come in threes.
Published:  ImageNet 32 3.76 and ImageNet 64 3.44 bits a dimension; BAIR video 1.29 (not checked).
Run:        lumos train --config=configs/recipes/axial.py --workdir=axial --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=axial --prompt="a red circle moves left" --out=axial.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_axial_layers_see_the_three_lines_through_a_cell
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py; the smoke variant has three layers."""
    config = small(variant)
    config.name = "axial"
    config.sequence.attention = slot("axial_turns")
    config.model.num_layers = -(-config.model.num_layers // 3) * 3
    return config
