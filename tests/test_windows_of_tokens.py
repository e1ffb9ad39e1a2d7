"""Training windows from anywhere in a long video, and a stream that has come there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tokens import run_config, write_tokens

from lumos.data.pipeline import make_pipeline
from lumos.errors import UserError
from lumos.generation.guidance import NoGuidance
from lumos.generation.policy import Fifo
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.model import added
from lumos.sequence.tokens import CODE
from lumos.slots import slot
from lumos.training.match_data import match_data
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

LONG, WINDOW = 9, 3


def pipeline(folder, windows, **changes):
    config = match_data(
        run_config(folder, data__buckets=((WINDOW, 4, 4),), sequence__grid=(WINDOW, 4, 4), data__windows=windows, model__first_frame=True, data__batch_size=16, **changes)
    )  # fmt: skip
    return make_pipeline(config, "train", process_index=0, process_count=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("long") / "tokens", grid=(LONG, 4, 4))


def test_windows_begin_anywhere_as_often_and_say_where(folder):
    """Of 640 clips, a share of 0.7 at any of 7 places, and the others at the first."""
    with pipeline(folder, 0.7) as batches, pipeline(folder, 0.0) as firsts:
        starts = np.concatenate([next(batches)["start"] for _ in range(40)])
        assert "start" not in next(firsts)
    counts = np.bincount(starts, minlength=LONG - WINDOW + 1)
    expected = 640 * np.array([0.3 + 0.1, *[0.1] * 6])
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))


def test_a_window_is_the_clip_from_there_on_whatever_the_step_a_run_begins_at(folder):
    with pipeline(folder, 1.0) as batches:
        ours = [next(batches) for _ in range(3)]
        batches.seek(2)
        again = next(batches)
    for name, value in ours[2].items():
        np.testing.assert_array_equal(again[name], value)
    source = batches._reader.sources[0]
    whole = [source._read(i)["tokens"] for i in range(len(source.sizes))]
    for tokens, start in zip(again["tokens"], again["start"]):
        assert any(np.array_equal(clip[start : start + WINDOW], tokens) for clip in whole)


@pytest.fixture(scope="module")
def model():
    config = tiny.transformer(
        sequence__grid=(WINDOW, 4, 4), model__first_frame=True, data__windows=1.0, data__batch_size=2, model__init_std=0.3,
        generate__history_ratio=0.0, generate__steps=2, generate__cache=slot("fifo", width=WINDOW),
        generate__positions=slot("relative", horizon=WINDOW - 1),
    )  # fmt: skip
    objective = TransformerObjective(config)
    params = objective.definition.init(jax.random.key(0))
    params["first_embed"] = jax.random.normal(jax.random.key(1), params["first_embed"].shape)
    return config, objective, params, tiny.token_batch(config)


def window_in_training(model, tokens, start):
    """Keys and values are not at hand in training: hidden states of a clean window that begins at `start`."""
    _, objective, params, batch = model
    layout = objective.layout

    @jax.jit
    def run(params):
        net = objective.definition.bind(params)
        ids = layout.assemble(batch["text"], tokens)
        first = (start == 0) & ((layout.tokens.t == 0) & (layout.tokens.kind == CODE))[None]
        keys = objective._keys(
            layout, layout.first_key(jnp.asarray(batch["text_length"])), net.storage(layout.num_read)
        )
        return net.hidden(ids, layout.positions, keys, **added.inputs(net, ids, (), first, layout.of_frames)[1])

    return np.asarray(run(params))


@pytest.mark.parametrize("start", [0, 5])
def test_a_window_in_training_is_the_same_window_in_a_stream(model, start):
    """The history of a session that is computed again, at frames `start` and on, has the hidden states of training."""
    config, objective, params, batch = model
    settings = dataclasses.replace(config.generate, guidance=NoGuidance())
    engine = make_engine(config, objective.definition, settings=settings)
    ids = engine.layout.assemble(batch["text"], batch["tokens"])
    first_R = engine.view.first_visible(jnp.asarray(batch["text_length"]))
    numbers = jnp.arange(WINDOW) + start, jnp.zeros(WINDOW, jnp.int32)
    _, hidden = jax.jit(lambda params: engine.run_prefix(params, ids, first_R, WINDOW, numbers))(params)
    np.testing.assert_allclose(hidden, window_in_training(model, batch["tokens"], start), atol=2e-5)
    assert (
        np.abs(hidden - window_in_training(model, batch["tokens"], 5 - start)).max() > 0.1
    )  # the model is told which it is


def test_the_loss_knows_where_a_window_begins(model):
    config, objective, params, batch = model
    loss = jax.jit(lambda start: objective.loss(params, batch | {"start": start}, jax.random.key(0)).sum)
    unsaid = jax.jit(lambda: objective.loss(params, batch, jax.random.key(0)).sum)()
    np.testing.assert_array_equal(loss(jnp.zeros(2, int)), unsaid)
    assert loss(jnp.array([0, 4])) != unsaid
    gradient = jax.jit(jax.grad(lambda p: objective.loss(p, batch | {"start": jnp.full(2, 4)}, jax.random.key(0)).sum))(
        params
    )
    assert not np.any(gradient["first_embed"])


def test_a_stream_begins_with_its_first_frame(model):
    """A session's frame 0 has the embedding, whichever frames are still seen later; a clip is the same in one program."""
    config, objective, params, batch = model
    settings = dataclasses.replace(config.generate, guidance=NoGuidance(), cache=Fifo(width=2))
    session = Session(make_engine(config, objective.definition, settings=settings), params)
    session.prefill(batch["text"], batch["text_length"], row_keys(1, 2))
    frames = [np.asarray(session.advance()) for _ in range(2 * WINDOW)]
    plain = params | {"first_embed": 0 * params["first_embed"]}
    other = Session(make_engine(config, objective.definition, settings=settings), plain)
    other.prefill(batch["text"], batch["text_length"], row_keys(1, 2))
    assert (np.asarray(other.advance()) != frames[0]).any() and session.num_programs == 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data__windows": 1.5}, "must lie in"),
        ({"data__windows": 0.5}, "config.model.first_frame=True"),
        ({"data__windows": 0.5, "model__first_frame": True, "data__source": "clips"}, "config.data.source='tokens'"),
        ({"model__first_frame": True, "sequence__order": slot("random")}, "sequence.order='time'"),
    ],
)
def test_what_windows_need_is_said(changes, words):
    with pytest.raises(UserError, match=words):
        tiny.transformer(**changes)
