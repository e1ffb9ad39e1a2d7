import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.config import Config, DataConfig, TokenizerConfig
from lumos.errors import UserError
from lumos.geometry import token_shape
from lumos.model.definition import Definition
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.layers import Attention, Downsample, FrameNorm, TemporalConv, Upsample
from lumos.tokenizers.objective import TokenizerObjective
from lumos.tokenizers.pixel_quality import frame_psnr, psnr, ssim, to_float, to_uint8

TINY = TokenizerConfig(channels=4, channel_mult=(1, 2), z_channels=4)
COSMOS = TokenizerConfig(
    channels=128, channel_mult=(2, 4, 4), num_res_blocks=2, z_channels=16, levels=(8, 8, 8, 5, 5, 5), outer_norm=True
)


def random_params(definition, seed=0):
    """Parameters without the zeros of a fresh network, so that every layer matters."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        kind = path[-1].key
        return {"scale": 1 + 0.1 * x, "bias": 0.05 * x}.get(kind, x / np.float32(np.prod(leaf.shape[:-1]) ** 0.5))

    return jax.tree_util.tree_map_with_path(draw, definition.abstract)


def random_video(frames, batch=1, rows=16, columns=24, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (batch, frames, rows, columns, 3)).astype(np.float32))


def jitted(definition, params, name):
    """The method `name` of the network, compiled."""
    run = jax.jit(lambda params, *args: getattr(definition.bind(params), name)(*args))
    return lambda *args: run(params, *args)


class Jitted:
    """The public methods of the network, compiled."""

    def __init__(self, definition, params):
        self.latents, self.encode, self.decode = (
            jitted(definition, params, name) for name in ("latents", "encode", "decode")
        )


@pytest.fixture(scope="module")
def tiny():
    definition = make_definition(TINY)
    return Jitted(definition, random_params(definition))


# --- the reference implementation ---------------------------------------------------------------------------------


def our_name(official: str) -> tuple[str, ...]:
    """`encoder.down.0.block.1.conv2.0.conv3d.weight` -> (encoder, down, 0, block, 1, conv2, spatial, kernel)."""
    name = re.sub(r"\b(conv_in|conv_out|conv1|conv2)\.0\b", r"\1.spatial", official)
    name = re.sub(r"\b(conv_in|conv_out|conv1|conv2)\.1\b", r"\1.temporal", name)
    name = name.replace("attn_1.0", "attn_1.space").replace("attn_1.1", "attn_1.time")
    name = name.replace(".conv3d.weight", ".kernel").replace(".norm.weight", ".scale")
    return tuple(re.sub(r"\.(conv3d|norm)\.bias$", ".bias", name).split("."))


def our_layout(kernel: np.ndarray) -> np.ndarray:
    """[out, in, t, h, w] -> [h, w, in, out], [t, in, out] or [in, out]."""
    return np.squeeze(kernel.transpose(2, 3, 4, 1, 0), axis=tuple(i for i in range(3) if kernel.shape[2 + i] == 1))


@pytest.fixture(scope="module")
def reference(large_golden):
    from safetensors.numpy import load_file

    official = load_file(large_golden("cosmos_tiny.safetensors"))
    shape = json.loads(large_golden("cosmos_tiny_weights.json").read_text())["config"]
    config = dataclasses.replace(COSMOS, channels=shape["channels"], channel_mult=tuple(shape["channels_mult"]))
    definition = make_definition(config)
    ours = {our_name(name): our_layout(array) if array.ndim == 5 else array for name, array in official.items()}
    params, used = {}, set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(definition.abstract):
        names = tuple(key.key for key in path)
        assert ours[names].shape == leaf.shape, names
        node = params
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = ours[names]
        used.add(names)
    unused = {".".join(name) for name in set(ours) - used}
    # Layers of resampling that the released graph builds but never runs.
    assert all(
        re.match(
            r"encoder\.down\.(0\.downsample\.conv2|1\.downsample)|decoder\.up\.(2\.upsample\.conv1|1\.upsample)", name
        )
        for name in unused
    )
    return np.load(large_golden("cosmos_tiny_golden.npz")), definition, params


def channels_last(array):
    return array.transpose(0, 2, 3, 4, 1)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_matches_the_reference_network(reference, frames):
    arrays, definition, params = reference
    video = channels_last(arrays["tiny_T9/input"])[:, :frames]
    expected = {key: arrays[f"tiny_T{frames}/{key}"] for key in ("latent", "indices", "codes", "recon")}
    np.testing.assert_allclose(
        jitted(definition, params, "latents")(video), channels_last(expected["latent"]), atol=2e-5
    )
    recon, quantized = jitted(definition, params, "reconstruct")(video)
    indices, losses = quantized.indices, quantized.losses
    np.testing.assert_array_equal(indices, expected["indices"])
    codes = definition.bind(params).quantizer.indices_to_codes(indices)
    np.testing.assert_array_equal(codes, channels_last(expected["codes"]))
    np.testing.assert_allclose(recon, channels_last(expected["recon"]), atol=2e-4)
    assert losses == {}


def test_matches_the_reference_activations(reference):
    arrays, definition, params = reference

    @jax.jit
    def activations(params, patches, first_attention, decoder_mid):
        vae = definition.bind(params)
        first = vae.encoder.conv_in(patches)
        blocks = vae.encoder.down["0"].block
        return {
            "encoder.conv_in": first,
            "encoder.down.0.block.0": blocks["0"](first),
            "encoder.down.0.downsample": vae.encoder.down["0"](first),
            "encoder.mid.attn_1.1": vae.encoder.mid.attn_1["time"](first_attention),
            "decoder.up.2.upsample": vae.decoder.up["2"](decoder_mid),
        }

    given = ("encoder.patcher3d", "encoder.mid.attn_1.0", "decoder.mid.block_2")
    ours = activations(params, *(channels_last(arrays[f"acts_T5/{name}"]) for name in given))
    for name, value in ours.items():
        np.testing.assert_allclose(value, channels_last(arrays[f"acts_T5/{name}"]), atol=5e-5, err_msg=name)


def test_size_of_the_published_network():
    definition = make_definition(COSMOS)
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in definition.abstract.items()}
    assert sizes["encoder"] + sizes["quant_conv"] == 42_717_830
    assert sizes["decoder"] + sizes["post_quant_conv"] == 61_951_728


# --- structure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spatial, temporal, patch", [(8, 4, 4), (8, 8, 4), (16, 8, 4), (8, 4, 2), (16, 4, 4), (4, 8, 4), (2, 2, 2)]
)
@pytest.mark.parametrize("outer_norm", [False, True])
def test_compression_and_round_trip_shapes(spatial, temporal, patch, outer_norm):
    sizes = dict(spatial_compression=spatial, temporal_compression=temporal, patch_size=patch)
    config = dataclasses.replace(TINY, channel_mult=(1, 2, 2), outer_norm=outer_norm, **sizes)
    definition = make_definition(config)
    for frames in (1, 1 + 2 * temporal):
        video = jax.ShapeDtypeStruct((2, frames, 32, 48, 3), jnp.float32)
        grid = token_shape(config, frames, 32, 48)
        assert grid == (1 + (frames - 1) // temporal, 32 // spatial, 48 // spatial)
        indices = jax.eval_shape(lambda p, v: definition.bind(p).encode(v), definition.abstract, video)
        assert indices.shape == (2, *grid) and indices.dtype == jnp.int32
        recon = jax.eval_shape(lambda p, i: definition.bind(p).decode(i), definition.abstract, indices)
        assert recon.shape == video.shape and recon.dtype == jnp.float32


def test_every_parameter_names_its_axes():
    definition = make_definition(TINY)
    flat = jax.tree_util.tree_leaves_with_path(definition.axes, is_leaf=lambda x: isinstance(x, tuple))
    shapes = [leaf.shape for leaf in jax.tree.leaves(definition.abstract)]
    assert [len(axes) for _, axes in flat] == [len(shape) for shape in shapes]
    named = {jax.tree_util.keystr(path, simple=True, separator="/") for path, axes in flat if "channels" in axes}
    assert "decoder/mid/block_1/conv2/spatial/kernel" in named and "encoder/conv_in/kernel" in named
    assert not any("conv_out" in name or "quant_conv" in name for name in named)


def test_causal_in_time(tiny):
    video = random_video(9)
    changed = video.at[:, 5:].multiply(-1)
    before, after = tiny.latents(video), tiny.latents(changed)
    np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-5)
    assert np.abs(after[:, 2] - before[:, 2]).max() > 1e-2
    indices = tiny.encode(video)
    other = indices.at[:, 2].set((indices[:, 2] + 137) % 1000)
    before, after = tiny.decode(indices), tiny.decode(other)
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-5)
    assert np.abs(after[:, 5:] - before[:, 5:]).max() > 1e-2


def test_strided_time_is_causal_too():
    config = dataclasses.replace(TINY, channel_mult=(1, 2, 2), temporal_compression=8)
    definition = make_definition(config)
    latents = jitted(definition, random_params(definition), "latents")
    video = random_video(17)
    before, after = latents(video), latents(video.at[:, 9:].multiply(-1))
    np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-5)
    np.testing.assert_allclose(latents(video[:, :9]), before[:, :2], atol=1e-5)
    assert np.abs(after[:, 2] - before[:, 2]).max() > 1e-2


def test_an_image_is_the_first_latent_frame_of_a_clip(tiny):
    video = random_video(5)
    np.testing.assert_allclose(tiny.latents(video[:, :1]), tiny.latents(video)[:, :1], atol=1e-5)
    indices = tiny.encode(video)
    np.testing.assert_allclose(tiny.decode(indices[:, :1]), tiny.decode(indices)[:, :1], rtol=1e-4, atol=1e-4)


def test_clips_of_a_batch_do_not_mix(tiny):
    video = random_video(5, batch=2)
    np.testing.assert_allclose(tiny.latents(video)[1:], tiny.latents(video[1:]), atol=1e-5)


def test_a_fresh_network_is_linear_and_keeps_the_scale_of_pixels():
    definition = make_definition(dataclasses.replace(TINY, channels=16))
    latents = jitted(definition, definition.init(jax.random.key(0)), "latents")
    video = jnp.broadcast_to(jax.random.uniform(jax.random.key(1), (8, 1, 1, 1, 3), minval=-1), (8, 5, 16, 16, 3))
    z = latents(video)
    np.testing.assert_allclose(latents(2 * video), 2 * z, rtol=1e-4, atol=1e-5)
    assert 0.2 < float(z.std()) < 2


def test_bfloat16_compute_keeps_the_interface():
    full, low = make_definition(TINY), make_definition(dataclasses.replace(TINY, dtype="bfloat16"))
    params, video = random_params(full), random_video(5)
    recon, quantized = jitted(low, params, "reconstruct")(video)
    indices = quantized.indices
    assert recon.dtype == jnp.float32 and indices.dtype == jnp.int32
    z, exact = jitted(low, params, "latents")(video), jitted(full, params, "latents")(video)
    np.testing.assert_allclose(z, exact, atol=0.3)
    assert not np.array_equal(z, exact)


def test_sizes_that_do_not_fit_are_refused(tiny):
    for shape in ((1, 4, 16, 16, 3), (1, 5, 12, 16, 3)):
        with pytest.raises(UserError, match="clip"):
            tiny.encode(jnp.zeros(shape))
    with pytest.raises(UserError, match="needs at least 3 entries"):
        Config(tokenizer=dataclasses.replace(TINY, temporal_compression=8))
    with pytest.raises(UserError, match=r"1 \+ 4k"):
        token_shape(TINY, 16, 64, 64)


# --- layers against their definitions -----------------------------------------------------------------------------


def layer(make):
    definition = Definition(make)
    return definition.bind(random_params(definition))


@pytest.mark.parametrize("stride", [1, 2])
def test_temporal_conv_equals_a_padded_3d_convolution(stride):
    conv = layer(lambda rngs: TemporalConv(3, 4, rngs, stride=stride))
    x = jax.random.normal(jax.random.key(0), (2, 6, 2, 2, 3))
    padded = jnp.concatenate([x[:, :1]] * (3 - stride) + [x], axis=1)
    expected = jax.lax.conv_general_dilated(
        padded,
        conv.kernel.get_value()[:, None, None],
        (stride, 1, 1),
        "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    np.testing.assert_allclose(conv(x), expected + conv.bias.get_value(), atol=1e-5)


def test_norm_statistics_are_those_of_one_frame():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6)) * 3 + 1
    x = x * jnp.arange(1, 4)[:, None, None, None]
    norm = layer(lambda rngs: FrameNorm(6))
    fresh = (x - x.mean((2, 3, 4), keepdims=True)) / jnp.sqrt(x.var((2, 3, 4), keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(x), fresh * norm.scale.get_value() + norm.bias.get_value(), atol=1e-5)


def test_resampling_sees_the_frames_it_should():
    down = layer(lambda rngs: Downsample(3, rngs, space=True, time=True))
    x = jax.random.normal(jax.random.key(0), (1, 7, 4, 4, 3))
    run = jax.jit(lambda x: down(x))
    touched = [np.flatnonzero(np.abs(run(x.at[:, f].add(1.0)) - run(x)).max((0, 2, 3, 4)) > 1e-6) for f in range(7)]
    assert [list(frames) for frames in touched] == [[0, 1], [1], [1, 2], [2], [2, 3], [3], [3]]
    up = layer(lambda rngs: Upsample(3, rngs, space=True, time=True))
    assert up(down(x)).shape == x.shape


def test_attention_over_time_equals_its_definition():
    attention = layer(lambda rngs: Attention(4, rngs, over="time"))
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 2, 4))
    normed = attention.norm(x)
    q, k, v = attention.q(normed), attention.k(normed), attention.v(normed)
    scores = jnp.einsum("bthwc,bshwc->bhwts", q, k) / 2
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((3, 3), bool)), scores, -jnp.inf))
    expected = x + attention.proj_out(jnp.einsum("bhwts,bshwc->bthwc", weights, v))
    np.testing.assert_allclose(attention(x), expected, atol=1e-5)


# --- metrics and the training objective --------------------------------------------------------------------------------


def test_psnr_conventions():
    video = np.full((2, 3, 16, 16, 3), 100, np.uint8)
    other = video.copy()
    other[0, 0] += 10  # one frame of three is off by 10 levels
    assert psnr(video, other)[0] == pytest.approx(10 * np.log10(255**2 / (100 / 3)), abs=1e-3)
    np.testing.assert_allclose(frame_psnr(video, other)[0], [10 * np.log10(255**2 / 100), 100, 100], atol=1e-3)
    assert psnr(video, other)[1] == 100


def test_ssim_values():
    zeros, ones = np.zeros((1, 1, 16, 16, 3), np.uint8), np.full((1, 1, 16, 16, 3), 255, np.uint8)
    assert ssim(zeros, ones)[0] == pytest.approx(9.999e-5, rel=1e-3)
    assert ssim(ones, ones)[0] == pytest.approx(1)
    # A direct double-precision evaluation of the formula at the only window of an 11 x 11 image.
    a, b = np.random.default_rng(0).integers(0, 256, (2, 11, 11)).astype(np.float64)
    g = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    w = np.outer(g, g) / g.sum() ** 2
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    videos = [np.repeat(x[None, None, ..., None], 3, axis=-1).astype(np.uint8) for x in (a, b)]
    assert ssim(*videos)[0] == pytest.approx(expected, abs=1e-5)


def test_pixels_round_trip():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(pixels)), pixels)
    assert to_float(pixels).min() == -1 and to_float(pixels).max() == 1


@pytest.fixture(scope="module")
def objective():
    return TokenizerObjective(
        Config(task="tokenizer", tokenizer=TINY, data=DataConfig(buckets=((5, 16, 16), (1, 16, 16))))
    )


def clips(num, frames=5, seed=0):
    return {"video": jnp.asarray(np.random.default_rng(seed).integers(0, 256, (num, frames, 16, 16, 3)), jnp.uint8)}


def test_loss_is_a_weighted_sum_over_clips(objective):
    params = random_params(objective.definition)
    batch, loss_of = clips(4), jax.jit(objective.loss)
    loss, weight, metrics, *_ = loss_of(params, batch, jax.random.key(1))
    assert weight == 4 and loss.dtype == weight.dtype == jnp.float32
    halves = [
        loss_of(params, {"video": batch["video"][part]}, jax.random.key(1)).sum for part in (slice(2), slice(2, 4))
    ]
    assert sum(halves) == pytest.approx(float(loss), rel=1e-5)
    config = objective.config.tokenizer
    assert loss == pytest.approx(float(config.l1_weight * metrics["l1"] + config.l2_weight * metrics["l2"]), rel=1e-5)


def test_gradient_reaches_every_parameter(objective):
    params = random_params(objective.definition, seed=1)
    gradient = jax.jit(jax.grad(lambda p: objective.loss(p, clips(1), None).sum))(params)
    flat = jax.tree_util.tree_leaves_with_path(gradient)
    dead = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in flat if not np.abs(leaf).max() > 1e-9
    ]
    # A bias of the keys shifts all scores of a query alike and cancels in the softmax.
    assert all(name.endswith("/k/bias") for name in dead), dead


def test_evaluation_sums_add_up(objective):
    params = random_params(objective.definition)
    evaluate = jax.jit(objective.evaluate_batch)
    batches = [clips(2, 5, seed=0), clips(2, 1, seed=1)]
    summary = objective.summarize(jax.tree.map(lambda *x: sum(x), *(evaluate(params, batch) for batch in batches)))
    pairs = [np.split(objective.samples(params, batch)[0], 3, axis=3)[:2] for batch in batches]
    assert summary["psnr"] == pytest.approx(np.concatenate([psnr(*pair) for pair in pairs]).mean(), abs=1e-3)
    first = np.concatenate([frame_psnr(*pair)[:, 0] for pair in pairs])
    assert summary["psnr_frame_0"] == pytest.approx(first.mean(), abs=1e-3)
    assert summary["psnr_frame_4"] == pytest.approx(float(frame_psnr(*pairs[0])[:, 4].mean()), abs=1e-3)
    assert summary["codebook_size"] == 1000 and 0 < summary["usage"] <= (2 * 8 + 2 * 4) / 1000
    assert 1 <= summary["perplexity"] <= 24


@pytest.mark.parametrize("used", [3, 30])
def test_codes_that_say_nothing_are_reported(objective, used, caplog):
    sums = jax.tree.map(np.asarray, jax.jit(objective.evaluate_batch)(random_params(objective.definition), clips(2, 5)))
    found = objective.summarize(sums | {"codes": (np.arange(1000) < used)[None].astype(np.int64)})
    assert found["usage"] == used / 1000
    assert [f"only {used} of 1000 codes occur" in line for line in caplog.messages] == [True] * (used < 8)


def test_samples_show_the_original_on_the_left(objective):
    batch = clips(2, 5)
    shown, labels = objective.samples(random_params(objective.definition), batch)
    assert shown.shape == (2, 5, 16, 48, 3) and shown.dtype == np.uint8 and len(labels) == 2
    np.testing.assert_array_equal(shown[:, :, :, :16], batch["video"])
    assert not np.array_equal(shown[:, :, :, 16:32], batch["video"])
    error = np.abs(shown[:, :, :, :16].astype(int) - shown[:, :, :, 16:32])
    np.testing.assert_array_equal(shown[:, :, :, 32:], error)
