"""Streams beside the video, such as actions: given tokens that come before the codes of their frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_laws_generation import assert_close
from tokens import one_device, run_config, write_tokens  # noqa: F401  (a fixture)

from lumos.checkpoint import Checkpointer
from lumos.data.pipeline import make_pipeline
from lumos.errors import UserError
from lumos.generation import keeping
from lumos.generation.guidance import TextAndStreams
from lumos.generation.plan import Diagonal
from lumos.generation.policy import Fifo
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.sequence.tokens import STREAM
from lumos.slots import slot
from lumos.training.loop import train
from lumos.training.match_data import match_data
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

FRAMES, STREAMS = 4, ((5, 1), (7, 2))  # actions of one token, and something of two


@pytest.fixture(scope="module")
def world():
    config = tiny.transformer(
        sequence__grid=(FRAMES, 2, 2), sequence__streams=STREAMS, data__batch_size=2, model__num_layers=2, model__init_std=0.3,
        generate__steps=2, generate__history_ratio=0.0, generate__guidance=slot("none"),
    )  # fmt: skip
    objective = TransformerObjective(config)
    rng = np.random.default_rng(3)
    streams = tuple(rng.integers(0, size, (2, FRAMES, num)).astype(np.int32) for size, num in STREAMS)
    return config, objective, jax.jit(objective.definition.init)(jax.random.key(0)), tiny.token_batch(config), streams


def engine_of(world, **settings):
    config, objective, *_ = world
    return make_engine(config, objective.definition, settings=dataclasses.replace(config.generate, **settings))


def clip(world, streams, **settings):
    engine, (_, _, params, batch, _) = engine_of(world, **settings), world
    program = jax.jit(lambda streams: engine.decode(params, batch["text"], batch["text_length"], batch["tokens"] * 0, row_keys(1, 2), 0, streams=streams))  # fmt: skip
    return np.asarray(program(streams))


@pytest.fixture(scope="module")
def baseline(world):
    return clip(world, world[4])


def session_of(world, **settings):
    _, _, params, batch, _ = world
    session = Session(engine_of(world, **settings), params)
    session.prefill(batch["text"], batch["text_length"], row_keys(1, 2))
    return session


def advance(session, streams, t):
    return np.asarray(session.advance([x[:, t] for x in streams]))


def test_a_frame_is_of_one_group_with_its_streams(world):
    engine = engine_of(world)
    tokens, groups = engine.layout.tokens, engine.groups
    assert groups.per_frame == 1 and groups.size == 3 + 4
    np.testing.assert_array_equal(groups.streams, [0, 1, 2])
    np.testing.assert_array_equal(groups.content, [3, 4, 5, 6])
    np.testing.assert_array_equal(tokens.t[tokens.kind == STREAM], np.repeat(np.arange(FRAMES), 3))


def hidden_through_cache(world):
    """Hidden states of true codes, frame by frame over the cache, [B, frames * (tokens of streams + cells), D]."""
    config, objective, params, batch, streams = world
    engine = engine_of(world)
    model = objective.definition.bind(params)
    state = engine.prefill(
        params, batch["text"], batch["text_length"], batch["tokens"], jax.random.key(0), 0, streams=streams
    )

    @jax.jit
    def step(state, codes):
        tokens, template, run = engine._open(model, state, state.group[None])
        hidden, own = run(engine._with_codes(template, state.group[None], codes[:, None]), jnp.zeros((1, 1)))
        cache = keeping.write(engine.view, state.cache, own, tokens, state.group, model.config)
        return state._replace(cache=cache, group=state.group + 1), hidden

    got = []
    for t in range(batch["tokens"].shape[1]):
        state, hidden = step(state, batch["tokens"][:, t].reshape(2, -1))
        got.append(hidden)
    return np.concatenate(got, axis=1)


def test_cached_equals_uncached(world):
    _, objective, params, batch, streams = world
    layout, model = engine_of(world).layout, objective.definition.bind(params)
    ids = layout.assemble(batch["text"], batch["tokens"], streams)
    keys = objective._keys(layout, layout.first_key(jnp.asarray(batch["text_length"])), model.storage(layout.num_read))
    want = jax.jit(lambda: model.hidden(ids, layout.positions, keys))()
    assert_close(hidden_through_cache(world), np.asarray(want)[:, layout.prefix_length :], np.arange(FRAMES * 7))


def test_an_action_changes_its_frame_and_no_earlier_one(world, baseline):
    """Exactly. It changes later ones through its frame, and through its own tokens."""
    for t in (1, 3):
        other = tuple(x.copy() for x in world[4])
        other[0][:, t] = (other[0][:, t] + 2) % 5
        changed = clip(world, other)
        np.testing.assert_array_equal(changed[:, :t], baseline[:, :t])
        assert (changed[:, t] != baseline[:, t]).any()


def test_a_session_takes_actions_frame_by_frame(world, baseline):
    """A clip, a fork with other actions, and one that was saved and restored share the past, bit for bit."""
    streams = world[4]
    session = session_of(world)
    frames = [advance(session, streams, t) for t in range(2)]
    fork = session.fork([0, 1])
    frames += [advance(session, streams, t) for t in (2, 3)]
    np.testing.assert_array_equal(np.stack(frames, axis=1), baseline)
    np.testing.assert_array_equal(advance(fork, streams, 2), frames[2])
    fork.rewind(1)
    other = tuple((x + 1) % size for x, (size, _) in zip(streams, STREAMS))
    assert (advance(fork, other, 2) != frames[2]).any()
    fork.rewind(1)
    fork.recache()
    np.testing.assert_array_equal(advance(fork, streams, 2), frames[2])


def test_saved_sessions_keep_their_actions(world, tmp_path):
    streams = world[4]
    session = session_of(world, cache=Fifo(width=2))
    for t in range(3):
        advance(session, streams, t)
    session.save(tmp_path / "s.npz")
    again = Session(engine_of(world, cache=Fifo(width=2)), world[2])
    again.restore(tmp_path / "s.npz")
    for one in (session, again):
        one.recache()
    np.testing.assert_array_equal(advance(session, streams, 3), advance(again, streams, 3))
    later = [advance(session, streams, 1) for _ in range(2)]  # beyond the layout
    assert later[0].shape == (2, 2, 2) and session.num_programs == 1


def test_given_frames_come_with_their_actions(world, baseline):
    _, _, params, batch, streams = world
    session = Session(engine_of(world), params)
    session.prefill(batch["text"], batch["text_length"], row_keys(1, 2), baseline[:, :2], [x[:, :2] for x in streams])
    np.testing.assert_array_equal(advance(session, streams, 2), baseline[:, 2])


def test_frames_in_flight_see_their_own_actions(world, baseline):
    """Full lag is frame by frame; with less, an action still changes no frame that was finished before."""
    np.testing.assert_array_equal(clip(world, world[4], plan=Diagonal(passes=2)), baseline)
    other = tuple(x.copy() for x in world[4])
    other[1][:, 3] = (other[1][:, 3] + 2) % 7
    one, two = (clip(world, x, plan=Diagonal(passes=1)) for x in (world[4], other))
    np.testing.assert_array_equal(one[:, :3], two[:, :3])
    assert (one[:, 3] != two[:, 3]).any()


def test_guidance_by_streams(world, baseline):
    """With both scales 1 it is none; a branch without streams is the model on [MASK] in their place."""
    np.testing.assert_array_equal(clip(world, world[4], guidance=TextAndStreams(text=1.0, streams=1.0)), baseline)
    alone = clip(world, world[4], guidance=TextAndStreams(text=0.0, streams=0.0))
    ignores = clip(world, tuple(x * 0 for x in world[4]), guidance=TextAndStreams(text=0.0, streams=0.0))
    np.testing.assert_array_equal(alone, ignores)
    assert (clip(world, world[4], guidance=TextAndStreams(text=1.0, streams=4.0)) != baseline).any()


def test_training_loses_streams_in_a_share_of_the_rows(world):
    config, _, params, batch, streams = world
    batch = batch | {f"stream_{i}": x for i, x in enumerate(streams)}

    def loss(drop, batch):
        c = dataclasses.replace(config, corruption=dataclasses.replace(config.corruption, stream_drop=drop))
        objective = TransformerObjective(c)
        return float(jax.jit(lambda b: objective.loss(params, b, jax.random.key(0)).sum)(batch))

    other = batch | {"stream_0": (streams[0] + 1) % 5}
    assert loss(0.0, batch) != loss(0.0, other)
    assert loss(1.0, batch) == loss(1.0, other) != loss(0.0, batch)
    draws = jax.vmap(lambda k: dataclasses.replace(config.corruption, stream_drop=0.3).drop_streams(k, 8))(jax.random.split(jax.random.key(1), 500))  # fmt: skip
    assert abs(draws.mean() - 0.3) < 0.03


def test_what_streams_do_not_go_with_is_refused(world):
    session = session_of(world)
    with pytest.raises(UserError, match=r"streams of shapes \[\]; this model has 2"):
        session.advance()
    with pytest.raises(UserError, match="codes below"):
        session.advance([np.full((2, 1), 5), np.zeros((2, 2))])
    with pytest.raises(UserError, match="config.sequence.streams has 2"):
        clip(world, ())
    with pytest.raises(UserError, match="streams come with whole frames"):
        config = tiny.transformer(sequence__streams=STREAMS, sequence__layout=slot("compact", block=(1, 1, 0)))
        make_engine(config, TransformerObjective(config).definition)


def test_shards_carry_streams(tmp_path, one_device):  # noqa: F811
    """A record's streams reach the batch beside its tokens; one without them is named."""
    folder = write_tokens(tmp_path / "tokens", num=16, streams=STREAMS)
    config = match_data(run_config(folder, sequence__streams=STREAMS, train__num_steps=2, data__batch_size=4))
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        batch = next(pipeline)
    assert batch["stream_0"].shape == (4, 3, 1) and batch["stream_1"].shape == (4, 3, 2)
    np.testing.assert_array_equal(batch["stream_0"][:, 0, 0], batch["tokens"][:, 0, 0, 0] % 5)
    train(config, tmp_path / "run")
    assert Checkpointer(tmp_path / "run", read_only=True).latest_step() == 2
    other = match_data(run_config(write_tokens(tmp_path / "others"), sequence__streams=STREAMS))
    with pytest.raises(
        UserError, match=r"holds no stream_0 \[T, 1\] of integers, which config.sequence.streams asks for"
    ):
        make_pipeline(other, "train", process_index=0, process_count=1).__next__()
