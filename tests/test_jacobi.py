"""Jacobi iteration: several groups solved together are those that are generated one by one, in fewer passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos.errors import UserError
from lumos.generation.jacobi import Jacobi
from lumos.generation.sampler import Confidence, row_keys
from lumos.generation.search import BestOf
from lumos.generation.session import Session
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import StageCausal, layout_ranges
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

NEXT = {
    "corruption__level": slot("constant", ratio=0.0), "loss__weights": slot("all"),
    "sequence__grid": (3, 2, 2), "data__batch_size": 2, "model__num_layers": 1, "model__init_std": 0.3,
    "generate__guidance": slot("text", scale=1.5), "generate__top_p": 0.9,
}  # fmt: skip
BLOCKS = {"tokens": ((1, 1, 1), "token"), "rows": ((1, 1, 0), "block"), "hybrid": ((1, 1, 0), "token")}


def make(name, **changes):
    block, first = BLOCKS[name]
    slots = {"sequence__layout": slot("compact", block=block), "sequence__targets": slot("next", first=first)}
    config = tiny.transformer(**(NEXT | slots | changes))
    return config, TransformerObjective(config).definition


@pytest.fixture(scope="module", params=["tokens", "rows"])
def run(request):
    config, definition = make(request.param)
    params, batch, programs = definition.init(jax.random.key(0)), tiny.token_batch(config), {}

    def clip(sampler, params=params, tokens=batch["tokens"]):
        """Codes of a clip whose first frame is given, and the state behind it."""
        if sampler not in programs:
            settings = dataclasses.replace(config.generate, sampler=sampler, search=BestOf())
            engine = make_engine(config, definition, settings=settings)
            programs[sampler] = jax.jit(lambda *a: engine.clip(*a, 1))
        state, codes = programs[sampler](params, batch["text"], batch["text_length"], tokens, row_keys(1, 2))
        return np.asarray(codes), state

    return config, definition, params, clip


@pytest.mark.parametrize("run", ["rows"], indirect=True)
def test_the_fixed_point_is_what_is_generated_one_by_one(run):
    *_, clip = run
    codes, state = clip(Confidence())
    assert state.forwards == 3  # of four rows the last one is not fed
    solved, after = clip(Jacobi(chunk=2, from_previous=False))
    np.testing.assert_array_equal(solved, codes)
    assert 2 <= after.forwards <= 4
    np.testing.assert_allclose(after.log_p, state.log_p, rtol=1e-5)


@pytest.mark.parametrize("run", ["tokens"], indirect=True)
def test_log_probabilities_are_those_of_the_finished_sequence(run):
    """What a search goes by: codes again, whole and without a cache, with the text and without it."""
    config, definition, params, clip = run
    (codes, state), batch = clip(Confidence()), tiny.token_batch(config)
    layout, model = make_engine(config, definition).layout, definition.bind(params)
    head = model.head(layout.vocabulary.visual_start, layout.vocabulary.visual_end)
    where, made = config.sequence.targets(layout), layout.tokens.t[layout.visual_index] > 0
    ids, keys = layout.assemble(batch["text"], codes), layout_ranges(layout, StageCausal())

    @jax.jit
    def log_p_of(first):
        hidden = model.hidden(ids, layout.positions, KeyRanges.of(keys, first))[:, where.source[made, 0]]
        log_p = jax.nn.log_softmax(hidden @ head)
        return jnp.take_along_axis(log_p, codes.reshape(2, -1)[:, made, None], axis=-1).sum((1, 2))

    text = layout.first_key(jnp.asarray(batch["text_length"]))
    for got, first in zip(state.log_p, (text, jnp.full_like(text, layout.drop_to)), strict=True):
        np.testing.assert_allclose(got, log_p_of(first), rtol=1e-5)


@pytest.fixture(scope="module")
def session(run):
    """A session that solves a frame of tokens at a time."""
    config, definition, params, _ = run
    settings = dataclasses.replace(config.generate, sampler=Jacobi(chunk=4))
    return Session(make_engine(config, definition, settings=settings), params)


def solve(session, config, params, given):
    """The two frames behind a given one, and how often the model was run."""
    batch, session.params = tiny.token_batch(config), params
    session.prefill(batch["text"], batch["text_length"], row_keys(1, 2), given)
    return np.stack(list(session.frames(2)), axis=1), session.num_forwards


@pytest.mark.parametrize("run", ["tokens"], indirect=True)
def test_a_session_solves_frame_by_frame(run, session):
    config, _, params, clip = run
    codes, forwards = solve(session, config, params, tiny.token_batch(config)["tokens"][:, :1])
    np.testing.assert_array_equal(codes, clip(Confidence())[0][:, 1:])
    assert 2 <= forwards <= 8


def counting(config, definition, params):
    """A model without layers, in which code c is followed by c + 1 modulo 4: every frame of 2 x 2 cells shows 0, 1, 2, 3."""
    ids = make_engine(config, definition).layout.vocabulary
    table, head = np.zeros((ids.size, 32), np.float32), np.zeros((32, ids.size), np.float32)
    table[ids.visual_start : ids.visual_end] = np.eye(32)[:30]
    table[: ids.visual_start], table[ids.visual_end :] = np.eye(32)[3], np.eye(32)[3]  # the first code is 0
    for code in range(32):
        head[code, ids.visual_start + (code + 1) % 4] = 100.0
    return jax.tree.map(jnp.zeros_like, params) | {
        "embed_tokens": jnp.asarray(table), "lm_head": {"kernel": jnp.asarray(head)}, "norm": params["norm"]
    }  # fmt: skip


@pytest.mark.parametrize("run", ["tokens"], indirect=True)
def test_the_previous_frame_is_a_good_guess_of_a_still_clip(run, session):
    """A code is known one pass after the one before it, so a chunk takes as many passes as it has codes; guessed right, one."""
    config, definition, params, clip = run
    params = counting(config, definition, params)
    still = np.broadcast_to(np.arange(4, dtype=np.int32).reshape(2, 2), (2, 3, 2, 2))
    codes, state = clip(Confidence(), params, still)
    np.testing.assert_array_equal(codes, still)
    assert state.forwards == 7
    for given, want in ((still[:, :1], 1 + 1), (0 * still[:, :1] + 3, 4 + 1)):  # right, and wrong once
        codes, forwards = solve(session, config, params, given)
        np.testing.assert_array_equal(codes, still[:, 1:])
        assert forwards == want


@pytest.mark.parametrize(
    "name, changes, sampler, message",
    [
        ("tokens", {}, Jacobi(chunk=3), "chunk=3, which must divide 4 groups of one size"),
        ("hybrid", {}, Jacobi(chunk=2), "which must divide 7 groups of one size"),
        ("tokens", {"generate__cache": slot("fifo", width=2)}, Jacobi(chunk=4), "needs the cache 'full', not 'fifo'"),
        ("tokens", {"sequence__targets": slot("in_place")}, Jacobi(chunk=4), "use sequence.targets 'next'"),
    ],
)  # fmt: skip
def test_what_is_not_solved_is_said(name, changes, sampler, message):
    config, definition = make(name, **changes)
    with pytest.raises(UserError, match=message):
        make_engine(config, definition, settings=dataclasses.replace(config.generate, sampler=sampler))
