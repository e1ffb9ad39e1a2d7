import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumos.config import TokenizerConfig
from lumos.tokenizers.quantizer_factory import make_quantizer
from lumos.tokenizers.quantizers import FSQ, code_histogram, codebook_usage, perplexity

COSMOS = (8, 8, 8, 5, 5, 5)


@pytest.mark.parametrize(
    "z, code, index",
    [
        ((0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0), 32036),
        ((1, 1, 1, 1, 1, 1), (0.5, 0.5, 0.5, 1, 1, 1), 63926),
        ((-1, -1, -1, -1, -1, -1), (-0.75, -0.75, -0.75, -1, -1, -1), 73),
        ((10, 10, 10, 10, 10, 10), (0.75, 0.75, 0.75, 1, 1, 1), 63999),
        ((-10, -10, -10, -10, -10, -10), (-1, -1, -1, -1, -1, -1), 0),
        ((0.3, -1.2, 2.5, 0.7, -0.4, 0.1), (0.25, -0.75, 0.75, 0.5, -0.5, 0), 30157),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0, 0.25, 0.25, 0.5, 0.5, 0.5), 47980),
    ],
)
def test_published_codes_and_indices(z, code, index):
    quantized = FSQ(COSMOS)(jnp.asarray(z, jnp.float32))
    np.testing.assert_array_equal(quantized.codes, code)
    assert quantized.indices == index and quantized.indices.dtype == jnp.int32
    assert quantized.losses == {}


@pytest.mark.parametrize(
    "index, code",
    [
        (1, (-0.75, -1, -1, -1, -1, -1)),
        (8, (-1, -0.75, -1, -1, -1, -1)),
        (512, (-1, -1, -1, -0.5, -1, -1)),
        (2560, (-1, -1, -1, -1, -0.5, -1)),
        (12800, (-1, -1, -1, -1, -1, -0.5)),
        (31999, (0.75, 0.75, -0.25, 0, 0, 0)),
    ],
)
def test_first_channel_is_the_least_significant_digit(index, code):
    np.testing.assert_array_equal(FSQ(COSMOS).indices_to_codes(jnp.int32(index)), code)


@pytest.mark.parametrize(
    "level, edges",
    [(8, (-1.4230, -0.7924, -0.4372, -0.1437, 0.1499, 0.5051, 1.1356)), (5, (-0.9713, -0.2551, 0.2551, 0.9713))],
)
def test_decision_edges(level, edges):
    fsq = FSQ((level,))
    for digit, edge in enumerate(edges):
        below, above = (fsq(jnp.array([edge + side])).indices for side in (-2e-4, 2e-4))
        assert (below, above) == (digit, digit + 1)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (7, 3, 2, 4), (2,), (8, 8, 8, 5, 5, 5)])
def test_every_index_survives_the_round_trip(levels):
    fsq = FSQ(levels)
    indices = jnp.arange(fsq.codebook_size)
    codes = fsq.indices_to_codes(indices)
    assert codes.shape == (*indices.shape, len(levels)) and np.abs(codes).max() <= 1
    np.testing.assert_array_equal(fsq.codes_to_indices(codes), indices)
    assert len(np.unique(codes, axis=0)) == fsq.codebook_size


def test_codes_agree_with_indices_for_any_input():
    fsq = FSQ((7, 5, 4, 8))
    quantized = fsq(3 * jax.random.normal(jax.random.key(0), (500, 4)))
    np.testing.assert_allclose(fsq.indices_to_codes(quantized.indices), quantized.codes, atol=1e-6)


def test_gradient_is_straight_through_the_rounding():
    fsq = FSQ((8, 5, 5, 5))
    z, weight = jax.random.normal(jax.random.key(1), (2, 64, 4))
    through = jax.grad(lambda z: jnp.sum(fsq(z).codes * weight))(z)
    smooth = jax.grad(lambda z: jnp.sum(fsq.bound(z) / jnp.array([4, 2, 2, 2]) * weight))(z)
    np.testing.assert_allclose(through, smooth, rtol=1e-6)
    assert np.abs(through).min() > 0


def test_low_precision_input_is_quantised_in_float32():
    z = jax.random.normal(jax.random.key(2), (200, 4)).astype(jnp.bfloat16)
    low, full = FSQ((8, 5, 5, 5))(z), FSQ((8, 5, 5, 5))(z.astype(jnp.float32))
    assert low.codes.dtype == jnp.float32
    np.testing.assert_array_equal(low.indices, full.indices)


def test_matches_the_reference_implementation(golden):
    data = golden("fsq.npz")
    fsq = FSQ(COSMOS)
    quantized = fsq(data["z"].transpose(0, 2, 3, 4, 1))
    np.testing.assert_array_equal(quantized.indices, data["indices"])
    np.testing.assert_array_equal(quantized.codes, data["codes"].transpose(0, 2, 3, 4, 1))
    np.testing.assert_array_equal(fsq.indices_to_codes(data["some_indices"]), data["some_codes"])
    bounded = fsq.bound(np.repeat(data["bound_in"][:, None], 6, axis=1))
    np.testing.assert_allclose(bounded, data["bound_out"], atol=2e-6)


def test_config_names_the_quantizer():
    quantizer = make_quantizer(TokenizerConfig(levels=(4, 3)), nnx.Rngs(0))
    assert isinstance(quantizer, FSQ) and (quantizer.codebook_size, quantizer.dim) == (12, 2)


def test_usage_and_perplexity():
    histogram = code_histogram(jnp.array([[0, 1], [1, 1]]), 4)
    np.testing.assert_array_equal(histogram, [1, 3, 0, 0])
    assert codebook_usage(histogram) == 0.5
    assert perplexity(histogram) == pytest.approx(np.exp(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75))))
    assert perplexity(np.full(10, 7)) == pytest.approx(10)
