"""SpeakerVid-5M: A Large-Scale High-Quality Dataset for Audio-Visual Dyadic Interactive Human Generation (arXiv 2507.09862), its baseline.

Mechanism:  two people speak: the sound of each is a stream of its own before every frame. Clips are chosen by columns of the manifest that
            say how well sound and picture belong together (lumos data index --keep, lumos data filter --where).
Not here:   the data set, who speaks when, and the scores of synchrony; generating the sound of the answer; three stages of training.
Published:  5.2M clips, 8,743 hours; 571K of them of high quality, 1,368 hours.
Run:        lumos train --config=configs/recipes/speaker_vid.py --workdir=speaker_vid --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_speaker_vid_hears_two_people
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "speaker vid"
    config.sequence.streams = ((1025, 5), (1025, 5))
    config.corruption.stream_drop = 0.1
    config.generate.guidance = slot("text_streams")
    return config
