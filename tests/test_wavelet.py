import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.tokenizers.wavelet import haar_matrix, haar_patch, haar_unpatch


def haar_rounds(video, patch_size):
    """The separable definition: rounds of pairwise sums and differences along time, rows, columns."""
    x = np.concatenate([np.repeat(video[:, :1], patch_size - 1, axis=1), video], axis=1).astype(np.float64)
    for _ in range(patch_size.bit_length() - 1):
        bands = [x]
        for axis in (1, 2, 3):
            pairs = [
                (np.take(b, range(0, b.shape[axis], 2), axis), np.take(b, range(1, b.shape[axis], 2), axis))
                for b in bands
            ]
            bands = [band for even, odd in pairs for band in ((even + odd) / 2**0.5, (even - odd) / 2**0.5)]
        x = np.concatenate(bands, axis=-1) / (2 * 2**0.5)
    return x


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("num_cells", [1, 3])
def test_one_product_equals_the_separable_rounds(patch_size, num_cells):
    frames = 1 + (num_cells - 1) * patch_size
    video = np.random.default_rng(0).uniform(-1, 1, (2, frames, 8, 16, 3)).astype(np.float32)
    bands = haar_patch(video, patch_size)
    assert bands.shape == (2, num_cells, 8 // patch_size, 16 // patch_size, 3 * patch_size**3)
    np.testing.assert_allclose(bands, haar_rounds(video, patch_size), atol=1e-6)
    np.testing.assert_allclose(haar_unpatch(bands, patch_size), video, atol=2e-6)


def test_published_values_of_patch_4():
    video = (np.arange(3 * 5 * 8 * 8, dtype=np.float32) / 960 * 2 - 1).reshape(3, 5, 8, 8)
    bands = np.asarray(haar_patch(video.transpose(1, 2, 3, 0)[None], 4))[0]
    assert bands.shape == (2, 2, 2, 192)
    assert bands.sum() == pytest.approx(-5.5, abs=1e-4)
    assert np.square(bands).sum() == pytest.approx(8.325016, abs=1e-4)
    expected = np.zeros(192)
    expected[:3] = -0.638542, 0.028125, 0.694792
    for first, value in {
        3: -0.001042,
        6: -0.008333,
        12: -0.066667,
        24: -0.002083,
        48: -0.016667,
        96: -0.133333,
    }.items():
        expected[first : first + 3] = value
    np.testing.assert_allclose(bands[1, 0, 0], expected, atol=1e-5)


def test_static_clip_has_no_temporal_bands_and_band_0_is_the_mean():
    frame = np.random.default_rng(1).uniform(-1, 1, (1, 1, 8, 8, 3)).astype(np.float32)
    bands = np.asarray(haar_patch(np.repeat(frame, 5, axis=1), 4)).reshape(1, 2, 2, 2, 64, 3)
    np.testing.assert_allclose(bands[:, 0], bands[:, 1], atol=1e-6)
    differs_in_time = np.array([band // 8 >= 4 or band % 8 >= 4 for band in range(64)])
    np.testing.assert_allclose(bands[..., differs_in_time, :], 0, atol=1e-6)
    assert np.abs(bands[..., ~differs_in_time, :]).max() > 0.1
    np.testing.assert_allclose(bands[0, 1, 0, 0, 0], frame[0, 0, :4, :4].mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.parametrize("patch_size", [2, 4])
def test_matrix_is_orthogonal_up_to_scale(patch_size):
    matrix = haar_matrix(patch_size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(patch_size**3) / patch_size**3, atol=1e-12)


def test_gradient_of_the_round_trip_is_the_identity():
    video = jnp.ones((1, 5, 4, 4, 3))
    gradient = jax.grad(lambda v: jnp.sum(haar_unpatch(haar_patch(v, 4), 4) * 3))(video)
    np.testing.assert_allclose(gradient, 3.0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8, 3), (1, 5, 6, 8, 3), (1, 5, 8, 10, 3)])
def test_sizes_that_do_not_divide_are_refused(shape):
    with pytest.raises(ValueError, match="does not divide"):
        haar_patch(jnp.zeros(shape), 4)
    with pytest.raises(ValueError, match="power of two"):
        haar_matrix(3)
