"""DAWN: Dynamic Frame Avatar with Non-autoregressive Diffusion Framework for Talking Head Video Generation (arXiv 2410.13726).

Mechanism:  all frames are generated together and see one another, with the sound and the pose of every frame as streams.
Not here:   the flow of the renderer; the network that makes poses and blinks; the local attention by which it goes beyond the trained
            length.
Published:  no figures that could be checked.
Run:        lumos train --config=configs/recipes/dawn.py --workdir=dawn --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_dawn_makes_all_frames_at_once_and_sees_the_sound_of_all
Figure:     docs/findings.md (all frames at once, without the streams)
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "dawn"
    config.sequence.layout = slot("compact", block=(0, 0, 0))
    config.sequence.attention = slot("full")
    config.sequence.streams = ((129, 4), (33, 1))  # sound, pose
    config.generate.guidance = slot("none")
    return config
