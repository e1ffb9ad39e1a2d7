"""How layers learn of actions: as tokens (tests/test_streams.py), added to codes, or by scaling and shifting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_streams
import tiny
from test_laws_generation import assert_close

from lumos.errors import UserError
from lumos.generation.guidance import TextAndStreams
from lumos.sequence.corruption import Corrupted
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective

FRAMES, STREAMS = 3, ((5, 1), (7, 2))


@pytest.fixture(scope="module", params=["added", "adaln"])
def world(request):
    """What `test_streams.world` is; the maps that are 0 at the start have noise."""
    config = tiny.transformer(
        sequence__grid=(FRAMES, 2, 2), sequence__streams=STREAMS, data__batch_size=2, model__num_layers=2, model__init_std=0.3,
        generate__steps=2, generate__history_ratio=0.0, generate__guidance=slot("none"), model__streams=slot(request.param),
    )  # fmt: skip
    objective = TransformerObjective(config)
    rng = np.random.default_rng(3)
    streams = tuple(rng.integers(0, size, (2, FRAMES, num)).astype(np.int32) for size, num in STREAMS)
    params = jax.tree.map(np.asarray, jax.jit(objective.definition.init)(jax.random.key(0)))
    noisy = lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(x.dtype) if not x.any() else x
    params = jax.tree.map(lambda x: jnp.asarray(noisy(x)), params)
    return config, objective, params, tiny.token_batch(config), streams


def hidden_of_whole(world, streams):
    """Return the hidden states of whole clean sequences, [B, L, D]."""
    _, objective, params, batch, _ = world
    batch = batch | {f"stream_{i}": x for i, x in enumerate(streams)}
    shape = 2, FRAMES, 4
    clean = Corrupted(jnp.zeros(shape, bool), jnp.zeros(shape[:2]), jnp.ones(shape[:2], bool))
    run = lambda params, batch: (
        objective._forward(
            objective.layout, objective.definition, params, batch, clean, None, jax.random.key(0)
        ).hidden_BLD
    )
    return np.asarray(jax.jit(run)(params, batch))


def test_an_action_changes_its_frame_and_no_earlier_one(world):
    """Exactly; it reaches all of its frame in the first layer."""
    streams, layout = world[4], world[1].layout
    base = hidden_of_whole(world, streams)
    for t in range(FRAMES):
        other = tuple(x.copy() for x in streams)
        other[0][:, t] = (other[0][:, t] + 2) % 5
        changed = hidden_of_whole(world, other)
        before, here = layout.tokens.t < t, layout.tokens.t == t
        np.testing.assert_array_equal(changed[:, before], base[:, before])
        assert (np.abs(changed - base)[:, here].max(axis=(0, 2)) > 0).all()


def test_cached_equals_uncached(world):
    want = hidden_of_whole(world, world[4])[:, test_streams.engine_of(world).layout.prefix_length :]
    assert_close(test_streams.hidden_through_cache(world), want, np.arange(FRAMES * 7))


@pytest.mark.slow
def test_given_frames_and_guidance(world):
    """Given frames have their actions; a branch without streams is the model on [MASK] in their place."""
    streams = world[4]
    whole = test_streams.clip(world, streams)
    session = test_streams.session_of(world)
    session.prefill(world[3]["text"], world[3]["text_length"], test_streams.row_keys(1, 2), whole[:, :2], streams)
    np.testing.assert_array_equal(session.advance(), whole[:, 2])
    alone, ignores = (
        test_streams.clip(world, x, guidance=TextAndStreams(text=0.0, streams=0.0))
        for x in (streams, tuple(x * 0 for x in streams))
    )
    np.testing.assert_array_equal(alone, ignores)


def test_what_it_does_not_go_with_is_refused():
    for changes in ({"sequence__streams": ()}, {"sequence__streams": STREAMS, "model__post_norm": True}):
        with pytest.raises(UserError, match="config.model.streams='adaln' needs config.sequence.streams"):
            tiny.transformer(model__streams=slot("adaln"), **changes)


def test_at_the_start_nothing_is_changed(world):
    """The new maps are 0 at first: a model without them shows what one with them does."""
    config, _, _, batch, streams = world
    objective = TransformerObjective(config)
    params = jax.jit(objective.definition.init)(jax.random.key(0))
    outs = [
        hidden_of_whole((config, objective, params, batch, streams), x)
        for x in (streams, tuple(x * 0 for x in streams))
    ]
    np.testing.assert_array_equal(*outs)
