"""One model of four frames of 2 x 2 cells, as small as the engine takes, that tests of plans, samplers and sessions share."""

import dataclasses
import functools

import jax
import numpy as np
import tiny

from lumos.generation.guidance import NoGuidance
from lumos.generation.sampler import row_keys
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

FRAMES, STEPS = 4, 2


@functools.cache
def model():
    """Return (config, definition, params, batch of two)."""
    config = tiny.transformer(
        sequence__grid=(FRAMES, 2, 2), data__batch_size=2, model__num_layers=1, model__init_std=0.3, generate__steps=STEPS,
        generate__history_ratio=0.0,
    )  # fmt: skip
    definition = TransformerObjective(config).definition
    return config, definition, jax.jit(definition.init)(jax.random.key(0)), tiny.token_batch(config)


def engine(undo=0, **settings):
    """Return an engine of the model; without guidance, where none is given."""
    config, definition, *_ = model()
    settings = dataclasses.replace(config.generate, **({"guidance": NoGuidance()} | settings))
    return make_engine(config, definition, settings=settings, undo=undo)


def text():
    batch = model()[3]
    return batch["text"], batch["text_length"]


@functools.cache
def baseline():
    """Return the clip that is generated frame by frame, without anything else."""
    return clip(engine())


def clip(engine):
    """Return the codes of a clip, [2, frames, cells], and how often the model was run."""
    _, _, params, batch = model()
    program = jax.jit(lambda params, *inputs: engine.clip(params, *inputs, 0))
    state, codes = program(params, *text(), batch["tokens"], row_keys(1, 2))
    return np.asarray(codes).reshape(2, FRAMES, 4), int(state.forwards)
