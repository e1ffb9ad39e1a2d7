"""Samplers that keep cells by their place or their entropy, or look ahead: their laws, alone and in the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny

from lumos.generation.orders import Entropy, Halton
from lumos.generation.passes import Cells
from lumos.generation.plan import cosine
from lumos.generation.sampler import Confidence, Noise, choose, row_keys
from lumos.generation.time_travel import TimeTravel
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine


@pytest.fixture(scope="module")
def first_round():
    """Codes of the first frame behind some passes, and how often the model was run for it."""
    _, _, params, batch = small.model()
    state = jax.jit(lambda: small.engine().prefill(params, *small.text(), batch["tokens"], row_keys(1, 2), 0))()

    def program(sampler, passes):
        engine = small.engine(sampler=sampler)
        state_after, codes = jax.jit(lambda: engine.round(params, state, np.array(passes)[:, None]))()
        return np.asarray(codes), int(state_after.forwards)

    return program


def test_the_order_of_halton_is_that_of_its_points():
    """The first points are (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), (3/8, 2/9); (7/8, 5/9)."""
    y, x = (axis.reshape(-1) for axis in np.indices((4, 4)))
    order = Halton().order(0 * y, y, x)
    first = np.argsort(order)[:7]
    np.testing.assert_array_equal(
        np.stack([y, x])[:, first].T, [(2, 1), (1, 2), (3, 0), (0, 1), (2, 3), (1, 0), (3, 2)]
    )
    t, y, x = (axis.reshape(-1) for axis in np.indices((3, 5, 7)))
    for cells in (np.arange(105), np.flatnonzero((t + y + x) % 2)):  # any set of cells, several frames too
        order = Halton().order(t[cells] + 4, y[cells], x[cells] + 2)
        np.testing.assert_array_equal(np.sort(order), np.arange(len(cells)))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_halton_keeps_what_follows_in_its_order(eta):
    """One stretch of the order is kept, the first one; with eta, one that begins anywhere, and others in every pass."""
    y, x = (axis.reshape(-1) for axis in np.indices((8, 8)))
    sampler, known, kept = Halton(eta=eta), jnp.zeros((2, 64), bool), []
    order = sampler.order(0 * y, y, x)
    for step, num in enumerate(cosine(64, 6)):
        noise = jax.random.gumbel(jax.random.key(step), (2, 64))
        known = sampler(Noise(None, lambda noise=noise: noise), jnp.zeros((2, 64)), known, num, 0.0, order)
        in_order = np.asarray(known)[:, np.argsort(order)]
        begins = (in_order & ~np.roll(in_order, 1, axis=1)).sum(1)
        assert (in_order.sum(1) == 64 - num).all() and (begins <= 1).all()
        kept.append(in_order[:, 0])
    assert np.mean(kept) < 1 if eta else np.all(kept)


def test_entropy_is_that_of_the_distribution():
    logits = 3 * jax.random.normal(jax.random.key(0), (5, 30))
    gumbel = jax.random.gumbel(jax.random.key(1), (5, 30))
    codes, score = Entropy().choose(logits, gumbel, 0, 1.0)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    np.testing.assert_allclose(score, (p * np.log(p)).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(codes, choose(logits, gumbel)[0])


def test_padding_is_never_hidden():
    """Of groups of one, two and one cells, each of which hides one cell again."""
    config = tiny.transformer(
        sequence__grid=(1, 2, 2), sequence__layout=slot("planes"), generate__sampler=slot("halton", eta=1.0)
    )
    passes, groups = make_engine(config, TransformerObjective(config).definition).passes, jnp.arange(3)
    begun = passes.begin(row_keys(1, 2), groups, jnp.full((2, 4), -1))
    assert begun.known[0].tolist() == [[False, True], [False, False], [False, True]]
    drawn = begun._replace(known=jnp.ones_like(begun.known), log_p=jnp.where(begun.known, begun.log_p, -1.0))
    kept = jax.jit(lambda: passes.at(row_keys(1, 2), groups, 0 * groups, 0).keep(drawn).known)()
    assert (kept >= begun.known).all() and ((~kept).sum(-1) == 1).all()


def test_looking_ahead_finds_what_comes(first_round):
    """A pass that looks ahead to the end finds the codes that are there without it; every look costs a pass."""
    codes, forwards = first_round(Confidence(eta=1.0), [0, 1])
    assert forwards == 3  # two passes, and one that is written
    found, forwards = first_round(TimeTravel(eta=1.0), [0])
    np.testing.assert_array_equal(found, codes)
    assert forwards == 3


def test_how_far_is_looked():
    """Passes 0, 2 and 4 of 5 look, the last one in vain; what was known stays as it was."""
    seen = []

    class Now:
        def keep(self, cells):
            return cells

    def step(cells, pass_W):
        jax.debug.callback(lambda p: seen.append(int(p)), pass_W[0])
        return cells._replace(codes=cells.codes + 1, known=jnp.ones_like(cells.known)), None

    known = jnp.array([[[True, False]]])
    cells = Cells(codes=jnp.array([[[5, 0]]]), known=known, fixed=~known & known, log_p=jnp.zeros((1, 1, 2)))
    for p, ahead in enumerate([[1, 2], [], [3, 4], [], []]):
        found, num = TimeTravel(ahead=2, every=2).look_ahead(step, Now(), cells, cells, jnp.array([p]), 5)
        jax.effects_barrier()
        assert int(num) == len(ahead) and seen == ahead
        assert found.codes[0, 0].tolist() == [5, len(ahead)] and found.known[0, 0].tolist() == [True, False]
        seen.clear()
    assert TimeTravel(ahead=0).look_ahead(None, None, None, cells, None, 5) == (cells, 0)
