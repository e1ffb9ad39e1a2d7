"""The TPU kernel in interpret mode against the dense oracle, and sequences stored for context shards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos import sharding
from lumos.config import MeshConfig
from lumos.model import attention, splash
from lumos.sequence.arrangement import Compact
from lumos.sequence.key_ranges import KeyRanges, StaticRanges
from lumos.sequence.rule import StageCausal, layout_ranges
from lumos.sequence.storage import Storage, in_order
from lumos.sequence.vocabulary import compact as vocabulary


def _layout(kind):
    """Mask kinds as layouts of 128 tokens: causal text, frame-causal video after text, one frame that sees all of itself."""
    num_text, grid = {"causal": (127, (1, 1, 1)), "frames": (16, (7, 4, 4)), "full": (0, (1, 8, 16))}[kind]
    return Compact().layout(vocabulary(50, 50), num_text, grid)


def _keys(layout, first, storage=None):
    num_chunks = storage.num_chunks if storage else 1
    return KeyRanges.of(layout_ranges(layout, StageCausal(), storage), jnp.array(first), num_chunks=num_chunks)


def _operands(length, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    q, weight = (jax.random.normal(k, (2, length, 4, 64), dtype) for k in keys[:2])
    k, v = (jax.random.normal(k, (2, length, 2, 64), dtype) for k in keys[2:])
    return q, k, v, weight


def _assert_splash_equals_dense(q, k, v, keys, weight):
    """Compare the weighted sum of the outputs, and its gradients."""

    def run(kernel):
        loss = lambda q, k, v: (attention.attend(q, k, v, keys, kernel) * weight).sum()
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

    (got, got_grads), (want, want_grads) = run("splash"), run("dense")
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(got_grads, want_grads):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("kind, first", [("causal", (0, 9)), ("frames", (0, 9)), ("full", (0, 0))])
def test_splash_equals_dense_with_gradients(kind, first):
    plan = _layout(kind)
    keys = _keys(plan, first)
    q, k, v, weight = _operands(plan.length)
    # Rows that padding left without keys are read by nobody; the kernel leaves them undefined.
    weight = weight * (np.arange(plan.length)[None] >= np.array(first)[:, None])[..., None, None]

    _assert_splash_equals_dense(q, k, v, keys, weight)


def _sink_and_window(length):
    """The first 20 keys, and the last 70 before the query; the first queries see nothing but the sink."""
    query = np.arange(length)
    sink = np.zeros(length), np.minimum(query + 1, 20)
    window = np.maximum(query - 69, 20), query + 1
    return StaticRanges(*zip(sink, window))


def _two_copies(length, frame=64):
    """Clean frames see clean frames up to their own; a noisy frame sees the clean frames before its own, and itself."""
    half = length // 2
    begin = np.arange(half) // frame * frame
    nothing = np.zeros(half)
    past = np.concatenate([begin + frame, begin])
    return StaticRanges(
        [np.zeros(length), np.concatenate([nothing, half + begin])],
        [past, np.concatenate([nothing, half + begin + frame])],
    )


def _two_copies_of_whole_blocks(length):
    return _two_copies(length, frame=128)


def _full(length):
    return StaticRanges(np.zeros((1, length)), np.full((1, length), length))


def _window(length):
    """One range, whose starts differ by query."""
    query = np.arange(length)
    return StaticRanges(np.maximum(query - 69, 0)[None], query[None] + 1)


def _blocks_of_128(monkeypatch):
    monkeypatch.setattr(splash, "_largest_divisor", lambda length, most: 128)


@pytest.mark.parametrize("make, first", [(_sink_and_window, (0, 9)), (_two_copies, (0, 0)), (_window, (0, 9))])
def test_splash_of_several_ranges_equals_dense_with_gradients(monkeypatch, make, first):
    _blocks_of_128(monkeypatch)
    length = 384
    keys = KeyRanges.of(make(length), jnp.array(first))
    q, k, v, weight = _operands(length)
    weight = weight * (np.arange(length)[None] >= np.array(first)[:, None])[..., None, None]

    _assert_splash_equals_dense(q, k, v, keys, weight)


def test_splash_in_the_order_of_the_keys(monkeypatch):
    """Causal attention over time of 4 frames of 32 cells, which are stored frame by frame."""
    length, frames = 128, 4
    order = np.arange(length).reshape(frames, -1).T.reshape(-1)
    t, cell = np.divmod(np.arange(length), length // frames)
    keys = KeyRanges.of(StaticRanges((cell * frames)[None], (cell * frames + t + 1)[None], order), None)
    q, k, v, _ = _operands(length)
    got, want = (attention.attend(q, k, v, keys, kernel) for kernel in ("splash", "dense"))
    np.testing.assert_allclose(got, want, atol=1e-5)

    # Over context shards queries stay where they are, and the flash kernel runs.
    storage = Storage(length, 2)
    static = StaticRanges(keys.static.start_RQ[:, storage.order], keys.static.end_RQ[:, storage.order], order)
    keys = KeyRanges.of(static, None, num_chunks=storage.num_chunks)
    put = lambda x: storage.put(x, axis=1)
    with jax.set_mesh(sharding.make_mesh(MeshConfig(fsdp=1, context=2), jax.devices()[:2])):
        got, flash = (
            jax.jit(lambda q, k, v, kernel=kernel: attention.attend(q, k, v, keys, kernel))(put(q), put(k), put(v))
            for kernel in ("splash", "flash")
        )
    np.testing.assert_array_equal(got, flash)
    np.testing.assert_allclose(storage.take(got, axis=1), want, atol=1e-5)


def test_a_bias_runs_the_flash_kernel():
    q, k, v, _ = _operands(128)
    keys = _keys(_layout("frames"), (0, 0))
    keys = dataclasses.replace(keys, bias_BS=jax.random.normal(jax.random.key(1), (1, 128)))
    got, flash = (attention.attend(q, k, v, keys, kernel) for kernel in ("splash", "flash"))
    np.testing.assert_array_equal(got, flash)
    assert not splash.can_run(keys)


def test_a_mask_of_ranges_builds_no_more_than_a_block():
    """At a length whose whole mask would take 64 GiB; blocks that are all visible or all hidden are not built."""
    length, block = 2**18, 512
    static = _two_copies(length, frame=8 * block)
    mask = splash._RangesMask((length, length), static.start_RQ, static.end_RQ, is_split=False)
    at = lambda q, k: mask[slice(q * block, (q + 1) * block), slice(k * block, (k + 1) * block)]
    half = length // block // 2
    for q, k, sees in [(0, 7, 1), (0, 8, 0), (7, half, 0), (half, 0, 0), (half + 8, 7, 1), (half + 8, half + 8, 1)]:
        assert isinstance(at(q, k), splash._Constant) and at(q, k).all() == at(q, k).any() == bool(sees)
    window = _window(length)
    built = splash._RangesMask((length, length), window.start_RQ, window.end_RQ, is_split=False)[512:1024, 512:1024]
    query, key = np.indices((512, 512))
    np.testing.assert_array_equal(built, (key <= query) & (key >= query - 69))


def test_splash_in_bfloat16_is_close():
    plan = _layout("frames")
    keys = _keys(plan, (0, 0))
    q, k, v, _ = _operands(plan.length, jnp.bfloat16)
    got = jax.jit(lambda *x: attention.attend(*x, keys, "splash"))(q, k, v)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), attention.dense(q, k, v, keys).astype(np.float32), atol=0.05)


def test_ranges_that_are_not_static_run_the_flash_kernel():
    """As in decoding, where a model that was trained with the splash kernel has none."""
    q, k, v, _ = _operands(128)
    keys = _keys(_layout("frames"), (0, 0))
    got, flash = (
        attention.attend(q, k, v, KeyRanges(keys.start_RBQ, keys.end_RBQ), kernel) for kernel in ("splash", "flash")
    )
    np.testing.assert_array_equal(got, flash)


@pytest.mark.parametrize("shards, multiple", [(1, 1), (1, 128), (2, 1), (4, 8)])
def test_storage_is_undone_and_balances_the_work(shards, multiple):
    plan = _layout("frames")
    storage = Storage(plan.length - 1, shards, multiple)
    x = jax.random.normal(jax.random.key(0), (2, plan.length - 1))
    np.testing.assert_array_equal(storage.take(storage.put(x)), x)
    assert storage.num_slots % (storage.num_chunks * multiple) == 0
    slots = jnp.asarray(storage.order)
    np.testing.assert_array_equal(in_order(slots, storage.num_chunks, 0), np.arange(storage.num_slots))
    if shards > 1:
        work = np.minimum(storage.order, plan.length).reshape(shards, -1).sum(1)
        assert work.max() < 1.05 * work.mean()


@pytest.mark.parametrize("kernel", ["flash", pytest.param("splash", marks=pytest.mark.slow)])
def test_context_shards_compute_what_one_device_does(kernel):
    shards, multiple = 2, 128 if kernel == "splash" else 1
    plan = Compact().layout(vocabulary(50, 50), 16, (30, 4, 4))
    q, k, v, weight = _operands(plan.length)
    first = (0, 9)
    weight = weight * (np.arange(plan.length)[None] >= np.asarray(first)[:, None])[..., None, None]

    def loss(storage, q, k, v):
        put = lambda x: storage.put(x, axis=1, fill=0)
        out = attention.attend(put(q), put(k), put(v), _keys(plan, first, storage), kernel)
        return (out * put(weight)).sum()

    grad = lambda storage: jax.jit(jax.value_and_grad(lambda *x: loss(storage, *x), (0, 1, 2)))(q, k, v)
    want, want_grads = grad(Storage(plan.length, 1, multiple))
    mesh = sharding.make_mesh(MeshConfig(fsdp=1, context=shards), jax.devices()[:shards])
    with jax.set_mesh(mesh):
        got, got_grads = grad(Storage(plan.length, shards, multiple))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(got_grads, want_grads):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("make", [_two_copies_of_whole_blocks, _full])
def test_context_shards_where_no_block_is_visible_in_part(monkeypatch, make):
    """Of two copies that is so forward alone: backward, blocks have more keys."""
    monkeypatch.setattr(splash, "_largest_divisor", lambda length, most: 256 if most > 512 else 128)
    length, shards = 512, 2
    static = make(length)
    q, k, v, weight = _operands(length)

    def loss(storage, kernel, q, k, v):
        put = lambda x: storage.put(x, axis=1)
        ranges = StaticRanges(static.start_RQ[:, storage.order], static.end_RQ[:, storage.order])
        keys = KeyRanges.of(ranges, None, num_chunks=storage.num_chunks)
        return (attention.attend(put(q), put(k), put(v), keys, kernel) * put(weight)).sum()

    grad = lambda *how: jax.jit(jax.value_and_grad(lambda *x: loss(*how, *x), (0, 1, 2)))(q, k, v)
    want, want_grads = grad(Storage(length), "dense")
    mesh = sharding.make_mesh(MeshConfig(fsdp=1, context=shards), jax.devices()[:shards])
    with jax.set_mesh(mesh):
        got, got_grads = grad(Storage(length, shards, 128), "splash")
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(got_grads, want_grads):
        np.testing.assert_allclose(a, b, atol=2e-5)
