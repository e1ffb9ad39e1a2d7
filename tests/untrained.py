"""A model and a tokenizer that were not trained, for tests of what streams do: frames of 32 x 32 pixels."""

import contextlib

import jax
import pytest
import tiny

from lumos.config import TokenizerConfig
from lumos.slots import slot
from lumos.tokenizers import causal_vae, pretrained
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos import generator as generators


@contextlib.contextmanager
def make(temporal_compression=4, **changes):
    """Give a `Generator`; `changes` as in `tiny.transformer`."""
    tokenizer = TokenizerConfig(
        channels=4, channel_mult=(1, 2), z_channels=4, levels=(5, 3, 2), temporal_window=4, temporal_compression=temporal_compression
    )  # fmt: skip
    definition = causal_vae.make_definition(tokenizer)
    vae = pretrained.Tokenizer(tokenizer, jax.tree.map(lambda x: x + 0.05, definition.init(jax.random.key(0))))
    defaults = dict(
        sequence__grid=(3, 4, 4), model__num_layers=1, model__init_std=0.3, generate__steps=2, generate__fps=8.0, model__text_vocab=512,
        generate__history_ratio=0.0, generate__cache=slot("fifo", width=2), generate__guidance=slot("none"), tokenizer_workdir="fake",
        generate__positions=slot("relative", horizon=2), sequence__text_length=16,
    )  # fmt: skip
    config = tiny.transformer(**(defaults | changes))
    objective = TransformerObjective(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generators.pretrained, "load", lambda workdir: vae)
        yield generators.Generator(config, objective.definition, objective.definition.init(jax.random.key(1)), 0)
