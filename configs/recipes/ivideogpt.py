"""iVideoGPT: Interactive VideoGPTs are Scalable World Models (arXiv 2405.15223), its actions.

Mechanism:  a linear map of the action, zero at the start, is added to the embeddings of the codes of its frame: a model of videos without
            actions becomes one with them by --init_from and --fresh=stream_embed.
Not here:   fewer tokens in later frames, which its tokenizer codes given the first ones; next tokens inside of a frame (hidden codes
            together); the head of rewards (lumos.worlds.readers.Rewards reads them off the frames).
Published:  BAIR 64x64, FVD: 75.0 without actions, 60.8 with (MaskViT 93.7, 70.5); RoboNet 64x64 63.2.
Run:        lumos train --config=configs/recipes/ivideogpt.py --workdir=ivideogpt --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_actions_of_ivideogpt_change_nothing_at_the_start
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "ivideogpt"
    config.sequence.streams = ((65, 4),)  # an action of four numbers in 64 bins
    config.model.streams = slot("added")
    config.generate.guidance = slot("none")
    return config
