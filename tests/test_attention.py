import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos import sharding
from lumos.config import MeshConfig
from lumos.model import attention
from lumos.sequence.blocks import best_blocks
from lumos.sequence.key_ranges import KeyRanges, StaticRanges
from lumos.sequence.storage import Storage


def _operands(length=37, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    q, weight = (jax.random.normal(key, (2, length, 4, 32)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, length, 2, 32)) for key in keys[2:])
    return q, k, v, weight


def _frames(length=37, block=9):
    """Frame-causal ranges, with rows that begin at different keys."""
    end = np.minimum((np.arange(length) // block + 1) * block, length)[None]
    return KeyRanges.of(StaticRanges(np.zeros_like(end), end), jnp.array([0, 5]))


def _ranges(num_ranges, length=37):
    """Up to three disjoint ranges a query: a window that ends with it, a sink, and some keys ahead of it."""
    query = np.arange(length)
    ranges = [
        (np.maximum(query - 6, 4), query + 1),
        (np.zeros(length, int), np.minimum(query + 1, 4)),
        (query + 3, query + 8),
    ]
    start, end = (np.stack([r[i] for r in ranges[:num_ranges]]) for i in range(2))
    return StaticRanges(start, np.minimum(end, length))


def _bias(rows, length=37):
    return jax.random.normal(jax.random.key(7), (rows, length))


def _run(kernel, operands, keys):
    """Return the output and the gradients of queries, keys, values and, if there is one, the bias."""
    *qkv, weight = operands

    def loss(q, k, v, bias):
        keys_of = KeyRanges(keys.start_RBQ, keys.end_RBQ, bias, keys.first_B, keys.static, keys.num_chunks)
        out = attention.attend(q, k, v, keys_of, kernel)
        return (out * weight).sum(), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(*qkv, keys.bias_BS)
    return jax.tree.leaves((out, grads))


def _assert_same(got, want, atol=2e-5):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("num_ranges, bias_rows", [(1, 0), (2, 0), (3, 0), (1, 2), (2, 1), (3, 2)])
def test_flash_equals_dense_with_gradients(monkeypatch, num_ranges, bias_rows):
    keys = KeyRanges.of(_ranges(num_ranges), jnp.array([0, 5]), _bias(bias_rows) if bias_rows else None)
    want = _run("dense", _operands(), keys)
    assert len(want) == (5 if bias_rows else 4)
    for block_size in (8, 16, 512):
        monkeypatch.setattr(attention, "_BLOCK", block_size)
        _assert_same(_run("flash", _operands(), keys), want)


def test_one_range_that_begins_where_the_row_does(monkeypatch):
    want = _run("dense", _operands(), _frames())
    monkeypatch.setattr(attention, "_BLOCK", 16)
    _assert_same(_run("flash", _operands(), _frames()), want)


def test_ranges_are_a_union():
    first = np.array([0, 5])
    static = _ranges(3)
    key = np.arange(37)
    want = np.zeros((2, 37, 37), bool)
    for start, end in zip(static.start_RQ, static.end_RQ):
        want |= (key >= start[:, None]) & (key < end[:, None]) & (key >= first[:, None, None])
    np.testing.assert_array_equal(KeyRanges.of(static, jnp.array(first)).dense(37), want)


def test_a_query_without_keys_returns_zero_and_finite_gradients():
    q, k, v, _ = _operands()
    keys = _frames()
    empty = KeyRanges(keys.end_RBQ, keys.end_RBQ)
    out, grad = jax.value_and_grad(lambda q: attention.attend(q, k, v, empty).sum())(q)
    assert out == 0 and not np.asarray(grad).any()


@pytest.mark.parametrize("kernel, block_size", [("flash", 8), ("flash", 512), ("dense", 512)])
def test_a_hidden_key_is_a_removed_one(monkeypatch, kernel, block_size):
    """Keys of bias -1e30 might as well not be there, and a query that sees no others returns zeros."""
    monkeypatch.setattr(attention, "_BLOCK", block_size)
    q, k, v, weight = _operands()
    static = _ranges(2)
    hidden = np.arange(37) % 3 == 0
    bias = jnp.where(hidden, -1e30, _bias(1))
    out, *grads = _run(kernel, (q, k, v, weight), KeyRanges.of(static, None, bias))
    kept = np.flatnonzero(~hidden)
    before = np.concatenate([[0], np.cumsum(~hidden)])  # a bound between keys, counted in kept keys
    fewer = KeyRanges.of(StaticRanges(before[static.start_RQ], before[static.end_RQ]), None, bias[:, kept])
    want, *want_grads = _run(kernel, (q, k[:, kept], v[:, kept], weight), fewer)
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert not np.asarray(out[:, 0]).any()  # its only key is hidden
    np.testing.assert_allclose(grads[0], want_grads[0], atol=2e-5)
    for grad, want_grad in zip(grads[1:], want_grads[1:]):
        assert not np.asarray(grad[:, hidden]).any()
        np.testing.assert_allclose(grad[:, kept], want_grad, atol=2e-5)


def test_a_decay_over_time_is_a_number_a_key():
    """The part of slope * (t_k - t_q) that belongs to the query cancels in the softmax."""
    q, k, v, _ = _operands()
    static, slope, t = _ranges(2), 0.3, jnp.arange(37) // 5
    got = attention.attend(q, k, v, KeyRanges.of(static, None, slope * t[None].astype(jnp.float32)), "flash")
    logits = jnp.einsum("bqkga,bska->bkgqs", q.reshape(2, 37, 2, 2, 32), k) / 32**0.5
    logits += slope * (t[None] - t[:, None])
    mask = KeyRanges.of(static, None).dense(37)[0]
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
    want = jnp.einsum("bkgqs,bska->bqkga", weights, v).reshape(q.shape)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("num_ranges, biased", [(1, False), (3, True)])
def test_nothing_of_the_size_of_a_mask_is_built(num_ranges, biased):
    length = 4096
    static = _ranges(num_ranges, length)
    bias = jnp.zeros((1, length)) if biased else None

    def loss(q, k, v, bias):
        return attention.attend(q, k, v, KeyRanges.of(static, jnp.array([3]), bias), "flash").sum()

    q = k = v = jnp.zeros((1, length, 1, 8))
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v, bias)
    sizes = list(_sizes(jaxpr.jaxpr))
    assert max(sizes) < length**2 / 8
    block = best_blocks(static, *attention._most_per_block(1))
    assert block.queries * block.keys in sizes  # the walk reaches the loop over blocks


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (out.aval.size for out in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from _sizes(getattr(inner, "jaxpr", inner))


def _axial(frames, cells):
    """Attention over time for tokens stored frame by frame: causal, each cell on its own, in the order (cell, frame)."""
    order = np.arange(frames * cells).reshape(frames, cells).T.reshape(-1)
    t, cell = np.divmod(np.arange(frames * cells), cells)
    start, end = (cell * frames)[None], (cell * frames + t + 1)[None]
    visible = (cell[:, None] == cell[None]) & (t[None] <= t[:, None])
    return StaticRanges(start, end, order), visible


def test_ranges_in_another_order(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 8)
    static, visible = _axial(6, 7)
    keys = KeyRanges.of(static, None, _bias(2, 42))
    np.testing.assert_array_equal(keys.dense(42)[0], visible)
    operands = _operands(42)
    _assert_same(_run("flash", operands, keys), _run("dense", operands, keys))
    q, k, v, _ = operands
    few = KeyRanges(keys.start_RBQ[..., 3:9], keys.end_RBQ[..., 3:9], keys.bias_BS, static=static)
    got = attention.attend(q[:, 3:9], k, v, few, "flash")
    np.testing.assert_allclose(got, attention.attend(q, k, v, keys, "dense")[:, 3:9], atol=1e-5)


def test_queries_in_the_order_of_the_keys_visit_few_blocks(monkeypatch):
    """A block of queries holds whole columns, and so sees the blocks of its own keys alone."""
    monkeypatch.setattr(attention, "_most_per_block", lambda num_heads: (8, 8))
    static, _ = _axial(8, 8)
    visited = []
    loop = jax.lax.fori_loop
    count = lambda first, last, body, carry: (
        jax.debug.callback(lambda n: visited.append(int(n)), last - first),
        loop(first, last, body, carry),
    )[1]
    monkeypatch.setattr(jax.lax, "fori_loop", count)
    q, k, v, _ = _operands(64)
    attention.attend(q, k, v, KeyRanges.of(static, None), "flash").block_until_ready()
    jax.effects_barrier()
    assert visited == [1] * 8


@pytest.mark.parametrize("bias_rows, order", [(1, False), (2, True)])
def test_a_mesh_computes_what_one_device_does(bias_rows, order):
    """Rows, heads and queries are split; keys lie in the order of chunks, and their bias with them."""
    length = 40
    static = _axial(5, 8)[0] if order else _ranges(3, length)
    bias = _bias(bias_rows, length)

    def run(storage, *operands):
        put = lambda x, axis: storage.put(x, axis=axis)
        stored = StaticRanges(static.start_RQ[:, storage.order], static.end_RQ[:, storage.order], static.order_S)
        keys = KeyRanges.of(stored, jnp.array([0, 5]), put(bias, 1), storage.num_chunks)
        return [storage.take(x, axis=1) for x in _run("flash", [put(x, 1) for x in operands], keys)]

    want = run(Storage(length), *_operands(length))
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, context=2, tensor=2), jax.devices()[:8])
    with jax.set_mesh(mesh):
        got = run(Storage(length, 2), *_operands(length))
    _assert_same(got, want)


