"""VMAS: Video-to-Music Generation via Semantic Alignment in Web Music Videos (arXiv 2409.07450).

Mechanism:  the other direction: what is generated are the codes of the sound, a row for each frame, and the codes of the video are the
            stream that comes with them.
Not here:   the audio codec, whose tokens the user brings; the losses of contrast and of beats (lumos/evaluation/sound.py measures both
            instead); a video encoder that was trained before.
Published:  no figures that could be checked.
Run:        lumos train --config=configs/recipes/vmas.py --workdir=vmas --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_vmas_generates_sound_from_frames
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "vmas"
    frames, height, width = config.sequence.grid
    config.sequence.streams = ((1001, height * width),)  # the codes of the video's tokenizer, and null
    config.sequence.grid = (frames, 1, 8)
    config.generate.guidance = slot("none")
    return config
