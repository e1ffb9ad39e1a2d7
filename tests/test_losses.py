import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.training.losses import linear_cross_entropy


@pytest.mark.parametrize("chunk", [5, 7, 100])
def test_chunked_equals_naive_with_gradients(chunk):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (23, 8)), jax.random.normal(keys[1], (8, 11))
    labels = jax.random.randint(keys[2], (23,), 0, 11)
    weights = (jax.random.uniform(keys[3], (23,)) > 0.4).astype(jnp.float32)
    smoothing, z = 0.1, 0.01

    def naive(hidden, head):
        log_p = jax.nn.log_softmax(hidden @ head)
        target = (1 - smoothing) * jax.nn.one_hot(labels, 11) + smoothing / 11
        z_term = z * jax.nn.logsumexp(hidden @ head, axis=-1) ** 2
        return ((-(log_p * target).sum(-1) + z_term) * weights).sum()

    def chunked(hidden, head):
        out = linear_cross_entropy(hidden, head, labels, weights, chunk=chunk, label_smoothing=smoothing, z_loss=z)
        return out.loss.sum()

    got, want = (jax.value_and_grad(f, (0, 1))(hidden, head) for f in (chunked, naive))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_weight_zero_removes_a_position_whatever_its_label():
    hidden, head = jnp.ones((3, 4)), jnp.ones((4, 5))
    out = linear_cross_entropy(hidden, head, jnp.array([0, -7, 99]), jnp.array([1.0, 0.0, 0.0]), chunk=2)
    np.testing.assert_allclose(out.nll, [np.log(5), 0, 0], rtol=1e-6)
