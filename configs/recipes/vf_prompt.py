"""VF prompt: Autoregressive Image Generation with Vision Full-view Prompt (arXiv 2502.16965).

Mechanism:  the first frame of the sequence is a picture of the same class, given in training as in generation and without a loss; the
            others are generated behind it.
Not here:   next-token generation; several pictures. Random codes in its place are the paper's universal prompt: it is the data that put
            one or the other in the first frame.
Published:  about 20 % lower FID.
Run:        lumos train --config=configs/recipes/vf_prompt.py --workdir=vf_prompt --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=vf_prompt --prompt="a red circle moves left" --image=picture.png --out=vf_prompt.mp4
Expected:   not measured yet.
Law:        tests/test_findings_recipes.py::test_vf_prompt_gives_the_first_frame
Figure:     docs/findings.md
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "vf prompt"
    config.corruption.given = slot("tasks", frames=((0,),))
    return config
