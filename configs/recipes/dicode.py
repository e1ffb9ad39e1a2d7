"""DiCoDe: Diffusion-Compressed Deep Tokens for Autoregressive Video Generation with Language Models (arXiv 2412.04446).

Mechanism:  a latent frame is a few deep tokens, and a language model predicts the next one as a point: a mixture of normal distributions.
Not here:   the diffusion model that turns deep tokens into clips, and the image encoder that makes them; tokens without a code.
Published:  GPT-2 of 100 M to Llama of 3 B parameters, about 1,000 times fewer tokens than a VAE has.
Run:        lumos train --config=configs/recipes/dicode.py --workdir=dicode --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=dicode --prompt="a red circle moves left" --out=dicode.mp4
Expected:   not measured yet.
Law:        tests/test_findings_recipes.py::test_dicode_predicts_the_next_of_few_points
Figure:     docs/findings.md
"""

from lumos.configs.recipes.next_token import get_config as next_token
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py; the smoke variant has 30 codes."""
    config = next_token(variant)
    config.name = "dicode"
    is_smoke = variant.endswith("smoke")
    config.sequence.grid = (config.sequence.grid[0], 1, 4 if is_smoke else 16)
    config.model.head = slot("mixture", levels=(5, 2, 3) if is_smoke else (8, 5, 5, 5))
    return config
