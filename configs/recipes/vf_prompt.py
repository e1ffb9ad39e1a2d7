"""VF prompt: a prefix of full-view tokens (arXiv 2502.16965).

Mechanism:  an example stands before what is generated: the first latent frame of a clip of tokens is that of another video of the same
            class (or of any codes, the universal prompt), it is given in training and generation, and has no loss.
Not here:   class labels (captions instead); putting examples before clips, which is up to who writes the tokens.
Published:  about 20 % lower FID with examples of the class.
Run:        lumos train --config=configs/recipes/vf_prompt.py --workdir=vf_prompt --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
Expected:   not measured yet.
Law:        tests/test_stream_recipes.py::test_vf_prompt_has_an_example_without_loss_that_all_see
Figure:     docs/findings.md ("exemplar")
"""

from lumos.configs.transformer_small import get_config as small
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = small(variant)
    config.name = "vf prompt"
    config.corruption.given = slot("tasks", frames=((0,),))
    return config
