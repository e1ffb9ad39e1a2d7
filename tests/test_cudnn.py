"""Attention as calls without a mask (what a GPU's library computes), against the dense oracle; the GPU itself is measured by
benchmarks/gpu_training.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.model import attention, cudnn, transformer
from lumos.sequence.arrangement import Compact
from lumos.sequence.key_ranges import Call, KeyRanges, StaticRanges
from lumos.sequence.rule import StageCausal, Window, layout_ranges
from lumos.sequence.vocabulary import compact as vocabulary

LAYOUT = Compact().layout(vocabulary(50, 50), 8, (3, 2, 4))
FIRST_B = jnp.array([0, 3, 8])


def _operands(length):
    keys = jax.random.split(jax.random.key(0), 4)
    q, weight = (jax.random.normal(k, (3, length, 4, 16)) for k in keys[:2])
    k, v = (jax.random.normal(k, (3, length, 2, 16)) for k in keys[2:])
    return q, k, v, weight


def test_calls_cover_what_is_seen_and_no_more():
    assert layout_ranges(LAYOUT, StageCausal()).calls == (
        Call(0, 8, ((0, 8),), is_causal=True),
        *(Call(start, 8, ((0, start + 8),)) for start in (8, 16, 24)),
    )
    of_two = StaticRanges(np.array([[0, 0, 0], [4, 4, 9]]), np.array([[2, 2, 0], [7, 7, 9]])).calls
    assert of_two == (Call(0, 2, ((0, 2), (4, 7))), Call(2, 1, ()))


@pytest.mark.parametrize("rule", [StageCausal(), Window(width=2)])
def test_calls_equal_dense_with_gradients(rule):
    static, (q, k, v, weight) = layout_ranges(LAYOUT, rule), _operands(LAYOUT.length)
    keys = KeyRanges.of(static, FIRST_B)
    weight = weight * (np.arange(LAYOUT.length) >= FIRST_B[:, None])[..., None, None]  # nobody reads what padding gets

    def run(attend):
        return jax.jit(jax.value_and_grad(lambda *qkv: (attend(*qkv) * weight).sum(), (0, 1, 2)))(q, k, v)

    got, got_grads = run(lambda *qkv: cudnn.attend(*qkv, FIRST_B, static, "xla"))
    want, want_grads = run(lambda *qkv: attention.attend(*qkv, keys, "dense"))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(got_grads, want_grads):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_parts_of_which_all_queries_see_the_same_equal_flash():
    q, *past, _ = _operands(24)
    own = [x[:, :9] for x in past]
    alike = lambda *ranges: jnp.array(ranges)[..., None] * jnp.ones((1, 1, 24), jnp.int32)
    # Two ranges of the cache; the second row sees nothing of them, the third nothing beyond the last key.
    keys = KeyRanges(alike([0, 3, 7], [10, 10, 20]), alike([4, 2, 7], [20, 10, 30]), alike=True)
    parts = [(*past, keys), (*own, KeyRanges(alike([1]), alike([8]), alike=True))]
    got, want = cudnn.attend_parts(q, parts, "xla"), attention.attend_parts(q, parts)
    np.testing.assert_allclose(got, want, atol=1e-5)
    nothing = [(*past, KeyRanges(alike([5]), alike([5]), alike=True))]
    np.testing.assert_array_equal(cudnn.attend_parts(q, nothing, "xla"), jnp.zeros_like(q))


def test_the_gradient_of_a_common_row_is_summed_in_float32():
    random = np.random.default_rng(0)
    table_VD, weight = random.normal(size=(50, 8)), random.normal(size=(3, 400, 8)) + 0.3
    ids = np.where(random.random((3, 400)) < 0.5, 7, random.integers(0, 50, (3, 400)))

    def gradient(rows, dtype):
        loss = lambda table: (rows(table).astype(jnp.float32) * weight).sum()
        return jax.grad(loss)(jnp.asarray(table_VD, dtype)).astype(jnp.float32)

    want = gradient(lambda table: table[ids], jnp.float32)
    error = lambda got: float(jnp.abs(got - want)[7].max() / jnp.abs(want[7]).max())
    assert error(gradient(lambda table: transformer.embed(table, ids, 7), jnp.bfloat16)) < 2**-8
    assert error(gradient(lambda table: table[ids], jnp.bfloat16)) > 2**-7  # the sum that JAX derives
    np.testing.assert_array_equal(gradient(lambda table: transformer.embed(table, ids, 7), jnp.float32), want)
