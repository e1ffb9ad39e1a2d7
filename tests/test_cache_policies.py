"""Laws of cache policies that choose single tokens or frames: what is dropped equals what is masked, and nothing grows."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_laws_generation import GRID, setup

from lumos.errors import UserError
from lumos.generation.compress import Compress
from lumos.generation.policy import Window
from lumos.generation.positions import Realigned
from lumos.generation.retrieve import Retrieve
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.model import attention, rope, salience
from lumos.sequence.key_ranges import KeyRanges
from lumos.videos.generator import make_engine

SIZE = GRID[1] * GRID[2]


@pytest.fixture(scope="module")
def run():
    return setup(model__init_std=0.3)


_SESSIONS = {}


def begin(run, cache, positions=None, **settings):
    """Return a session behind its prompt; those of equal settings share their programs."""
    config, objective, params, batch = run
    settings = dataclasses.replace(config.generate, cache=cache, positions=positions or Realigned(), **settings)
    key = id(objective), settings
    if key not in _SESSIONS:
        _SESSIONS[key] = Session(make_engine(config, objective.definition, settings=settings), params)
    session = copy.copy(_SESSIONS[key])
    session.prefill(batch["text"], batch["text_length"], row_keys(1, 2))
    return session


@pytest.mark.parametrize("measure", ["logit_sum", "softmax_mass"])
def test_scores_of_keys_are_column_sums(measure):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, n, h, 32)) for key, n, h in zip(keys, (5, 700, 700), (4, 2, 2)))
    ranges = KeyRanges(jnp.array([[[3], [0]]]), jnp.full((1, 1, 5), 650), jax.random.normal(keys[3], (2, 700)))
    measured = jax.jit(
        lambda: salience.MEASURES[measure](q, k, ranges, attention.attend_parts_lse(q, [(k, v, ranges)])[1])
    )
    logits = jnp.einsum("bqkga,bska->bqkgs", q.reshape(2, 5, 2, 2, 32), k)
    if measure == "logit_sum":
        want = logits.sum((1, 2, 3))
    else:
        logits = logits / 32**0.5 + ranges.bias_BS[:, None, None, None]
        want = jax.nn.softmax(jnp.where(ranges.dense(700)[:, :, None, None], logits, -jnp.inf)).sum((1, 2, 3))
        np.testing.assert_allclose(want.sum(-1), 20, rtol=1e-5)
    np.testing.assert_allclose(measured(), want, atol=1e-4 * np.abs(want).max())


@pytest.fixture(scope="module")
def window(run):
    return [np.asarray(x) for x in begin(run, Window(width=4, sink=1)).frames(7)]


ALL = Compress(width=4, sink=1, budget=2, recent=1, score="softmax_mass")


def test_compressing_nothing_is_the_window(run, window):
    """Where every candidate is kept, codes are bitwise those of a window; where fewer are, they are not."""
    np.testing.assert_array_equal(window, list(begin(run, ALL).frames(7)))
    fewer, sizes, frames = begin(run, Compress(width=4, sink=1, budget=1, recent=1)), set(), []
    for frame in fewer.frames(7):
        frames.append(frame)
        sizes.add(fewer.num_bytes)
    np.testing.assert_array_equal(window[:4], frames[:4])
    assert not (window[4] == frames[4]).all() and len(sizes) == 1 and fewer.num_programs == 1


@pytest.fixture(scope="module")
def full(run):
    """A cache of four frames before it is compressed, with its scores: that of a policy that keeps all."""
    session = begin(run, ALL)
    list(session.frames(4))
    return session


def compressed(full, budget=1):
    policy, view = dataclasses.replace(ALL, budget=budget), full._engine.view
    return jax.jit(policy.settle, static_argnums=1)(full.state.cache, view)


def test_the_best_tokens_are_kept(full):
    """Against an argsort of every layer and row; they keep rows, columns and keys, and stand before the newest frame."""
    before, after = full.state.cache, compressed(full)
    first = full._engine.layout.prefix_length + SIZE
    score = np.asarray(before.score[:, :, 0, first : first + 2 * SIZE])
    assert (score > 0).all()
    best = first + np.sort(np.argsort(-score, axis=-1, kind="stable")[..., :SIZE], axis=-1)
    kept = slice(first, first + SIZE)
    for name in ("y", "x"):
        want = np.take_along_axis(np.asarray(getattr(before.tokens, name)), best, -1)
        np.testing.assert_array_equal(getattr(after.tokens, name)[..., kept], want)
    np.testing.assert_array_equal(
        after.k[:, :, kept], np.take_along_axis(np.asarray(before.k), best[..., None, None], 2)
    )
    np.testing.assert_array_equal(after.tokens.t[first - SIZE : first + 2 * SIZE], np.repeat([0, 2, 3], SIZE))
    assert int(after.count) == int(before.count) - SIZE and not (best == best[:1, :1]).all()


def test_what_is_dropped_is_masked(run, full):
    """Hidden states over the compressed cache, against dense attention over all keys with those dropped masked, layer by layer."""
    _, objective, params, _ = run
    engine, state, model = full._engine, full.state, objective.definition.bind(params)
    before, after = state.cache, compressed(full)
    state = state._replace(cache=after)
    ids = jnp.broadcast_to(engine.layout.vocabulary.mask, (2, SIZE))
    tokens = engine.groups.tokens(state.group)
    got = np.asarray(
        jax.jit(lambda state: engine._open(model, state, state.group[None])[2](ids, jnp.ones((1, SIZE)))[0])(state)
    )

    view, c = engine.view, model.config
    now = tokens.t[0]
    prefix, rows = engine.layout.prefix_length, len(state.first_R)
    score = np.asarray(before.score[:, :, 0, prefix + SIZE : prefix + 3 * SIZE])
    rank = np.argsort(np.argsort(-score, axis=-1, kind="stable"), axis=-1)
    kept = np.ones(before.score.shape[:2] + (before.num_slots,), bool)
    kept[..., prefix + SIZE : prefix + 3 * SIZE] = rank < SIZE
    time = np.broadcast_to(np.asarray(before.tokens.t), kept.shape).copy()
    time[..., prefix + SIZE : prefix + 3 * SIZE] = 2  # the one frame before the newest, 3
    times_later = time - np.asarray(before.tokens.t)

    @jax.jit
    def dense():
        place = lambda tokens: view.place(tokens, state.first_R, after.tokens, after.used_S, now)
        moved = view.groups.moved(before.tokens, times_later)
        cos, sin = rope.mm_rope(place(tokens), c.head_dim, c.rope_theta, c.rope)
        cos_k, sin_k = rope.mm_rope(place(moved), c.head_dim, c.rope_theta, c.rope)
        k_all = rope.rotate(before.k, cos_k, sin_k)
        x = model.embed_tokens[...][view.rows(ids)]
        graph, stacked = nnx.split(model.layers)
        ends = np.arange(before.num_slots + SIZE)
        for layer in range(c.num_layers):
            block = nnx.merge(graph, jax.tree.map(lambda a, layer=layer: a[layer], stacked))
            attend = block.self_attn
            h = block.input_layernorm(x)
            split = lambda y, heads: y.reshape(rows, SIZE, heads, c.head_dim)
            q, k, v = (split(p(h), n) for p, n in ((attend.q_proj, 2), (attend.k_proj, 1), (attend.v_proj, 1)))
            q, k = (rope.rotate(norm(y), cos, sin) for norm, y in ((attend.q_norm, q), (attend.k_norm, k)))
            keys, values = jnp.concatenate([k_all[layer], k], 1), jnp.concatenate([before.v[layer], v], 1)
            seen = np.concatenate([kept[layer], np.ones((rows, SIZE), bool)], 1) & (
                ends >= np.asarray(state.first_R)[:, None]
            )
            whole = KeyRanges(
                jnp.zeros((1, 1, SIZE), int), jnp.full((1, 1, SIZE), len(ends)), jnp.where(seen, 0.0, -1e30)
            )
            out = attention.dense(q, keys, values, whole).reshape(rows, SIZE, -1)
            x = x + attend.o_proj(out)
            x = x + block.mlp(block.post_attention_layernorm(x))
        return model.norm(x)

    want = np.asarray(dense())
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(got[: rows // 2] - got[rows // 2 :]).max() > 1e-3


def test_bringing_back_everything_is_keeping_everything(run, window):
    """All that is remembered: of the first four frames the full cache, then the window that drops as they are forgotten."""
    np.testing.assert_array_equal(window, list(begin(run, Retrieve(width=4, sink=1, recent=1, most=2)).frames(7)))


@pytest.fixture(scope="module")
def recalling(run):
    """A session that remembers seven frames, and has made them; it sees four."""
    session = begin(run, Retrieve(width=7, sink=1, recent=1, most=2))
    sizes = set()
    for _ in session.frames(9):
        sizes.add(session.num_bytes)
    assert len(sizes) == 1 and session.num_programs == 1
    return session


def masses(cache, prefix):
    """Mass of the older frames 1 to 5 of 7 in each row, in NumPy."""
    mean = np.asarray(cache.k[:, :, prefix:], np.float64).reshape(2, -1, 7, SIZE, 1, 32).mean(3)[..., 0, :]
    logits = np.einsum("lrfa,lra->lrf", mean, mean[:, :, -1])[:, :, 1:-1] / 32**0.5
    p = np.exp(logits)
    return (p / p.sum(-1, keepdims=True)).mean(0)


@pytest.mark.parametrize("mass, most", [(1.0, 2), (0.5, 5), (0.2, 1)])
def test_the_likest_frames_are_brought_back(recalling, mass, most):
    """The fewest frames that reach a mass, each row its own; they have the times of those before the newest one."""
    cache, prefix = recalling.state.cache, recalling._engine.layout.prefix_length
    policy = Retrieve(width=7, sink=1, recent=1, most=most, mass=mass)
    seen, bias = jax.jit(policy.recall, static_argnums=1)(cache, recalling._engine.view)
    times = np.asarray(seen.tokens.t[prefix::SIZE])
    np.testing.assert_array_equal(times, [0, *range(8 - most, 9)])
    assert int(seen.count) == prefix + (2 + most) * SIZE
    for row, mass_F in enumerate(masses(cache, prefix)):
        order = np.argsort(-mass_F)
        num = min(most, 1 + int((np.cumsum(mass_F[order]) < mass).sum()))
        chosen = [0, *(1 + np.sort(order[:num])), 6]
        hidden = np.asarray(bias[row, prefix::SIZE]) < -1e29
        assert hidden.sum() == most - num
        slots = prefix + np.array(chosen)[:, None] * SIZE + np.arange(SIZE)
        got = np.asarray(seen.v[:, row, prefix:]).reshape(2, 2 + most, SIZE, 1, 32)[:, ~hidden]
        np.testing.assert_array_equal(got, np.asarray(cache.v[:, row])[:, slots])


def test_what_does_not_go_together_is_said(run):
    config, objective, _, _ = run
    with pytest.raises(ValueError, match="must fit into width=4"):
        Compress(width=4, sink=2, budget=2, recent=1)
    with pytest.raises(ValueError, match="mass=0 must lie in"):
        Retrieve(mass=0)
    with pytest.raises(ValueError, match="allowed: logit_sum, softmax_mass"):
        Compress(score="entropy")
    settings = dataclasses.replace(config.generate, cache=Compress())
    with pytest.raises(UserError, match="undo=1: tokens that the cache 'compress' has dropped"):
        make_engine(config, objective.definition, settings=settings, undo=1)
