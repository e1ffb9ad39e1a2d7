"""Memory tokens: old frames are seen through a few tokens each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_laws_generation import assert_close, setup, through_cache

from lumos.errors import UserError
from lumos.generation.engine import Engine
from lumos.generation.guidance import NoGuidance
from lumos.generation.ladder import LadderCache
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.layouts import make_layout
from lumos.model import added
from lumos.sequence.ladder import Ladder
from lumos.sequence.rule import StageCausal, count_pairs, visible
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

TWO_RUNGS = {
    "model__memory": (2, 4),
    "sequence__attention": slot("ladder", frames=(2, 3)),
    "generate__cache": slot("ladder", width=4),
}


@pytest.fixture(scope="module")
def ladder():
    return setup(**TWO_RUNGS)


def hidden(run, tokens=None):
    """Hidden states of clean sequences, as in training."""
    _, objective, params, batch = run
    layout = objective.layout

    @jax.jit
    def program(params):
        model = objective.definition.bind(params)
        ids = layout.assemble(batch["text"], batch["tokens"] if tokens is None else tokens)
        keys = objective._keys(
            layout, layout.first_key(jnp.asarray(batch["text_length"])), model.storage(layout.num_read)
        )
        return model.hidden(
            ids, layout.positions, keys, **added.inputs(model, ids, layout.memory, False, layout.of_frames)[1]
        )

    return np.asarray(program(params))


def test_a_memory_of_every_cell_is_full_attention():
    """With k = 1 and the map of the start, the identity, memory tokens are the cells themselves."""
    config, objective, params, batch = setup(
        model__memory=(1,), sequence__attention=slot("ladder", frames=(2,)), generate__cache=slot("ladder")
    )
    params = jax.tree.map(jnp.array, params)
    layout = objective.layout
    table = params["embed_tokens"].at[layout.vocabulary.memory].set(0)
    params["embed_tokens"] = table
    plain = dataclasses.replace(
        config,
        sequence=dataclasses.replace(config.sequence, attention=StageCausal()),
        model=dataclasses.replace(config.model, memory=()),
    )
    plain_params = {name: x for name, x in params.items() if name != "memory_embed"}
    run, full = (config, objective, params, batch), (plain, TransformerObjective(plain), plain_params, batch)
    cells = layout.visual_index
    np.testing.assert_allclose(hidden(run)[:, cells], hidden(full)[:, full[1].layout.visual_index], atol=2e-6)
    np.testing.assert_allclose(hidden(run)[:, layout.memory[0].index.reshape(-1)], hidden(run)[:, cells], atol=2e-6)
    loss = lambda run: float(jax.jit(lambda p: run[1].loss(p, batch, jax.random.key(1)).sum)(run[2]))
    np.testing.assert_allclose(loss(run), loss(full), rtol=1e-6)


def test_cached_equals_uncached(ladder):
    got, index, state = through_cache(*ladder)
    assert_close(got, hidden(ladder), index)


def test_a_query_sees_the_cells_of_near_frames_and_the_memory_of_others(ladder):
    layout, rule = ladder[1].layout, ladder[0].sequence.attention
    tokens = layout.tokens
    sees = visible(rule, tokens, tokens)
    cell = layout.visual_index.reshape(4, 16)[3, 0]
    per_frame = lambda stream: [int((sees[cell] & (tokens.t == t) & (tokens.stream == stream)).sum()) for t in range(4)]
    assert per_frame(0) == [0, 0, 16, 16]  # distances 3, 2, 1, 0
    assert per_frame(-1) == [0, 4, 0, 0]
    assert per_frame(-2) == [1, 0, 0, 0]


def test_what_a_frame_costs_does_not_grow_like_the_video():
    """FAR's count: with 64 cells a frame, 8 near frames and 4 tokens for each other one, 300 frames are 1,680 tokens."""
    config = tiny.transformer(
        sequence__grid=(300, 8, 8), model__memory=(4,), sequence__attention=slot("ladder", frames=(8,)),
        generate__cache=slot("ladder", width=300), sequence__text_length=1,
    )  # fmt: skip
    layout = make_layout(config)
    last = layout.tokens.at(layout.visual_index[-1:])
    assert visible(config.sequence.attention, last, layout.tokens).sum() == 1 + 1680
    engine = make_engine(config, TransformerObjective(config).definition)
    # One frame of cells less than are seen, as its own are in flight, and room for what is written.
    assert engine.view.num_slots == 1 + 7 * 64 + 300 * 4 + 68
    full = count_pairs(
        make_layout(tiny.transformer(sequence__grid=(300, 8, 8), sequence__text_length=1)), StageCausal()
    )
    assert count_pairs(layout, config.sequence.attention) < full / 8


