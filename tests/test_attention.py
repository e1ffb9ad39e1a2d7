import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.model import attention
from lumos.sequence.attention import KeyRange


def _case(num_keys=37, block=9):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, num_keys, 4, 32))
    k, v = (jax.random.normal(key, (2, num_keys, 2, 32)) for key in keys[1:3])
    end = np.minimum((np.arange(num_keys) // block + 1) * block, num_keys).astype(np.int32)[None]
    start = np.array([[0], [5]], np.int32) * np.ones((1, num_keys), np.int32)
    return q, k, v, KeyRange(jnp.asarray(start), jnp.asarray(end)), jax.random.normal(keys[3], q.shape)


@pytest.mark.parametrize("block_size", [8, 16, 512])
def test_flash_equals_dense_with_gradients(monkeypatch, block_size):
    monkeypatch.setattr(attention, "_BLOCK", block_size)
    q, k, v, keys, weight = _case()

    def run(kernel):
        loss = lambda q, k, v: (attention.attend(q, k, v, keys, kernel) * weight).sum()
        return attention.attend(q, k, v, keys, kernel), *jax.grad(loss, (0, 1, 2))(q, k, v)

    for got, want in zip(run("flash"), run("dense")):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_query_without_keys_returns_zero_and_finite_gradients():
    q, k, v, keys, _ = _case()
    empty = KeyRange(keys.end_BQ, keys.end_BQ)
    out, grad = jax.value_and_grad(lambda q: attention.attend(q, k, v, empty).sum())(q)
    assert out == 0 and not np.asarray(grad).any()


@pytest.mark.parametrize("block_size", [8, 512])
def test_two_key_sets_equal_one(monkeypatch, block_size):
    monkeypatch.setattr(attention, "_BLOCK", block_size)
    q, k, v, _, _ = _case()
    q, cut = q[:, :6], 20
    whole = KeyRange(jnp.array([[3], [7]]), jnp.full((1, 6), 30))
    past = KeyRange(jnp.array([[3], [7]]), jnp.full((1, 6), cut))
    own = KeyRange(jnp.zeros((1, 6), jnp.int32), jnp.full((1, 6), 30 - cut))
    got = attention.attend_two(q, (k, v, past), (k[:, cut:30], v[:, cut:30], own))
    np.testing.assert_allclose(got, attention.dense(q, k, v, whole), atol=1e-5)


def test_bfloat16_keeps_its_dtype_and_is_close():
    q, k, v, keys, _ = _case()
    got = attention.attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), keys)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), attention.dense(q, k, v, keys), atol=0.05)


def test_merging_in_bfloat16_rounds_once():
    """The bound: probabilities are rounded once to bfloat16 (unit 2^-8), the merged sum once; parts are merged in float32."""
    q, k, v, _, _ = _case()
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    num_keys, cut, unit = k.shape[1], 17, 2.0**-8

    def whole(num):
        return KeyRange(jnp.zeros((1, num_keys), jnp.int32), jnp.full((1, num_keys), num))

    parts = (k[:, :cut], v[:, :cut], whole(cut)), (k[:, cut:], v[:, cut:], whole(num_keys - cut))
    got = attention.attend_two(q, *parts)
    assert got.dtype == jnp.bfloat16
    exact = lambda v: np.asarray(attention.dense(*(x.astype(jnp.float32) for x in (q, k, v)), whole(num_keys)))
    error = np.abs(np.asarray(got, np.float32) - exact(v))
    np.testing.assert_array_less(error, unit * (exact(jnp.abs(v)) + np.abs(exact(v))) + 1e-5)

    pieces = [attention._flash_forward(q, k, v, keys.start_BQ, keys.end_BQ, jnp.float32) for k, v, keys in parts]
    out, lse = (np.stack([np.asarray(piece[i], np.float64) for piece in pieces]) for i in range(2))
    share = np.exp(lse - np.logaddexp(*lse))[..., None]
    merged = (out * share).sum(0)
    np.testing.assert_array_less(np.abs(np.asarray(got, np.float64) - merged), 1.001 * unit * np.abs(merged) + 1e-7)
