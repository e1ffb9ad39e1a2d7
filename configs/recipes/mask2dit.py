"""Mask2DiT: Dual Mask-based Diffusion Transformer for Multi-Scene Long Video Generation (arXiv 2503.19881).

Mechanism:  scenes have prompts of their own: a scene reads its own text, and the video of the scenes before it; half of the clips give all
            scenes but the last, which alone has a loss.
Not here:   attention in both directions between scenes (causal here, so that scenes can follow one another); one decoding for each scene.
Published:  3 scenes with 226 text tokens each, guidance 6; the last scene alone is predicted with probability 0.5.
Run:        lumos train --config=configs/recipes/mask2dit.py --workdir=mask2dit --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=mask2dit --prompt="a red circle moves left" --out=mask2dit.mp4
Expected:   not measured yet.
Law:        tests/test_gates.py::test_a_prompt_changes_its_own_scene_and_later_ones_alone
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "mask2dit"
    frames = config.sequence.grid[0]
    first = -(-frames // 2)  # latent frames of the first scene; the second has the rest
    config.sequence.attention = slot("scenes", text=config.sequence.text_length // 2, frames=first)
    config.corruption.given = slot("tasks", frames=((), tuple(range(first))))
    return config