def test_a_memory_token_stands_for_its_cells(ladder):
    """What changes in an old frame reaches a late one through the memory tokens over the change, and nothing else does."""
    tokens = ladder[3]["tokens"]
    changed = tokens.copy()
    changed[:, 0, 3, 3] = (changed[:, 0, 3, 3] + 1) % 30
    layout, differs = ladder[1].layout, (hidden(ladder, changed) != hidden(ladder)).any(axis=(0, 2))
    fine = layout.memory[0].index[0]
    np.testing.assert_array_equal(
        layout.memory[0].cells[0, 3], layout.visual_index.reshape(4, 4, 4)[0, 2:, 2:].reshape(-1)
    )
    assert differs[fine].all() and differs[layout.visual_index].all()  # a frame sees all of itself
    embedded = lambda tokens: _embedded(ladder, tokens)
    np.testing.assert_array_equal((embedded(changed) != embedded(tokens))[0], [False, False, False, True])


def _embedded(run, tokens):
    """Which embeddings the memory tokens of the first frame have, summed over channels, [B, M]."""
    _, objective, params, batch = run
    layout, model = objective.layout, objective.definition.bind(params)
    ids = layout.assemble(batch["text"], tokens)
    return np.asarray(
        added.inputs(model, ids, layout.memory, False, layout.of_frames)[1]["added_BQD"][
            :, layout.memory[0].index[0]
        ].sum(-1)
    )


def _session(run, **changes) -> tuple[Engine, Session]:
    config, objective, params, _ = run
    settings = dataclasses.replace(config.generate, guidance=NoGuidance(), **changes)
    engine = make_engine(config, objective.definition, settings=settings)
    return Session(engine, params)


@pytest.mark.slow
def test_a_session_forgets_cells_and_goes_on(ladder):
    """A clip that fits is that of `decode`; later frames take the same memory and the same program."""
    config, objective, params, batch = ladder
    session = _session(ladder)
    session.prefill(batch["text"], batch["text_length"], row_keys(1, 2))
    frames = [np.asarray(session.advance()) for _ in range(4)]
    engine = session._engine
    clip = jax.jit(
        lambda p: engine.decode(p, batch["text"], batch["text_length"], batch["tokens"] * 0, row_keys(1, 2), 0)
    )
    np.testing.assert_array_equal(np.stack(frames, axis=1), clip(params))
    size = session.num_bytes
    for _ in range(4):
        session.advance()
    assert session.num_bytes == size
    assert int(session.state.cache.count) == 6 + 1 * 16 + 2 * 4 + 4 * 1
    assert session.num_programs == 1


@pytest.mark.slow
def test_given_frames_are_prefilled_as_they_are_written(ladder):
    config, objective, params, batch = ladder
    cold, warm = _session(ladder, history_ratio=0.0), _session(ladder, history_ratio=0.0)
    cold.prefill(batch["text"], batch["text_length"], row_keys(1, 2), batch["tokens"])
    warm.prefill(batch["text"], batch["text_length"], row_keys(1, 2), batch["tokens"][:, :3])
    warm.state = _write(warm, params, batch["tokens"][:, 3])
    for got, want in zip(warm.state.cache.tokens, cold.state.cache.tokens):
        np.testing.assert_array_equal(got, want)
    used = int(cold.state.cache.count)
    np.testing.assert_allclose(warm.state.cache.k[:, :, :used], cold.state.cache.k[:, :, :used], atol=1e-5)
    np.testing.assert_allclose(warm.state.cache.v[:, :, :used], cold.state.cache.v[:, :, :used], atol=1e-5)


def _write(session, params, codes_BHW):
    engine = session._engine
    model = engine.definition.bind(params)
    opened = engine._open(model, session.state, session.state.group[None])
    return jax.jit(lambda codes: engine._close(session.state, opened, codes))(codes_BHW.reshape(2, 1, -1))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"generate__cache": slot("full")}, "cache 'ladder'"),
        ({"model__memory": (2,)}, "one size for each"),
        ({"model__memory": (3, 4)}, "3 does not divide frames of 4 x 4"),
        ({"sequence__attention": slot("causal")}, "attention='ladder'"),
        ({"sequence__layout": slot("compact", block=(1, 1, 0))}, "each generated at once"),
        ({"sequence__copies": 2}, "copies"),
    ],
)
def test_what_does_not_go_with_memory_is_refused(changes, words):
    with pytest.raises((UserError, ValueError), match=words):
        config, objective, *_ = setup(**TWO_RUNGS | changes)
        make_engine(config, objective.definition)


@pytest.mark.parametrize("frames", [(), (3, 2), (0,)])
def test_distances_are_checked(frames):
    with pytest.raises(ValueError, match="increasing distance"):
        Ladder(frames=frames)
    with pytest.raises(ValueError, match="width"):
        LadderCache(width=0)
