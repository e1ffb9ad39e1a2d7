"""Videos longer or larger than memory: streamed encoding and decoding, tiles, recomputed activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.config import TokenizerConfig
from lumos.errors import UserError
from lumos.tokenizers import pretrained
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.tiling import apply_tiled

TINY = TokenizerConfig(channels=4, channel_mult=(1, 1), z_channels=4, levels=(4, 3), norm="position", temporal_window=2)


def _params(definition, seed=0):
    """Random weights everywhere, so that no branch is zero."""
    leaves, tree = jax.tree.flatten(definition.abstract)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [0.4 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def tokenizer():
    return pretrained.Tokenizer(TINY, _params(make_definition(TINY)))


def test_long_videos_are_streamed_to_the_same_tokens_and_pixels(tokenizer, monkeypatch):
    video = np.random.default_rng(0).integers(0, 256, (1, 29, 16, 16, 3)).astype(np.uint8)
    tokens, pixels = tokenizer.encode(video), None
    pixels = tokenizer.decode(tokens)
    assert tokens.shape == (1, 8, 2, 2) and len(np.unique(tokens)) > 3
    monkeypatch.setattr(pretrained, "_CHUNK_FRAMES", 8)  # 1 + 8 + 8 + 8 + 4
    np.testing.assert_array_equal(tokenizer.encode(video), tokens)
    streamed = tokenizer.decode(tokens)
    assert streamed.dtype == np.uint8 and np.abs(streamed.astype(int) - pixels).max() <= 1
    with pytest.raises(UserError, match=r"1 \+ 4k"):
        tokenizer.encode(video[:, :28])


def test_a_stream_of_a_composed_quantiser_has_its_token_grid():
    config = TokenizerConfig(
        channels=4, channel_mult=(1, 1), z_channels=4, levels=(4, 3), composition="grouped", parts=2
    )
    tokenizer = pretrained.Tokenizer(config, _params(make_definition(config)))
    stream = tokenizer.stream()
    video = np.random.default_rng(0).uniform(-1, 1, (1, 7, 16, 16, 3)).astype(np.float32)
    grids = [stream.encode(video[:, part]).shape for part in (slice(0, 1), slice(1, 3), slice(3, 7))]
    assert grids == [(1, 1, 2, 4), (1, 0, 2, 4), (1, 1, 2, 4)]


def test_position_norm_keeps_distant_cells_apart():
    """With norms over positions and no attention a cell reaches as far as the convolutions do, and no further."""
    for norm, touched in (("position", False), ("frame", True)):
        config = TokenizerConfig(channels=4, channel_mult=(1, 1), z_channels=4, norm=norm, mid_attention=False)
        definition = make_definition(config)
        latents = jax.jit(lambda p, v, d=definition: d.bind(p).latents(v))
        params, video = _params(definition), np.zeros((1, 1, 16, 160, 3), np.float32)
        other = video.copy()
        other[..., :8, :] = 1
        far = np.abs(latents(params, video) - latents(params, other))[..., -1, :].max()
        assert (far > 1e-6) == touched


@pytest.mark.slow
def test_remat_changes_no_gradient():
    video = jax.random.uniform(jax.random.key(0), (1, 5, 16, 16, 3), minval=-1)
    gradients = []
    for remat in (False, True):
        definition = make_definition(TokenizerConfig(**{**vars(TINY), "remat": remat}))
        loss = lambda p, d=definition: jnp.square(d.bind(p).reconstruct(video)[0] - video).mean()
        program = jax.jit(jax.grad(loss))
        params = _params(definition)
        assert (
            "checkpoint" in str(jax.make_jaxpr(loss)(params)) or "remat" in str(jax.make_jaxpr(loss)(params))
        ) == remat
        gradients.append(program(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *gradients)


def test_tiles_of_a_local_function_give_the_whole():
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 11, 3)).astype(np.float32)
    up = lambda x: np.repeat(np.repeat(x, 4, axis=2), 4, axis=3)
    np.testing.assert_allclose(apply_tiled(up, x, tile=4, overlap=2, scale=4), up(x), atol=1e-6)
    down = lambda x: x[:, :, ::4, ::4]
    np.testing.assert_allclose(apply_tiled(down, up(x), tile=16, overlap=8, scale=1 / 4), x, atol=1e-6)
    np.testing.assert_array_equal(apply_tiled(up, x, tile=11, overlap=0, scale=4), up(x))


def test_seams_fade():
    """A function that adds a constant of its own to every tile: no step is larger than the ramp's."""
    constants = iter(np.linspace(0, 1, 100))
    made = apply_tiled(lambda x: x * 0 + next(constants), np.zeros((1, 1, 1, 64, 1), np.float32), 16, 8, 1)
    assert np.abs(np.diff(made[0, 0, 0, :, 0])).max() < 2 * 0.0102 / 8


@pytest.mark.parametrize("tile, overlap, message", [(8, 5, "overlap must lie"), (6, 1, "whole cells")])
def test_bad_tiles_are_refused(tile, overlap, message):
    with pytest.raises(UserError, match=message):
        apply_tiled(lambda x: x, np.zeros((1, 1, 16, 16, 3), np.float32), tile, overlap, 1 / 4)
