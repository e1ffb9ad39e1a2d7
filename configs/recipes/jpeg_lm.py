"""JPEG-LM: LLMs as Image Generators with Canonical Codec Representations (arXiv 2408.08459), and its AVC-LM.

Mechanism:  the bytes of a file are one row of tokens with positions in one dimension, and a plain next-token model writes them.
Not here:   the codec and the byte-pair encoding: token folders hold bytes or pairs (lumos/findings/jpeg_world.py writes such
            folders); files of different lengths end in zeros.
Published:  7 B parameters, JPEG of quality 25, 320 tokens of byte pairs, sequences of 12,000; nearly all files are valid.
Run:        lumos train --config=configs/recipes/jpeg_lm.py --workdir=jpeg_lm --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=jpeg_lm --prompt="a red circle moves left" --out=jpeg_lm.mp4
Expected:   not measured yet.
Law:        tests/test_findings_recipes.py::test_jpeg_lm_is_next_token_over_one_row_of_bytes
Figure:     docs/findings.md
"""

from lumos.configs.recipes.next_token import get_config as next_token


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = next_token(variant)
    config.name = "jpeg-lm"
    config.model.rope = "1d"
    config.sequence.grid = (1, 1, 48 if variant.endswith("smoke") else 1024)
    return config
