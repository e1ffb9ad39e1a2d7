"""DAWN: Dynamic Frame Avatar with Non-autoregressive Diffusion Framework for Talking Head Video Generation (arXiv 2410.13726), its order.

Mechanism:  all frames are made at once, from the text and a first frame that is given in half of the clips: what is wrong in one frame is
            not history of the next.
Not here:   audio and pose for every frame (streams of actions are, config.sequence.streams), flow of latents and its renderer, attention
            that is local in time for longer clips.
Published:  talking heads; errors do not add up over frames (no figure that could be checked).
Run:        lumos train --config=configs/recipes/dawn.py --workdir=dawn --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=dawn --prompt="a red circle moves left" --out=dawn.mp4
Expected:   not measured yet.
Law:        tests/test_findings_recipes.py::test_dawn_makes_all_frames_in_the_same_passes
Figure:     docs/findings.md
"""

from lumos.configs.recipes.maskgit import get_config as maskgit
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = maskgit(variant)
    config.name = "dawn"
    config.corruption.given = slot("tasks", frames=((), (0,)))
    return config
