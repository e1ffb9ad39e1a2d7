"""Jumps between codes: the Markov chain against its enumeration, and what the engine does with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lumos.errors import UserError
from lumos.generation.jumps import Jumps
from lumos.generation.sampler import choose, row_keys
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import StageCausal, layout_ranges

STATES = np.stack(np.divmod(np.arange(9), 3), axis=1)  # two cells of three codes
DATA = np.array([0.5, 0, 0, 0, 0.3, 0, 0, 0, 0.2])  # both cells are always equal


def prediction(steps, p):
    """p(cell of the data | state) before pass p, [state, cell, code]: what a perfect model says."""
    keeps = p / steps * np.eye(3) + (1 - p / steps) / 3  # of a cell, [data, state]
    joint = DATA[:, None] * np.prod([keeps[STATES[:, i]][:, STATES[:, i]] for i in (0, 1)], axis=0)
    given = joint / joint.sum(0)
    return np.stack([np.stack([given[STATES[:, i] == v].sum(0) for v in range(3)], -1) for i in (0, 1)], axis=1)


def transition(steps, p):
    """The chance of every state behind pass p, from every state, [from, to]."""
    rate = np.asarray(Jumps().temperatures(steps, True))[p]
    of_cell = lambda i: (1 - rate) * np.eye(3)[STATES[:, i]] + rate * prediction(steps, p)[:, i]
    return of_cell(0)[:, STATES[:, 0]] * of_cell(1)[:, STATES[:, 1]]


def chain(steps):
    """The chance of every state at the end."""
    chance = np.full(9, 1 / 9)
    for p in range(steps):
        chance = chance @ transition(steps, p)
    return chance


NUM, SAMPLES = 4, 18000


@jax.jit
def jump(key, state, p):
    """Pass p of NUM over states [N] with a perfect model."""
    draw_key, keep_key = jax.random.split(key)
    predictions = jnp.stack([jnp.asarray(prediction(NUM, p)) for p in range(NUM)])
    logits = jnp.log(predictions + 1e-30)[p, state]
    codes, _ = choose(logits, jax.random.gumbel(draw_key, logits.shape))
    noise, rate = jax.random.gumbel(keep_key, codes.shape), Jumps().temperatures(NUM, True)[p]
    return jnp.where(Jumps().taken(noise, None, rate), codes, jnp.asarray(STATES)[state]) @ jnp.array([3, 1])


def assert_shares(states, chance):
    """Shares of states are those wanted, up to five deviations of a share."""
    deviation = np.sqrt(chance * (1 - chance) / len(states))
    assert (np.abs(np.bincount(states, minlength=9) / len(states) - chance) <= 5 * deviation + 1e-12).all()


def test_one_jump_and_a_whole_chain_are_those_of_their_enumeration():
    keys, before = [jax.random.key(seed) for seed in range(NUM + 1)], np.arange(SAMPLES) % 9
    after = np.asarray(jump(keys[NUM], before, 2))
    for state in range(9):
        assert_shares(after[before == state], transition(NUM, 2)[state])
    state = before  # each state as often
    for p in range(NUM):
        state = jump(keys[p], state, p)
    assert_shares(np.asarray(state), chain(NUM))


def test_a_perfect_model_ends_in_the_data():
    """Cells that jump in one step do so apart, so what is missed falls with the length of a step."""
    missed = [np.abs(chain(steps) - DATA).sum() / 2 for steps in (1, 4, 16, 64, 256)]
    assert missed[0] == pytest.approx(1 - (0.5**2 + 0.3**2 + 0.2**2)) and missed[-1] < 0.01
    assert all(b < 0.6 * a for a, b in zip(missed, missed[1:]))


@pytest.fixture(scope="module")
def engine():
    return small.engine(sampler=Jumps(), steps=3)


def test_the_engine_revises_random_codes(engine):
    """The first frame, against a loop without rounds, whose hidden cells show the codes that stand there."""
    got, _ = small.clip(engine)
    _, _, params, batch = small.model()
    layout, model = engine.layout, engine.definition.bind(params)
    first, cells = layout.vocabulary.visual_start, layout.visual_index[:4]
    keys = KeyRanges.of(layout_ranges(layout, StageCausal()), layout.first_key(jnp.asarray(batch["text_length"])))
    hidden_of = jax.jit(lambda ids: model.hidden(ids, layout.positions, keys) @ model.head(first, first + 30))
    gumbel_of = jax.jit(
        lambda key: jax.vmap(lambda c: jax.random.gumbel(jax.random.fold_in(key, c), (30,)))(jnp.arange(4))
    )
    key_of = lambda b, p: jax.random.fold_in(jax.random.fold_in(jax.random.key(1 + b), 0), p)
    codes = np.stack([jax.random.randint(key_of(b, 3), (4,), 0, 30) for b in range(2)])
    for p in range(3):
        ids = layout.assemble(jnp.asarray(batch["text"]), jnp.asarray(batch["tokens"]))
        logits = hidden_of(ids.at[:, cells].set(codes + first))[:, cells]
        for b in range(2):
            draw_key, keep_key = jax.random.split(key_of(b, p))
            gumbel = np.asarray(gumbel_of(draw_key))
            jumps = np.exp(-np.exp(-np.asarray(jax.random.gumbel(keep_key, (4,))))) < 1 / (3 - p)
            codes[b] = np.where(jumps, np.argmax(np.asarray(logits[b]) + gumbel, axis=-1), codes[b])
    np.testing.assert_array_equal(got[:, 0], codes)


def test_what_the_level_is_and_when_all_is_final(engine):
    known, sampler = jnp.zeros((2, 1, 4), bool), Jumps()
    np.testing.assert_allclose(sampler.level(known, jnp.array([1]), 4), np.full((2, 1), 0.75))
    assert [bool(sampler(None, None, known, num, 0.0).all()) for num in sampler.counts(4, 3)] == [False, False, True]
    begun = [
        np.asarray(engine.passes.begin(row_keys(seed, 2), jnp.arange(2), jnp.full((2, 4), -1)).codes)
        for seed in (1, 1, 5)
    ]
    np.testing.assert_array_equal(begun[0], begun[1])
    assert not (begun[0] == begun[2]).all() and not (begun[0][:, 0] == begun[0][:, 1]).all()
    with pytest.raises(UserError, match="set history_ratio to 0"):
        small.engine(sampler=Jumps(), history_ratio=0.5)
