import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos import sharding
from lumos.config import MeshConfig
from lumos.model.cross_entropy import linear_cross_entropy

SMOOTHING, Z = 0.1, 0.01


def _naive(hidden, head, labels, weights):
    """The definition: the loss of every position, with all logits at once."""
    num_codes = head.shape[1]
    log_p = jax.nn.log_softmax(hidden @ head)
    target = (1 - SMOOTHING) * jax.nn.one_hot(labels, num_codes) + SMOOTHING / num_codes
    z_term = Z * jax.nn.logsumexp(hidden @ head, axis=-1) ** 2
    return (-(log_p * target).sum(-1) + z_term) * weights


def _chunked(chunk, hidden, head, labels, weights):
    return linear_cross_entropy(hidden, head, labels, weights, chunk=chunk, label_smoothing=SMOOTHING, z_loss=Z).loss


def _inputs(num, scale=1.0):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = scale * jax.random.normal(keys[0], (num, 8)), jax.random.normal(keys[1], (8, 11))
    labels = jax.random.randint(keys[2], (num,), 0, 11)
    return hidden, head, labels, jnp.where(jax.random.uniform(keys[3], (num,)) > 0.4, 1.0, 0.0)


@pytest.mark.fast("7", "100")
@pytest.mark.parametrize("chunk", [5, 7, 100])
def test_chunked_equals_naive_with_gradients(chunk):
    hidden, head, labels, weights = _inputs(23)

    def total(loss, hidden, head):
        return loss(hidden, head, labels, weights).sum()

    got, want = (
        jax.value_and_grad(functools.partial(total, loss), (0, 1))(hidden, head)
        for loss in (functools.partial(_chunked, chunk), _naive)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


@pytest.mark.fast("0-1", "1-2", "2-3", "3-5", "0-8")
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_any_weights_and_cotangents_give_the_gradients_of_the_definition(chunk, seed):
    """Weights and cotangents are 0 in different places, and logits are so large that a wrong log-sum-exp overflows."""
    hidden, head, labels, _ = _inputs(8, scale=60.0)
    rng = np.random.default_rng(seed)
    weights, cotangent = (jnp.asarray(rng.normal(size=8) * (rng.random(8) > 0.5), jnp.float32) for _ in range(2))
    if seed == 0:
        weights, cotangent = jnp.array([0.0] * 6 + [1.0, 1.0]), jnp.array([1.0] * 7 + [0.0])

    def total(loss, *learnt, labels=labels):
        return (loss(*learnt[:2], labels, learnt[2]) * cotangent).sum()

    for which in ((0, 1), (0, 1, 2), (2,)):  # weights that are data, and weights that are learnt
        got, want = (
            jax.grad(functools.partial(total, loss), which)(hidden, head, weights)
            for loss in (functools.partial(_chunked, chunk), _naive)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), got, want)


def test_chunks_without_weight_are_skipped_unless_the_weights_are_learnt():
    hidden, head, labels, weights = _inputs(8)

    def loss(hidden, weights):
        return _chunked(2, hidden, head, labels, weights).sum()

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(hidden, weights))
    assert jaxpr.count("cond[") == 2  # forward and backward
    active = jnp.zeros(8).at[3].set(1.0)
    np.testing.assert_allclose(
        jax.grad(loss, 1)(hidden, active), _naive(hidden, head, labels, jnp.ones(8)), rtol=1e-4, atol=1e-4
    )


def test_results_without_a_gradient_have_none():
    hidden, head, labels, weights = _inputs(8)
    for name in ("nll", "correct"):

        def total(hidden, name=name):
            return getattr(linear_cross_entropy(hidden, head, labels, weights, chunk=4), name).sum()

        assert not np.any(jax.grad(total)(hidden))


def test_gradient_of_the_weights_on_a_mesh():
    hidden, head, labels, _ = _inputs(64)
    weights = jax.random.normal(jax.random.key(1), (8, 8))
    rows = lambda x: x.reshape(8, 8, *x.shape[1:])

    def total(weights):
        out = linear_cross_entropy(
            rows(hidden), head, rows(labels), weights, chunk=3, label_smoothing=SMOOTHING, z_loss=Z
        )
        return jnp.sum(out.loss * jnp.arange(64.0).reshape(8, 8))

    mesh = sharding.make_mesh(MeshConfig(fsdp=4, context=2), jax.devices())
    with jax.set_mesh(mesh):
        got = jax.jit(jax.grad(total))(weights)
    want = _naive(hidden, head, labels, jnp.ones(64)) * jnp.arange(64.0)
    np.testing.assert_allclose(np.asarray(got).reshape(-1), want, rtol=1e-4, atol=1e-4)


def test_weight_zero_removes_a_position_whatever_its_label():
    hidden, head = jnp.ones((3, 4)), jnp.ones((4, 5))
    out = linear_cross_entropy(hidden, head, jnp.array([0, -7, 99]), jnp.array([1.0, 0.0, 0.0]), chunk=2)
    np.testing.assert_allclose(out.nll, [np.log(5), 0, 0], rtol=1e-6)


def test_the_gradient_of_weights_has_their_dtype():
    hidden, head, labels, _ = _inputs(8)
    weights = jnp.linspace(-1, 1, 8).astype(jnp.bfloat16)
    got = jax.grad(lambda weights: _chunked(3, hidden, head, labels, weights).sum())(weights)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), _naive(hidden, head, labels, jnp.ones(8)), rtol=2.0**-8)
