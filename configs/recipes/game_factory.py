"""GameFactory: Creating New Games with Generative Interactive Videos (arXiv 2501.08325), its action control.

Mechanism:  a latent frame comes with the window of the newest eight rows of its actions, so that effects may be late (data.streams:
            rows=8); they scale and shift every layer; a clean prefix of random length, and a loss on what follows alone; guidance on
            actions.
Not here:   the mouse as a continuous value (bins instead) and keys by cross-attention; adapters for the style of a game, and training in
            phases; an open-domain base model.
Published:  loss on predicted frames alone: flow 85.45 against 148.73, FVD 1154 against 1592; multi-phase training: FID 121 against 168;
            more than 300 frames.
Run:        lumos train --config=configs/recipes/game_factory.py --workdir=game_factory --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_game_factory_has_a_window_of_actions_and_no_loss_on_clean_frames
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "game factory"
    config.sequence.streams = ((7, 8),)  # six keys and null; eight rows a latent frame
    config.model.streams = slot("adaln")
    config.corruption.frames = slot("clean_prefix")
    config.corruption.stream_drop = 0.1
    config.generate.guidance = slot("text_streams")
    config.generate.cache = slot("fifo", width=config.sequence.grid[0] - 1)
    config.generate.positions = slot("relative", horizon=config.sequence.grid[0] - 1)
    return config
