"""Linear attention: sums in place of a cache. What they hold is what attention over all tokens gives, and they do not grow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recompute import Recompute
from test_cache_policies import begin
from test_laws_generation import decode, setup

from lumos.errors import UserError
from lumos.generation.compress import Compress
from lumos.generation.guidance import TextAndHistory
from lumos.generation.policy import FullCache, Window
from lumos.generation.positions import Absolute, Realigned, Relative
from lumos.generation.sampler import row_keys
from lumos.model import linear, rope
from lumos.sequence.key_ranges import KeyRanges, StaticRanges
from lumos.sequence.tokens import Positions
from lumos.slots import slot
from lumos.videos.generator import make_engine


@pytest.fixture(scope="module")
def endless():
    return setup(model__mixer=slot("linear"), model__init_std=0.3)


@pytest.fixture(scope="module")
def turns():
    return setup(model__mixer=slot("linear", every=2), model__init_std=0.3)


def places(t, later=0):
    """Positions of text (t = -1) and of cells of a column, so many frames later."""
    t, index = np.asarray(t), np.arange(len(t))
    return Positions(index, 4 * (t + later) + 3, 8 * (index % 3), 0 * t + 3, (t >= 0).astype(np.int32))


def inputs(num=15):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (2, num, heads, 32)) for key, heads in zip(keys, (4, 2, 2))]


def test_sums_over_groups_are_the_quadratic_formula():
    """Text token by token, then frames of three; one row without its first two tokens."""
    (q, k, v), end = inputs(), np.array([1, 2, 3, *np.repeat([6, 9, 12, 15], 3)])
    static = StaticRanges(np.zeros((1, 15)), end[None])
    assert static.runs == ((3, 1), (4, 3)) and StaticRanges(np.ones((1, 3)), np.full((1, 3), 3)).runs is None
    cos, sin = rope.mm_rope(places([-1, -1, -1, *np.repeat(np.arange(4), 3)]), 32)
    keys = KeyRanges.of(static, jnp.array([0, 2]))
    got, sums = jax.jit(linear.attend)(q, k, v, cos, sin, keys)
    feature = lambda x: np.maximum(np.asarray(x, np.float64), 0)
    rotated = lambda x: np.asarray(rope.rotate(jnp.asarray(feature(x), jnp.float32), cos, sin), np.float64)
    seen = np.asarray(keys.dense(15))[:, :, None]
    repeat = lambda x: np.repeat(x, 2, axis=2)
    top = np.einsum("bqna,bsna->bqns", rotated(q), repeat(rotated(k))) * seen
    below = (np.einsum("bqna,bsna->bqns", feature(q), repeat(feature(k))) * seen).sum(-1)
    want = np.einsum("bqns,bsna->bqna", top, repeat(np.asarray(v, np.float64))) / np.maximum(below, 1e-6)[..., None]
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    assert (np.asarray(got)[1, :2] == 0).all()
    # In two parts, the second of which has the sums of the first.
    head, tail = slice(0, 9), slice(9, 15)
    part = lambda x, at: x[:, at]
    first = KeyRanges.of(StaticRanges(np.zeros((1, 9)), end[None, :9]), jnp.array([0, 2]))
    second = KeyRanges.of(StaticRanges(np.zeros((1, 6)), end[None, 9:] - 9), None)

    @jax.jit
    def parts():
        _, past = linear.attend(*(part(x, head) for x in (q, k, v)), cos[head], sin[head], first)
        rest, own = linear.attend(*(part(x, tail) for x in (q, k, v)), cos[tail], sin[tail], second, past)
        return rest, past + own

    rest, both = parts()
    assert np.abs(rest - want[:, 9:]).max() <= 1e-6 * np.abs(want).max()
    for a, b in zip(both, sums):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_one_rotation_moves_all_that_was_summed(endless):
    config, (q, k, v) = endless[0].model, inputs()
    keys, t = KeyRanges.of(StaticRanges(np.zeros((1, 15)), np.full((1, 15), 15)), None), np.repeat(np.arange(5), 3)
    tables = [rope.mm_rope(places(t, d), 32, config.rope_theta, config.rope) for d in (0, -7)]
    before, after = (jax.jit(linear.attend)(q, k, v, *table, keys)[1] for table in tables)
    moved = jax.jit(lambda sums: linear.moved(sums, jnp.int32(-7), jnp.int32(-7 * 3), config))(before)
    assert np.abs(moved.kv - after.kv).max() <= 1e-5 * np.abs(after.kv).max() < np.abs(before.kv - after.kv).max()
    np.testing.assert_array_equal(moved.k, after.k)


@pytest.mark.fast("endless")
@pytest.mark.parametrize("name", ["endless", "turns"])
def test_generation_equals_recomputing_everything(name, request):
    run = request.getfixturevalue(name)
    config, objective, params, batch = run
    oracle = Recompute(config, objective.definition)
    want = oracle(params, batch["text"], batch["text_length"], jnp.asarray(batch["tokens"]), row_keys(1, 2), 1)
    np.testing.assert_array_equal(decode(run, given=1), want)


def test_it_learns(endless):
    _, objective, params, batch = endless
    gradient = jax.jit(jax.grad(lambda params: objective.loss(params, batch, jax.random.key(0)).sum))(params)
    norms = [float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient["layers"]["self_attn"])]
    assert np.isfinite(norms).all() and min(norms) > 0


def test_an_endless_video_keeps_its_size_and_all_it_has_seen(endless):
    """The cache policy drops slots that only layers with softmax have: the state has the same shapes after any frame."""
    session = begin(endless, Window(width=1, sink=0), Relative(horizon=4))
    other = begin(endless, FullCache(), Absolute())
    np.testing.assert_array_equal(list(session.frames(4)), list(other.frames(4)))
    size, shapes = session.num_bytes, lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    list(session.frames(6))
    # Frame 10,000, and by induction any other.
    state = session.state._replace(group=jnp.int32(10_000))
    state = state._replace(cache=state.cache._replace(shift=jnp.int32(4 - 9_999)))
    after, codes = session._programs.next_frame(session.params, state, ())
    assert shapes(after) == shapes(state) and session.num_bytes == size == after.cache.num_bytes
    assert int(after.cache.shift) == 4 - 10_000 and np.isfinite(after.cache.sums.kv).all() and session.num_programs == 1
    # Two layers, four rows, one head of 32: sums of keys times values, and of keys; the rest is the table of tokens.
    assert size == 2 * 4 * (32 * 32 + 32) * 4 + (11 * (6 + 16) + 2) * 4
    text = endless[3]["text"], endless[3]["text_length"]
    for what, call in {
        "switch how='keep'": lambda: session.switch(*text, "keep"), "switch how='flush'": lambda: session.switch(*text, "flush"),
        "recache behind dropped frames": lambda: session.switch(*text), "rewind": lambda: session.rewind(0),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=f"{what}: layers with linear attention keep sums"):
            call()


def test_what_sums_cannot_do_is_said(endless):
    config, objective, *_ = endless
    for match, change in {
        "not with cache 'compress'": {"cache": Compress()}, "cannot leave out the history": {"guidance": TextAndHistory()},
        "positions 'realigned' move frames apart": {"positions": Realigned()}, "horizon of at least 4": {"positions": Relative(horizon=3)},
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=match):
            make_engine(config, objective.definition, settings=dataclasses.replace(config.generate, **change))
    with pytest.raises(UserError, match="need config.sequence.attention='causal' without decay, not 'window'"):
        setup(model__mixer=slot("linear"), sequence__attention=slot("window"))
    with pytest.raises(UserError, match="must be a multiple of 3: layers take turns"):
        setup(model__mixer=slot("linear", every=3))
