"""Errors of the history: rates, the bank's rings, chains, and what a step and a resumed run make of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos import sharding
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.sequence.corruption import Corrupted
from lumos.sequence.errors import Bank, OwnPredictions, RandomCodes
from lumos.slots import slot
from lumos.training.from_config import make_objective_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective

CODES, ROWS, CELLS = 30, 2000, 40


def _within(found, want, num, deviations=5):
    np.testing.assert_allclose(found, want, atol=deviations * (max(want * (1 - want), 1e-3) / num) ** 0.5)


def _true(seed=0):
    return jax.random.randint(jax.random.key(seed), (ROWS, CELLS), 0, CODES)


def test_random_codes_come_at_the_drawn_rates_and_some_clips_stay_clean():
    codes = _true()
    seen = RandomCodes(clean=0.25, least=0.3, most=0.3)(jax.random.key(1), codes, CODES, 0, {}, None)
    wrong = np.asarray(seen != codes)
    has = wrong.any(1)
    _within(has.mean(), 0.75, ROWS)
    _within(wrong[has].mean(), 0.3 * (1 - 1 / CODES), has.sum() * CELLS)  # any code, the true one too
    rates = np.asarray(RandomCodes(clean=0.0).chosen(jax.random.key(2), (ROWS, CELLS))).mean(1)
    # Binomial numbers with a rate that is uniform up to 0.2.
    variance = 0.2**2 / 12 + (0.1 - 0.2**2 / 3) / CELLS
    np.testing.assert_allclose(rates.mean(), 0.1, atol=5 * (variance / ROWS) ** 0.5)
    np.testing.assert_allclose(rates.var(), variance, rtol=0.1)


def _learn(bank, state, entries):
    """Learn (true, predicted, ratio) triples in their order, with the definition beside: a list for each ring."""
    true, drawn, ratio = (jnp.asarray([column]) for column in zip(*entries))
    return bank.learn(state, true, drawn, jnp.ones(true.shape, bool), ratio)


@functools.cache
def _filled(num=900, size=5):
    """A bank that learnt in three parts, and the rings that the definition gives."""
    bank, rng, rings = Bank(bins=4, size=size, clean=0.0, least=0.5, most=0.5), np.random.default_rng(0), {}
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), bank.state(CODES))
    learn = jax.jit(functools.partial(_learn, bank))
    for _ in range(3):
        true = rng.choice(CODES, num // 3, p=np.arange(CODES) / sum(range(CODES)))  # nothing of code 0
        drawn = np.where(rng.random(num // 3) < 0.3, true, rng.integers(0, CODES, num // 3))
        ratio = rng.choice([0.3, 0.5, 0.74, 0.75, 1.0], num // 3).astype(np.float32)
        state = learn(state, list(zip(true, drawn, ratio)))
        for t, d, r in zip(true.tolist(), drawn.tolist(), ratio.tolist()):
            if t != d:
                rings.setdefault((min(int(r * 4), 3), t), []).append(d)
    return bank, jax.tree.map(np.asarray, state), rings


def test_a_bank_is_a_ring_of_the_newest_errors_of_each_code_and_bin():
    bank, state, rings = _filled()
    assert state["codes"].shape == (4, CODES, 5) and state["codes"].dtype == np.int32
    for b, code in np.ndindex(4, CODES):
        want = rings.get((b, code), [])
        count = state["count"][b, code]
        assert min(count, 5) == min(len(want), 5) and (count - len(want)) % 5 == 0 and count < 10
        ring = [None] * 5
        for i, wrong in enumerate(want):
            ring[i % 5] = wrong
        assert state["codes"][b, code].tolist() == [wrong or 0 for wrong in ring]


def test_a_bank_gives_errors_of_the_true_code_from_every_bin_alike():
    bank, state, rings = _filled()
    codes = _true()
    seen = np.asarray(bank(jax.random.key(3), codes, CODES, 0, jax.tree.map(jnp.asarray, state), None))
    codes, wrong = np.asarray(codes), seen != np.asarray(codes)
    assert not wrong[codes == 0].any() and not any(code == 0 for _, code in rings)
    _within(wrong[codes != 0].mean(), 0.5, (codes != 0).sum())
    code = 3
    known = [rings[b, code][-5:] for b in range(4) if (b, code) in rings]
    want = sum(np.bincount(ring, minlength=CODES) / len(ring) for ring in known) / len(known)
    found = np.bincount(seen[wrong & (codes == code)], minlength=CODES)
    assert len(known) > 1 and not found[want == 0].any()
    for share, number in zip(want, found):
        _within(number / found.sum(), share, found.sum())


@pytest.mark.parametrize("links", [1, 2, 4])
def test_own_predictions_are_chained_and_stand_where_they_were_made(links):
    """A model that predicts the next code of what it sees, for the first half of the cells."""
    seen_by = []
    hidden = jnp.broadcast_to(jnp.arange(CELLS) < CELLS // 2, (ROWS, CELLS))

    def predict(key, seen):
        seen_by.append(key)
        return seen + 1, hidden

    own, codes = OwnPredictions(links=links, clean=0.0, least=1.0, most=1.0), _true()
    seen = own(jax.random.key(0), codes, CODES, 0, {}, predict)
    np.testing.assert_array_equal(seen, codes + (links - 1) * hidden)
    assert own.passes == links - 1 and len(seen_by) == 1  # one program for all links
    rare = OwnPredictions(links=links, clean=0.0, least=1.0, most=1.0, every=3)
    for step in range(4):
        want = seen if step % 3 == 0 else codes
        np.testing.assert_array_equal(rare(jax.random.key(0), codes, CODES, jnp.int32(step), {}, predict), want)


# Losses and steps of a run -------------------------------------------------------------------------------------------


class FixedNoise(TransformerObjective):
    """Masks that depend on the rows alone. Notes what the model is given."""

    def _corruption(self, layout, batch, key):
        mask_BTC = (batch["tokens"] % 3 == 0).reshape(*batch["tokens"].shape[:2], -1)
        drawn = Corrupted(mask_BTC, mask_BTC.mean(-1), jnp.ones(mask_BTC.shape[:2], bool))
        return drawn, batch["text"][:, -1] % 4 == 0

    def _forward(self, layout, definition, params, batch, drawn, dropped, kernel_key=None, seen=None):
        self.seen = seen
        return super()._forward(layout, definition, params, batch, drawn, dropped, kernel_key, seen)


def _config(errors, **changes):
    small = {
        "model__num_layers": 1,
        "model__scan_layers": False,
        "model__attention": "dense",
        "optimizer__name": "sgd",
        "optimizer__ema_decay": 0.0,
    }
    return tiny.transformer(corruption__errors=errors, **small | changes)


def _empty(objective):
    state = objective.extra_state()
    return state and jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.abstract)


def _loss(errors):
    """The losses of a batch, and the extra state behind it."""
    objective = TransformerObjective(_config(errors))
    params = objective.definition.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, tiny.token_batch(objective.config))
    out = jax.jit(objective.loss)(params, batch, jax.random.key(1), 0, _empty(objective))
    return jax.device_get((out.sum, out.weight, out.metrics)), jax.device_get(out.extra)


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.cache
def _plain():
    return _loss(slot("none"))[0]


@pytest.mark.parametrize(
    "name, settings", [("uniform", {"clean": 1.0}), ("own", {"clean": 1.0}), ("own", {"clean": 0.0, "links": 1})]
)
def test_without_errors_a_loss_is_the_plain_one_bit_for_bit(name, settings):
    _equal(_loss(slot(name, **settings))[0], _plain())


def test_a_bank_that_is_empty_changes_nothing_but_itself():
    losses, extra = _loss(slot("bank", clean=0.0, least=1.0, most=1.0))
    _equal(losses, _plain())
    assert extra["errors"]["count"].sum() > 100


BANK = slot("bank", clean=0.25, least=0.5, most=0.5, size=2)


@pytest.mark.slow
def test_a_bank_goes_through_microbatches_and_comes_back_as_it_was():
    """Four steps at once equal two, a copy of the state through the host, and two more."""
    config = _config(BANK, train__accumulation=2)
    objective, mesh = TransformerObjective(config), sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    optimizer = make_objective_optimizer(objective, config)

    def steps(state, first, last):
        for seed in range(first, last):
            state, _ = step(state, sharding.put_batch(mesh, tiny.token_batch(config, seed=seed)))
        return state

    with jax.set_mesh(mesh):
        step = make_train_step(objective, optimizer, config, mesh)
        kinds = {"seed": 0, "ema": False, "extra": objective.extra_state()}
        start = lambda: create_state(objective.definition, optimizer, mesh, **kinds)
        want = jax.device_get(steps(start(), 0, 4))
        half = steps(start(), 0, 2)
        places = jax.tree.map(lambda x: x.sharding, half)
        _equal(jax.device_get(steps(jax.device_put(jax.device_get(half), places), 2, 4)), want)
    bank = want.extra["errors"]
    assert (bank["count"] > 1).any() and bank["codes"].max() < CODES


def test_two_devices_keep_one_bank():
    """Codes that are split over devices are learnt in the order of the batch, and replaced alike."""
    bank, rng = Bank(bins=2, size=3, clean=0.0, least=1.0, most=1.0), np.random.default_rng(0)
    true, drawn = rng.integers(0, CODES, (2, 8, 200))
    hidden, ratio = rng.random((8, 200)) < 0.7, np.repeat(rng.random((8, 1), np.float32), 200, axis=1)

    def learn(state, true, drawn, hidden, ratio):
        state = bank.learn(state, true, drawn, hidden, ratio)
        return state, bank(jax.random.key(0), true, CODES, 0, state, None)

    found, empty = [], jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), bank.state(CODES))
    for num in (1, 2):
        mesh = sharding.make_mesh(MeshConfig(fsdp=num), jax.devices()[:num])
        with jax.set_mesh(mesh):
            parts = sharding.put_batch(mesh, {"true": true, "drawn": drawn, "hidden": hidden, "ratio": ratio})
            found.append(jax.device_get(jax.jit(learn)(empty, *parts.values())))
    _equal(*found)
    assert (found[0][1] != true).mean() > 0.9


@pytest.mark.parametrize("copies", [1, 2])
def test_wrong_codes_of_a_bank_have_a_loss_and_true_targets(copies):
    """The loss is that of hidden and of wrong codes, whose number the weight is."""
    errors = slot("bank", clean=0.0, least=1.0, most=1.0, size=1, bins=1)
    objective = FixedNoise(_config(errors, sequence__copies=copies))
    batch = jax.tree.map(jnp.asarray, tiny.token_batch(objective.config))
    # A bank that knows of code c that it was taken for c + 1, but for code 7, of which it knows nothing.
    code = jnp.arange(CODES)
    bank = {"codes": ((code + 1) % CODES)[None, :, None], "count": jnp.where(code == 7, 0, 1)[None]}
    true = batch["tokens"].reshape(8, -1)

    def loss(params, batch, bank):
        return objective.loss(params, batch, jax.random.key(0), 0, {"errors": bank}), objective.seen

    params = objective.definition.init(jax.random.key(0))
    loss, seen = jax.jit(loss)(params, batch, bank)
    np.testing.assert_array_equal(seen, jnp.where(true == 7, 7, (true + 1) % CODES))
    assert loss.weight == ((true % 3 == 0) | (true != 7)).sum() > (true % 3 == 0).sum()
    ids = objective.layout.with_codes(objective.layout.assemble(batch["text"], batch["tokens"]), seen)
    of_cells = [ids[:, index] for index in (objective.layout.visual_index, objective.layout.clean_index)[:copies]]
    for cells in of_cells:  # both copies: what is hidden in the noisy one is hidden afterwards
        np.testing.assert_array_equal(cells - objective.layout.vocabulary.visual_start, seen)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UserError, match="'bank' adds wrong codes to the loss[^\n]*$"):
        tiny.transformer(corruption__errors=slot("bank"), loss__text_weight=0.1)
    for settings in ({"clean": 1.5}, {"least": 0.5}, {"size": 0}, {"bins": 0}):
        with pytest.raises(UserError, match="config.corruption.errors: "):
            tiny.transformer(corruption__errors=slot("bank", **settings))
    with pytest.raises(UserError, match="links=0 and every=1 must be at least 1"):
        tiny.transformer(corruption__errors=slot("own", links=0))
