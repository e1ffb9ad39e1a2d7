"""MAGVIT: Masked Generative Video Transformer (arXiv 2212.05199), on the masks and the sampler of MaskGIT (arXiv 2202.04200).

Mechanism:  the whole video is one stage with full attention; one cosine ratio without a floor, drawn over all cells of the clip; every
            pass of generation keeps the most probable codes of the whole clip.
Not here:   the tasks other than text to video (--config.corruption.given=segments, with --config.loss.weights=commit for the three parts
            of COMMIT's loss; a causal tokenizer gives the codes of given frames as they are, so these stand for themselves). Text sees
            text alone, so that it is computed once; in the paper the class token sees the video.
Published:  12 passes, temperature 4.5, label smoothing 1e-4; UCF-101 FVD 159 (B) and 76 (L), BAIR 62, K600 9.9.
Run:        lumos train --config=configs/recipes/maskgit.py --workdir=maskgit --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=maskgit --prompt="a red circle moves left" --out=maskgit.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_maskgit_is_one_stage_in_which_cells_see_everything
Figure:     none yet
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "maskgit"
    config.sequence.layout = slot("compact", block=(0, 0, 0))
    config.sequence.attention = slot("full")
    config.corruption.level = slot("cosine", floor=0.0)
    config.corruption.cells = slot("clip")
    config.loss.label_smoothing = 1e-4
    config.generate.sampler = slot("confidence", temperature=4.5)
    config.generate.history_ratio = 0.0
    return config
