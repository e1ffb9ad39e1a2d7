"""Genie: Generative Interactive Environments (arXiv 2402.15391); the same method: Jasmine, the 1X world model challenge.

Mechanism:  layers see their own frame, then the same cell in earlier frames (ST-transformer); codes of 2^18 are predicted as two digits of
            512; a clean prefix of random length stands before frames of rising ratios; visible codes are wrong at rates of U(0, 0.2)
            in all clips (1X), so that errors of generated frames are no surprise. Latent actions: the variant "actions" learns them from the
            tokens, `lumos data label` writes them into shards, and they stand before their frames (--config.sequence.streams="((9, 1),)").
            --config.actions.weight=1 beside that trains both in the same steps.
Not here:   latent actions of pixels, and by attention (convolutions over tokens instead); actions are added to embeddings in Genie
            (--config.model.streams=added), here and in Jasmine they are tokens; the half of 1X's clips in which all frames but the first are hidden alike; its two passes a frame are
            --config.generate.steps=2. Set model.head.sizes to factors of your codebook.
Published:  1X leaderboard: GENIE_138M cross-entropy 8.79, accuracy 0.032, LPIPS 0.207, 0.075 s a frame; 35M 8.99.
Run:        lumos train --config=configs/recipes/genie.py --workdir=genie --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=genie --prompt="a red circle moves left" --out=genie.mp4
Expected:   docs/results.md ("Latent actions on VizDoom") for the variant "actions"; the rest is not measured yet.
Law:        tests/test_recipes.py::test_genie_attends_in_space_and_time_and_sees_some_wrong_codes
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py, the smoke variant has two layers and 30 codes; "actions", "actions,smoke"."""
    if variant.startswith("actions"):
        return _actions(small(variant.replace("actions", "5m")))
    config = small(variant)
    config.name = "genie"
    config.sequence.attention = slot("space_time")
    config.model.num_layers = max(config.model.num_layers, 2)
    config.model.head = slot("digits", sizes=(5, 6) if variant.endswith("smoke") else (25, 40))
    config.corruption.level = slot("cosine", floor=0.0)
    config.corruption.frames = slot("clean_prefix")
    config.corruption.cells = slot("frame")
    config.corruption.errors = slot("uniform", clean=0.0, most=0.2)
    config.generate.history_ratio = 0.0
    return config


def _actions(config):
    """The latent action model, with the eight codes of Genie and the optimizer of a small run."""
    config.task, config.name = "actions", "genie actions"
    config.sequence.grid, config.train.num_steps = (0, 0, 0), min(config.train.num_steps, 3000)
    config.optimizer.warmup_steps, config.optimizer.ema_decay = 50, 0.0
    config.train.num_samples = 0
    return config
