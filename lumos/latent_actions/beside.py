"""A transformer with the latent action model that is trained in the same steps: one tree of parameters."""

from __future__ import annotations

from lumos.config import Config
from lumos.latent_actions.model import LatentActions
from lumos.model.definition import Definition
from lumos.model.transformer import Transformer
from lumos.sequence.vocabulary import Vocabulary

PART = "latent_actions"  # its subtree; the others are those of the transformer alone


def make_definition(config: Config, vocabulary: Vocabulary) -> Definition:
    """Describe the transformer for a vocabulary, with the latent action model as its attribute `latent_actions`."""

    def make(rngs):
        model = Transformer(config.model, vocabulary, rngs)
        setattr(model, PART, LatentActions(config.actions, config.model.visual_vocab, rngs))
        return model

    return Definition(make)