@pytest.mark.parametrize("block_size, biased", [(8, True), (512, True), (512, False)])
def test_parts_equal_one_key_set(monkeypatch, block_size, biased):
    monkeypatch.setattr(attention, "_BLOCK", block_size)
    q, k, v, _ = _operands()
    q, first = q[:, :6], jnp.array([3, 7])
    bias = _bias(2) if biased else None
    whole = KeyRanges.of(StaticRanges(np.zeros((1, 6)), np.full((1, 6), 30)), first, bias)
    parts = []
    for begin, end in ((0, 12), (12, 20), (20, 30)):
        start = jnp.maximum(first - begin, 0)[:, None] + jnp.zeros((1, 1, 6), jnp.int32)
        own_bias = bias[:, begin:end] if biased else None
        own = KeyRanges(start, jnp.full((1, 1, 6), end - begin), own_bias)
        parts.append((k[:, begin:end], v[:, begin:end], own))
    got = attention.attend_parts(q, parts)
    np.testing.assert_allclose(got, attention.dense(q, k, v, whole), atol=1e-5)


def test_bfloat16_keeps_its_dtype_and_is_close():
    (q, k, v, _), keys = _operands(), _frames()
    got = attention.attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), keys)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), attention.dense(q, k, v, keys), atol=0.05)


