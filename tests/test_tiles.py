"""Tiles of queries that see few keys compute what a mask does, and little more."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.model import attention, tiled_attention
from lumos.sequence.blocks import Blocks
from lumos.sequence.key_ranges import KeyRanges, StaticRanges
from lumos.sequence.tiles import tiles

TEXT, FRAMES, CELLS = 5, 5, 24
LENGTH = TEXT + FRAMES * CELLS


def _frames(see, sink=0):
    """Causal text; a frame sees the text, first frames and so many of its newest, its own included."""
    query = np.arange(LENGTH)
    frame = (query - TEXT) // CELLS
    of_text = query < TEXT
    first = np.maximum(frame - see + 1, min(sink, FRAMES)) * CELLS + TEXT
    start = np.stack([np.zeros(LENGTH, int), np.where(of_text, 0, first)])
    head = np.minimum(TEXT + sink * CELLS, (frame + 1) * CELLS + TEXT)
    end = np.stack([np.where(of_text, query + 1, head), np.where(of_text, 0, (frame + 1) * CELLS + TEXT)])
    return StaticRanges(start, np.where(start < end, end, start))


def _blind():
    """A frame sees itself, and the text nothing."""
    rule = _frames(1)
    see_B = np.arange(LENGTH) >= TEXT
    return StaticRanges(rule.start_RQ[1:], np.where(see_B, rule.end_RQ[1:], rule.start_RQ[1:]))


def _columns():
    """A cell sees the text and itself in frames so far, counted with cells in the order (cell, frame)."""
    order = np.concatenate([np.arange(TEXT), TEXT + np.arange(FRAMES * CELLS).reshape(FRAMES, CELLS).T.ravel()])
    place = np.argsort(order)
    start = np.stack([np.zeros(LENGTH, int), np.where(place < TEXT, 0, TEXT + (place - TEXT) // FRAMES * FRAMES)])
    end = np.stack([np.minimum(place + 1, TEXT), np.where(place < TEXT, 0, place + 1)])
    return StaticRanges(start, end, order)


RULES = {
    "causal": _frames(9),
    "frame": _frames(1),
    "window": _frames(3),
    "sink": _frames(2, sink=1),
    "columns": _columns(),
    "blind": _blind(),
}


def _tiles(static, block):
    return tiles(static, Blocks(block, block))


@pytest.mark.parametrize("name", RULES)
def test_every_visible_pair_is_computed_once(name):
    static = RULES[name]
    found = _tiles(static, 64)
    order = np.arange(LENGTH) if static.order_S is None else static.order_S
    seen = np.asarray(KeyRanges.of(static, None).dense(LENGTH))[0][order][:, order]
    computed = np.zeros((LENGTH + 1, LENGTH + 1), int)
    for group in found.groups:
        np.add.at(computed, (group.query_NQ[:, :, None], group.key_NS[:, None]), 1)
        computed[np.ix_(group.query_NQ.ravel(), np.arange(group.prefix))] += 1
    assert (computed[:LENGTH, :LENGTH] <= 1).all() and (computed[:LENGTH, :LENGTH] >= seen).all()
    queries = np.concatenate([group.query_NQ.ravel() for group in found.groups])
    np.testing.assert_array_equal(queries[found.place_Q], np.arange(LENGTH))
    assert sum(group.pairs for group in found.groups) < 2.5 * seen.sum()


def test_tiles_are_frames_or_columns_and_nothing_is_gathered_that_all_see():
    shapes = lambda name: [(x.prefix, x.query_NQ.shape, x.key_NS.shape) for x in _tiles(RULES[name], 64).groups]
    assert all(num_keys == 0 for *_, (_, num_keys) in shapes("causal"))
    assert shapes("frame") == [(TEXT, (1, TEXT), (1, 0)), (TEXT, (FRAMES, CELLS), (FRAMES, CELLS))]
    prefix, (_, queries), (_, keys) = shapes("columns")[-1]
    assert (prefix, queries % FRAMES) == (TEXT, 0) and queries == keys


def test_what_sees_most_keys_keeps_blocks():
    end = np.arange(1, LENGTH + 1)[None]
    assert _tiles(StaticRanges(0 * end, end), 64) is None
    assert _tiles(StaticRanges(0 * end, np.full_like(end, LENGTH)), 64) is None
    assert _tiles(RULES["frame"], 8) is None  # small blocks waste as little


@pytest.mark.parametrize(
    "name, bias_rows, most_logits",
    [
        ("causal", 0, 2000),
        ("causal", 2, 2**20),
        ("frame", 0, 2**20),
        ("window", 1, 2000),
        ("sink", 2, 2**20),
        ("blind", 0, 2**20),
        ("columns", 0, 2000),
        ("columns", 2, 2**20),
    ],
)
def test_tiles_equal_dense_with_gradients(name, bias_rows, most_logits):
    static, found = RULES[name], _tiles(RULES[name], 64)
    random = jax.random.split(jax.random.key(0), 5)
    q, weight = (jax.random.normal(key, (2, LENGTH, 4, 8)) for key in random[:2])
    k, v = (jax.random.normal(key, (2, LENGTH, 2, 8)) for key in random[2:4])
    bias = jax.random.normal(random[4], (bias_rows, LENGTH)) if bias_rows else None
    keys = KeyRanges.of(static, jnp.array([0, 3]))
    order = np.arange(LENGTH) if static.order_S is None else static.order_S

    def by_tiles(q, k, v, bias):
        q, k, v = (x[:, order] for x in (q, k, v))
        bias = None if bias is None else bias[:, order]
        start, end = keys.start_RBQ[..., order], keys.end_RBQ[..., order]
        return tiled_attention.attend(q, k, v, start, end, bias, found, most_logits)[:, np.argsort(order)]

    def dense(q, k, v, bias):
        return attention.dense(q, k, v, KeyRanges.of(static, jnp.array([0, 3]), bias))

    def run(attend):
        loss = lambda *x: ((out := attend(*x)) * weight).sum() + (out**2).sum()
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(q, k, v, bias))

    for got, want in zip(run(by_tiles), run(dense)):
        np.testing.assert_allclose(got, want, atol=5e-5, rtol=1e-5)


def test_attention_takes_tiles_where_they_pay(monkeypatch):
    calls, attend = [], tiled_attention.attend
    monkeypatch.setattr(tiled_attention, "attend", lambda *x: calls.append(x) or attend(*x))
    x = jnp.ones((1, LENGTH, 1, 8))
    for block, kernel, number in ((64, "flash", 0), (LENGTH, "auto", 0), (64, "auto", 1)):
        monkeypatch.setattr(attention, "_most_per_block", lambda num_heads, block=block: (block, block))
        jax.eval_shape(partial(attention.attend, kernel=kernel), x, x, x, KeyRanges.of(RULES["columns"], None))
        assert len(calls) == number
