"""Epona: Autoregressive Diffusion World Model for Autonomous Driving (arXiv 2506.24113), its chain of forward passes.

Mechanism:  every tenth step passes the model's own one-pass predictions on as history, twice, before the pass with the loss: training sees
            the drift of generation. Space and time are attended to in turns.
Not here:   the trajectory head and the two diffusion heads (codes have one head); the tokens of a trajectory, which as
            streams are given and not generated (--config.sequence.streams="((129, 2), (513, 1))").
Published:  3 chained passes every 10 steps; 10 frames of history; FVD over 40 frames 103.7 with 2 frames of history, 74.9 with 10; 120 s,
            600 frames.
Run:        lumos train --config=configs/recipes/epona.py --workdir=epona --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=epona --prompt="a red circle moves left" --frames=401 --out=epona.mp4
Expected:   not measured yet.
Law:        tests/test_history_errors.py::test_own_predictions_are_chained_and_stand_where_they_were_made
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "epona"
    last = config.sequence.grid[0] - 1
    config.model.num_layers += config.model.num_layers % 2  # space and time take turns
    config.sequence.attention = slot("space_time")
    config.corruption.errors = slot("own", clean=0.0, least=1.0, most=1.0, links=3, every=10)
    config.generate.cache = slot("fifo", width=last)
    config.generate.positions = slot("relative", horizon=last)
    return config
