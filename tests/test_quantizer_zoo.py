"""Every family of quantisers: exact maths, round trips, entropies, composition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumos.config import Config, DataConfig, TokenizerConfig
from lumos.errors import UserError
from lumos.geometry import cells_of, token_grid, token_shape
from lumos.tokenizers.lookup_free import annealed, bit_entropies
from lumos.tokenizers.quantizer_factory import make_quantizer
from lumos.tokenizers.quantizers import factor_histograms
from lumos.tokenizers.vector_quantizers import entropies

KINDS = {
    "lfq": {"quantizer": "lfq", "levels": (2,) * 6},
    "bsq": {"quantizer": "bsq", "levels": (2,) * 6},
    "vq": {"quantizer": "vq", "levels": (24,)},
    "simvq": {"quantizer": "simvq", "levels": (24,)},
    "ibq": {"quantizer": "ibq", "levels": (24,)},
    "grouped fsq": {"composition": "grouped", "parts": 2, "levels": (4, 3)},
    "grouped vq": {"quantizer": "vq", "composition": "grouped", "parts": 2, "levels": (12,)},
    "residual fsq": {"composition": "residual", "parts": 3, "levels": (4, 3)},
    "residual vq": {"quantizer": "vq", "composition": "residual", "parts": 2, "levels": (12,)},
    "layers": {"composition": "layers", "parts": 2, "levels": (4, 3)},
    "layers lfq": {"quantizer": "lfq", "composition": "layers", "parts": 2, "levels": (2,) * 3},
}


def _make(**fields):
    return make_quantizer(TokenizerConfig(code_dim=4, **fields), nnx.Rngs(params=jax.random.key(0)))


@pytest.mark.parametrize("name", KINDS)
def test_tokens_name_the_codes_and_every_token_survives_the_round_trip(name):
    fields = KINDS[name]
    quantizer, rng = _make(**fields), np.random.default_rng(0)

    @jax.jit
    def run(z, tokens):
        quantized = quantizer(z)
        again = quantizer.codes_to_indices(quantizer.indices_to_codes(tokens))
        return quantized.codes, quantized.indices, quantizer.indices_to_codes(quantized.indices), again

    z = rng.normal(size=(2, 2, 4, 4, quantizer.dim)).astype(np.float32)
    grid = token_grid(TokenizerConfig(**fields), (2, 4, 4))
    tokens = np.resize(np.arange(quantizer.codebook_size), (2, *grid)).astype(np.int32)  # every one of them
    codes, indices, codes_of_indices, again = run(z, tokens)
    assert indices.shape == (2, *grid) and indices.dtype == jnp.int32
    assert 0 <= indices.min() and indices.max() < quantizer.codebook_size and len(np.unique(indices)) > 4
    np.testing.assert_allclose(codes_of_indices, codes, atol=1e-6)
    if name != "residual vq":  # a sum of learnt codes may have several descriptions
        np.testing.assert_array_equal(again, tokens)
    parts = quantizer.by_part(indices)
    assert sum(part.size for part in parts) == indices.size
    assert len(parts) == fields.get("parts", 1)


def test_lfq_signs_little_endian_bits_and_golden_losses():
    """z = 0 is bit 0; p(bit = 1) = sigmoid(4 z / temperature)."""
    lfq = _make(quantizer="lfq", levels=(2, 2, 2), entropy_temperature=1.0)
    quantized = lfq(jnp.array([[0.5, -0.1, 0.0], [-2.0, 0.3, 0.7]]))
    np.testing.assert_array_equal(quantized.codes, [[1, -1, -1], [-1, 1, 1]])
    np.testing.assert_array_equal(quantized.indices, [1, 6])
    squares = [0.25, 0.81, 1, 1, 0.49, 0.09]
    np.testing.assert_allclose(quantized.losses["commitment"], 0.25 * np.mean(squares), rtol=1e-6)
    # Written out over the eight codes.
    codes = np.array([[1 if i >> b & 1 else -1 for b in range(3)] for i in range(8)])
    logits = 2 * np.array([[0.5, -0.1, 0.0], [-2.0, 0.3, 0.7]]) @ codes.T
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    entropy = lambda p: -(p * np.log(p)).sum(axis=-1)
    np.testing.assert_allclose(
        quantized.losses["entropy"], 0.1 * (entropy(p).mean() - entropy(p.mean(axis=0))), rtol=1e-5
    )


def test_bsq_lies_on_the_sphere_and_weighs_its_entropy_by_the_temperature():
    bsq = _make(quantizer="bsq", levels=(2, 2, 2, 2), entropy_temperature=0.5)
    z = jnp.array([[3.0, -4.0, 0.0, 0.0]])
    quantized = bsq(z)
    np.testing.assert_allclose(quantized.codes, [[0.5, -0.5, -0.5, -0.5]], atol=1e-6)
    assert quantized.indices[0] == 1
    np.testing.assert_allclose(quantized.losses["commitment"], 0.25 * np.sum([0.01, 0.09, 0.25, 0.25]), rtol=1e-5)
    p = 1 / (1 + np.exp(-4 * np.array([0.6, -0.8, 0, 0]) * 0.5 / 0.5))
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum()  # one position: both entropies are equal
    per_position, of_mean = bit_entropies(4 * jnp.array([[0.6, -0.8, 0, 0]]))
    np.testing.assert_allclose([per_position, of_mean], [expected, expected], rtol=1e-5)
    np.testing.assert_allclose(quantized.losses["entropy"], 0, atol=1e-6)
    np.testing.assert_allclose(bsq(5 * z).codes, quantized.codes, atol=1e-6)


def test_bit_entropies_equal_those_of_the_explicit_codes():
    logits = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    signs = np.array(list(itertools.product([0, 1], repeat=5)))
    explicit = jnp.asarray(logits @ signs.T)
    np.testing.assert_allclose(jax.jit(bit_entropies)(logits), jax.jit(entropies)(explicit), rtol=1e-5)


def test_latent_loss_of_fsq_is_least_in_the_middle_of_the_levels():
    fsq = _make(quantizer="fsq", levels=(4, 5), fsq_latent_weight=0.5)
    z = jnp.array([[0.3, -1.2], [2.0, 0.0]])
    middle = np.array([-0.5, 0.0])  # digits -2 ... 1 and -2 ... 2
    half = np.array([1.5, 2.0]) * 1.001
    expected = 0.5 * np.mean(np.arctanh((np.asarray(fsq.bound(z)) - middle) / half) ** 2)
    assert fsq(z).losses["latent"] == pytest.approx(expected, rel=1e-4)


def test_entropy_of_fsq_is_that_of_its_code_probabilities():
    """Against the joint distribution written out, and it pulls latents that lie together apart."""
    fsq = _make(quantizer="fsq", levels=(4, 5, 2), fsq_entropy_weight=0.5)
    z = jax.random.normal(jax.random.key(0), (50, 3))
    values = np.asarray(fsq.bound(z)) + np.array([2, 2, 1])  # shifted to 0 ... L - 1
    digits = [np.exp(-2 * (values[:, i, None] - np.arange(n)) ** 2) for i, n in enumerate((4, 5, 2))]
    p = np.einsum("na,nb,nc->nabc", *(d / d.sum(axis=1, keepdims=True) for d in digits)).reshape(50, -1)
    mean = p.mean(axis=0)
    expected = -(p * np.log(p)).sum(axis=1).mean() + (mean * np.log(mean)).sum()
    assert fsq(z).losses["entropy"] == pytest.approx(0.5 * expected, rel=1e-5)
    assert not _make(quantizer="fsq", levels=(4, 5, 2))(z).losses

    @jax.jit
    def step(z):
        return z - 10 * jax.grad(lambda z: fsq(z).losses["entropy"])(z)

    near = 0.1 * z
    spread = near
    for _ in range(100):
        spread = step(spread)
    assert len(np.unique(fsq(spread).indices)) > 3 * len(np.unique(fsq(near).indices))


def test_entropy_weight_starts_three_times_as_large():
    np.testing.assert_allclose([annealed(step, 2000) for step in (0, 1000, 2000, 9000)], [3, 2, 1, 1])
    assert annealed(0, 0) == 1


def test_losses_of_the_learnt_tables():
    z = jnp.array([[0.9, 0.2], [-0.3, -1.1]])
    config = {"levels": (2,), "entropy_temperature": 1.0}
    for kind in ("simvq", "ibq"):
        quantizer = make_quantizer(TokenizerConfig(quantizer=kind, code_dim=2, **config), nnx.Rngs(0))
        table = np.array([[1.0, 0.0], [0.0, -1.0]], np.float32)
        if kind == "simvq":
            quantizer.frozen[...], quantizer.kernel[...] = jnp.eye(2), jnp.diag(jnp.array([1.0, -1.0]))
        else:
            quantizer.codebook[...] = jnp.asarray(table)
        quantized = quantizer(z)
        np.testing.assert_array_equal(quantized.indices, [0, 1])
        np.testing.assert_allclose(quantized.codes, table, atol=1e-6)
        error = np.mean(np.square(table - np.asarray(z)))
        np.testing.assert_allclose(quantized.losses["commitment"], 0.25 * error, rtol=1e-5)
        np.testing.assert_allclose(quantized.losses["codebook"], error * (2 if kind == "ibq" else 1), rtol=1e-5)


def test_gradients_reach_every_code_of_ibq_and_the_matrix_of_simvq():
    z = jax.random.normal(jax.random.key(1), (40, 4))

    def gradient(quantizer):
        graph, params = nnx.split(quantizer)

        @jax.jit
        def loss(params, z):
            quantized = nnx.merge(graph, params)(z)
            return (quantized.codes * z).sum() + sum(quantized.losses.values())

        return nnx.to_pure_dict(jax.grad(loss)(params, z)), jax.grad(loss, argnums=1)(params, z)

    ibq, to_latents = gradient(_make(quantizer="ibq", levels=(30,)))
    assert np.abs(ibq["codebook"]).max(axis=1).min() > 0 and np.abs(to_latents).min() > 0
    simvq, _ = gradient(_make(quantizer="simvq", levels=(30,)))
    assert np.abs(simvq["kernel"]).max() > 0 and not np.abs(simvq["frozen"]).max()
    vq, _ = gradient(_make(quantizer="vq", levels=(30,)))
    assert not any(np.abs(leaf).max() for leaf in jax.tree.leaves(vq))


def test_residual_fsq_is_a_uniform_quantiser_of_all_digits():
    coarse, fine = (_make(composition="residual", parts=2, levels=(L,)) for L in (4, 3))
    for quantizer, cells in ((coarse, 16), (fine, 9)):
        z = jnp.linspace(-3, 3, 101)[:, None]
        codes = quantizer(z).codes
        uniform = (np.clip(np.floor((np.tanh(z) + 1) / 2 * cells), 0, cells - 1) * 2 + 1) / cells - 1
        np.testing.assert_allclose(codes, uniform, atol=1e-6)


def test_coarse_layers_stand_alone_and_finer_ones_depend_on_them():
    quantizer = _make(composition="layers", parts=3, levels=(4, 3))
    tokens = np.random.default_rng(0).integers(0, 12, (1, 1, 1, 2 * 21)).astype(np.int32)  # 4 x 8 cells
    top = quantizer.indices_to_codes(tokens, num_layers=1)
    assert top.shape == (1, 1, 4, 8, 6)
    assert len(np.unique(np.asarray(top[..., :2]).reshape(-1, 2), axis=0)) <= 2 and not np.abs(top[..., 2:]).max()
    everything = quantizer.indices_to_codes(tokens)
    np.testing.assert_array_equal(everything[..., :2], top[..., :2])
    assert len(np.unique(np.asarray(everything[..., 4:]).reshape(-1, 2), axis=0)) > 4
    # The second layer quantises what the first has not said.
    z = jax.random.normal(jax.random.key(0), (1, 1, 4, 8, 6)) * jnp.array([20, 20, 1, 1, 1, 1])
    before = quantizer.by_part(quantizer(z).indices)
    quantizer.from_above["1"][...] = jnp.eye(2)
    after = quantizer.by_part(quantizer(z).indices)
    np.testing.assert_array_equal(before[0], after[0])
    assert (np.asarray(before[1]) != np.asarray(after[1])).any()


@pytest.mark.parametrize("composition", ["residual", "layers"])
def test_part_drop_hides_only_later_parts(composition):
    quantizer = _make(composition=composition, parts=2, levels=(4, 3), part_drop=1.0)
    z = jax.random.normal(jax.random.key(0), (32, 1, 2, 2, quantizer.dim))
    full, dropped = quantizer(z), quantizer(z, jax.random.key(1))
    np.testing.assert_array_equal(full.indices, dropped.indices)
    same = np.isclose(full.codes, dropped.codes, atol=1e-6).all(axis=(1, 2, 3))
    changed = ~same.all(axis=1)
    assert 0.2 < changed.mean() < 0.8
    if composition == "layers":
        assert same[:, :2].all()


def test_usage_of_factors():
    histogram = np.zeros(6, int)
    histogram[[1, 5]] = 3, 4  # (1, 0) and (1, 2): the first factor is the least significant
    first, second = factor_histograms(histogram, (2, 3))
    np.testing.assert_array_equal(first, [0, 7])
    np.testing.assert_array_equal(second, [3, 0, 4])


def test_token_grids():
    assert token_shape(TokenizerConfig(composition="grouped", parts=2), 5, 32, 64) == (2, 4, 16)
    assert token_shape(TokenizerConfig(composition="layers", parts=3), 5, 32, 64) == (2, 1, 2 * 21)
    for fields in ({"composition": "residual", "parts": 3}, {"composition": "layers", "parts": 3}, {}):
        config = TokenizerConfig(**fields)
        assert cells_of(config, *token_grid(config, (2, 8, 16))[1:]) == (8, 16)
    with pytest.raises(UserError, match="multiple of 32"):
        token_shape(TokenizerConfig(composition="layers", parts=3), 5, 48, 64)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"quantizer": "lfq"}, "a 2 for each bit"),
        ({"parts": 2}, "does not go with composition 'single'"),
        ({"composition": "grouped"}, "does not go with composition 'grouped'"),
        ({"composition": "residual", "quantizer": "bsq", "parts": 2, "levels": (2, 2)}, "does not go with bsq"),
        ({"levels": (2,) * 31}, "use config.tokenizer.parts"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config(tokenizer=TokenizerConfig(**fields), data=DataConfig(buckets=((5, 32, 32),)))


def test_a_transformer_has_no_encoder_to_freeze():
    with pytest.raises(UserError, match="freeze_encoder"):
        Config(task="transformer", freeze_encoder=True)