def test_merging_in_bfloat16_rounds_once():
    """The bound: probabilities are rounded once to bfloat16 (unit 2^-8), the merged sum once; parts are merged in float32."""
    q, k, v, _ = _operands()
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    num_keys, cut, unit = k.shape[1], 17, 2.0**-8

    def whole(num):
        return KeyRanges(jnp.zeros((1, 1, num_keys), jnp.int32), jnp.full((1, 1, num_keys), num))

    parts = [(k[:, :cut], v[:, :cut], whole(cut)), (k[:, cut:], v[:, cut:], whole(num_keys - cut))]
    got = attention.attend_parts(q, parts)
    assert got.dtype == jnp.bfloat16
    exact = lambda v: np.asarray(attention.dense(*(x.astype(jnp.float32) for x in (q, k, v)), whole(num_keys)))
    error = np.abs(np.asarray(got, np.float32) - exact(v))
    np.testing.assert_array_less(error, unit * (exact(jnp.abs(v)) + np.abs(exact(v))) + 1e-5)

    pieces = [
        attention._flash_forward(q, k, v, keys.start_RBQ, keys.end_RBQ, None, attention._blocks(q, k), jnp.float32)
        for k, v, keys in parts
    ]
    out, lse = (np.stack([np.asarray(piece[i], np.float64) for piece in pieces]) for i in range(2))
    share = np.exp(lse - np.logaddexp(*lse))[..., None]
    merged = (out * share).sum(0)
    np.testing.assert_array_less(np.abs(np.asarray(got, np.float64) - merged), 1.001 * unit * np.abs(merged) + 1e-7)
