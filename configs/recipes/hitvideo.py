"""HiTVideo: Hierarchical Tokenizers for Enhancing Text-to-Video Generation with Autoregressive LLMs (arXiv 2503.11513).

Mechanism:  every cell has codes of several layers, a coarse one for an area and finer ones inside of it; of each frame the layers are
            generated coarse to fine, all codes of a layer together, each from clean coarser ones.
Not here:   next-token generation inside of a layer; the paper's tokenizer and sizes (train one with composition "layers":
            lumos train --config=configs/tokenizer_sizes.py --config.tokenizer.composition=layers --config.tokenizer.parts=2).
Published:  70 % fewer bits a pixel than flat tokens at similar quality.
Run:        lumos train --config=configs/recipes/hitvideo.py --workdir=hitvideo --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=hitvideo --prompt="a red circle moves left" --out=hitvideo.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_hitvideo_generates_coarse_layers_before_fine_ones
Figure:     none yet
"""

from lumos.configs.recipes.acdit import get_config as acdit
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = acdit(variant)
    config.name = "hitvideo"
    config.tokenizer.composition = "layers"
    config.tokenizer.parts = 2
    config.sequence.layout = slot("layers", num=2)
    config.sequence.grid = (3, 2, 10) if variant.endswith("smoke") else (5, 4, 20)
    return config
