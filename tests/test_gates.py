"""A learnt gate of the sink, the slope of a decay, and prompts of scenes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws_generation import assert_close, setup, through_cache, whole

from lumos.errors import UserError
from lumos.generation.policy import Window as WindowCache
from lumos.sequence.gated import GatedWindow
from lumos.sequence.rule import Scenes, StageCausal, Window
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective

GATED = {"sequence__attention": slot("gated_window", width=2, sink=1), "model__mixer": slot("gated")}


@pytest.fixture(scope="module")
def gated():
    return setup(**GATED)


def opened(run, alpha):
    config, objective, params, batch = run
    params = jax.tree.map(lambda x: x, params)
    params["layers"]["self_attn"]["sink_gate"] = jnp.array(alpha)
    return config, objective, params, batch


def hidden(run):
    """Hidden states as in training, of clean sequences."""
    config, objective, params, batch = run
    layout, storage = objective.layout, objective.definition.bind(params).storage(objective.layout.num_read)

    @jax.jit
    def program(params):
        keys = objective._keys(layout, layout.first_key(jnp.asarray(batch["text_length"])), storage)
        return objective.definition.bind(params).hidden(
            layout.assemble(batch["text"], batch["tokens"]), layout.positions, keys
        )

    return np.asarray(program(params))


def test_a_gate_starts_closed_and_learns(gated):
    """At alpha = 0 the sink is not seen, bitwise, and the loss has a gradient with respect to it."""
    config, objective, params, batch = gated
    plain = TransformerObjective(
        dataclasses.replace(
            config, sequence=dataclasses.replace(config.sequence, attention=Window(width=2)), model=setup()[0].model
        )
    )
    without = jax.tree.map(lambda x: x, params)
    del without["layers"]["self_attn"]["sink_gate"]
    np.testing.assert_array_equal(hidden(gated), hidden((config, plain, without, batch)))
    loss = lambda params: objective.loss(params, batch, jax.random.key(0)).sum
    gradient = jax.jit(jax.grad(loss))(params)["layers"]["self_attn"]["sink_gate"]
    assert gradient.shape == (2,) and np.isfinite(gradient).all() and (np.abs(gradient) > 0).all()


def test_an_open_gate_adds_attention_to_the_sink(gated):
    """Frames that have the sink in their window do not change; later ones do; and generation computes the same."""
    run = opened(gated, [0.7, -0.4])
    objective = run[1]
    closed, open_ = hidden(gated), hidden(run)
    frame = objective.layout.tokens.t
    np.testing.assert_array_equal(closed[:, frame < 2], open_[:, frame < 2])
    assert all(np.abs(closed - open_)[:, frame == t].max() > 1e-3 for t in (2, 3))
    got, index, _ = through_cache(*run, cache=WindowCache(width=2, sink=1))
    assert_close(got, open_, index)


def test_a_gate_and_its_rule_need_each_other():
    for change in GATED:
        with pytest.raises(UserError, match="needs the attention rule 'gated_window', and the rule needs the mixer"):
            setup(**{change: GATED[change]})
    assert GatedWindow().gated() and StageCausal().gated() is None


def test_a_slope_of_zero_is_no_decay():
    """Also the least slope that adds something to a logit, which rounds to nothing, is none, bitwise; a large one is not."""
    run = setup()
    states = [np.asarray(whole(*run, rule=StageCausal(decay=slope))[2]) for slope in (0.0, 1e-30, 0.5)]
    np.testing.assert_array_equal(states[0], states[1])
    assert not (states[0] == states[2]).all()


SCENES = {"sequence__attention": slot("scenes", text=3, frames=2)}


def test_a_prompt_changes_its_own_scene_and_later_ones_alone():
    """Exactly: scenes before it do not see it; those after it see its video, or nothing of it where scenes are apart."""
    config, objective, params, batch = setup(**SCENES)
    batch = batch | {"text_length": np.full(2, 6)}
    other = batch | {"text": np.where(np.arange(6) < 3, batch["text"], 4 + (batch["text"] + 1) % 16)}
    first = batch | {"text": np.where(np.arange(6) < 3, 4 + (batch["text"] + 1) % 16, batch["text"])}
    frame = objective.layout.tokens.t
    of = lambda batch, rule: np.asarray(whole(config, objective, params, batch, rule=rule)[2])
    together, apart = Scenes(text=3, frames=2), Scenes(text=3, frames=2, across=False)
    before = of(batch, together)
    changed = np.abs(of(other, together) - before).max((0, 2))
    assert (changed[(frame == 0) | (frame == 1)] == 0).all() and (changed[frame >= 2] > 0).all()
    assert (np.abs(of(first, together) - before).max((0, 2))[frame >= 0] > 0).all()
    assert (np.abs(of(first, apart) - of(batch, apart)).max((0, 2))[frame >= 2] == 0).all()
    got, index, _ = through_cache(config, objective, params, batch)
    assert_close(got, before, index)
    with pytest.raises(ValueError, match="must both be at least 1, or both be 0"):
        Scenes(text=3)
