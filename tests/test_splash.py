"""The TPU kernel in interpret mode against the dense oracle, and sequences stored for context shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos import sharding
from lumos.config import MeshConfig
from lumos.model import attention
from lumos.sequence.attention import KeyRange, layout_range
from lumos.sequence.layout import compact
from lumos.sequence.storage import Storage, in_order
from lumos.sequence.vocabulary import compact as vocabulary


def _layout(kind):
    """Mask kinds as layouts of 128 tokens: causal text, frame-causal video after text, one frame that sees all of itself."""
    num_text, grid = {"causal": (127, (1, 1, 1)), "frames": (16, (7, 4, 4)), "full": (0, (1, 8, 16))}[kind]
    return compact(vocabulary(50, 50), num_text, grid)


def _operands(length, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    q, weight = (jax.random.normal(k, (2, length, 4, 64), dtype) for k in keys[:2])
    k, v = (jax.random.normal(k, (2, length, 2, 64), dtype) for k in keys[2:])
    return q, k, v, weight


@pytest.mark.parametrize("kind, first", [("causal", (0, 9)), ("frames", (0, 9)), ("full", (0, 0))])
def test_splash_equals_dense_with_gradients(kind, first):
    plan = _layout(kind)
    keys = layout_range(plan, jnp.array(first))
    q, k, v, weight = _operands(plan.length)
    # Rows that padding left without keys are read by nobody; the kernel leaves them undefined.
    weight = weight * (np.arange(plan.length)[None] >= np.array(first)[:, None])[..., None, None]

    def run(kernel):
        loss = lambda q, k, v: (attention.attend(q, k, v, keys, kernel) * weight).sum()
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

    (got, got_grads), (want, want_grads) = run("splash"), run("dense")
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(got_grads, want_grads):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_splash_in_bfloat16_is_close():
    plan = _layout("frames")
    keys = layout_range(plan, jnp.array([0, 0]))
    q, k, v, _ = _operands(plan.length, jnp.bfloat16)
    got = jax.jit(lambda *x: attention.attend(*x, keys, "splash"))(q, k, v)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), attention.dense(q, k, v, keys).astype(np.float32), atol=0.05)


def test_ranges_that_are_not_static_run_the_flash_kernel():
    """As in decoding, where a model that was trained with the splash kernel has none."""
    q, k, v, _ = _operands(128)
    keys = layout_range(_layout("frames"), jnp.array([0, 0]))
    got, flash = (
        attention.attend(q, k, v, KeyRange(keys.start_BQ, keys.end_BQ), kernel) for kernel in ("splash", "flash")
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
    plan = compact(vocabulary(50, 50), 16, (30, 4, 4))
    q, k, v, weight = _operands(plan.length)
    first = jnp.array([0, 9])
    weight = weight * (np.arange(plan.length)[None] >= np.asarray(first)[:, None])[..., None, None]

    def loss(storage, q, k, v):
        put = lambda x: storage.put(x, axis=1, fill=0)
        out = attention.attend(put(q), put(k), put(v), layout_range(plan, first, storage), kernel)
        return (out * put(weight)).sum()

    grad = lambda storage: jax.jit(jax.value_and_grad(lambda *x: loss(storage, *x), (0, 1, 2)))(q, k, v)
    want, want_grads = grad(Storage(plan.length, 1, multiple))
    mesh = sharding.make_mesh(MeshConfig(fsdp=1, context=shards), jax.devices()[:shards])
    with jax.set_mesh(mesh):
        got, got_grads = grad(Storage(plan.length, shards, multiple))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(got_grads, want_grads):
        np.testing.assert_allclose(a, b, atol=2e-5)
