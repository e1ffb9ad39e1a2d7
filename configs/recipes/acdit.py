"""ACDiT: Interpolating Autoregressive Conditional Modeling and Diffusion Transformer (arXiv 2412.07720).

Mechanism:  the sequence holds a clean copy of the video and a noisy one with the same positions; a noisy frame sees the clean frames
            before it and itself, so its history is clean in training as in generation; ratios are uniform and independent, and
            hidden codes weigh 1 / ratio: the loss bounds the negative log-likelihood.
Not here:   Gaussian noise on continuous latents and adaptive norms (the ratio is added to the input); blocks of several frames
            would be --config.sequence.layout.block="(4, 0, 0)".
Published:  132 to 954 M parameters; UCF-101 FVD 111 (XL) and 90 (H), blocks of 4 frames, guidance 2.5. Text perplexity bounds by block:
            8 tokens 21.6, 128 22.8, 256 23.0; one by one 17.5.
Run:        lumos train --config=configs/recipes/acdit.py --workdir=acdit --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=acdit --prompt="a red circle moves left" --out=acdit.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_acdit_sees_clean_earlier_frames_and_nothing_of_its_targets
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "acdit"
    config.sequence.copies = 2
    config.corruption.level = slot("counts")
    config.loss.weights = slot("bound")
    config.generate.guidance = slot("text", scale=2.5)
    return config
