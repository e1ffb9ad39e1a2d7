"""LPIPS, I3D and FVD: the published values where the weights are installed, the mathematics everywhere."""

import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from lumos.config import Config, DataConfig, PerceptualConfig
from lumos.errors import UserError
from lumos.evaluation import i3d
from lumos.tokenizers import package_weights, perceptual
from lumos.tokenizers.losses import PixelLoss


def needs(name):
    return pytest.mark.skipif(not package_weights.available(name), reason=f"the weights of {name} are not installed")


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_pickles_may_hold_arrays_and_nothing_else(tmp_path):
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    (tmp_path / "good").write_bytes(pickle.dumps(tree, protocol=3))
    np.testing.assert_array_equal(package_weights.read(tmp_path / "good")["a"]["b"], tree["a"]["b"])
    (tmp_path / "bad").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    with pytest.raises(UserError, match="holds more than arrays"):
        package_weights.read(tmp_path / "bad")


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "weights").write_bytes(pickle.dumps({}))
    monkeypatch.setattr(package_weights, "_path", lambda name: tmp_path / "weights")
    with pytest.raises(UserError, match="not the published file"):
        package_weights.load("i3d")


def test_lpips_with_random_weights_has_finite_gradients_even_where_features_vanish():
    rng = np.random.default_rng(0)
    sizes = [(3, 8), (8, 8), (8, 8), (8, 8), (8, 8)]
    convs = [(0.3 * rng.normal(size=(3, 3, *size)).astype(np.float32), np.zeros(size[1], np.float32)) for size in sizes]
    convs[1] = (convs[1][0] * 0, convs[1][1])  # a layer of zeros
    heads = [np.ones(size[1], np.float32) for size in sizes]
    net = perceptual.PerceptualNet("alex", {"convs": convs, "heads": heads})
    a, b = (jnp.asarray(rng.uniform(-1, 1, (2, 64, 64, 3)), jnp.float32) for _ in range(2))
    distance = jax.jit(lambda a, b: net.lpips(net.features(a), net.features(b)))
    assert distance(a, b).shape == (2,) and (distance(a, b) > 0).all()
    np.testing.assert_allclose(distance(a, a), 0, atol=1e-7)
    gradient = jax.jit(jax.grad(lambda a: distance(a, b).sum() + perceptual.gram_distance([a], [b])))(a)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_vgg_features_are_those_of_its_thirteen_convolutions():
    """Against the network written out: taps before the four poolings and at the end."""
    rng = np.random.default_rng(0)
    dims = [3, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 5, 5, 5]
    convs = [
        (rng.normal(size=(3, 3, *pair)).astype(np.float32) / 5, rng.normal(size=pair[1]).astype(np.float32) / 5)
        for pair in zip(dims, dims[1:])
    ]
    image = rng.uniform(-1, 1, (1, 32, 48, 3)).astype(np.float32)
    features = perceptual.PerceptualNet("vgg", {"convs": convs, "heads": []}).features(image)
    x = (image[0].astype(np.float64) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    expected = []
    for index, (kernel, bias) in enumerate(convs):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), axis=(0, 1))
        x = np.maximum(np.einsum("yxcij,ijcd->yxd", windows, kernel) + bias, 0)
        if index in (1, 3, 6, 9, 12):
            expected.append(x)
        if index in (1, 3, 6, 9):
            x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max(axis=(1, 3))
    assert len(features) == 5
    for made, true in zip(features, expected):
        np.testing.assert_allclose(made[0], true, atol=1e-4)


def test_frechet_distance_equals_the_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 6)), rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert i3d.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert i3d.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    few = rng.normal(size=(4, 40))  # fewer clips than features
    assert i3d.frechet_distance(few, few) == pytest.approx(0, abs=1e-4)
    assert i3d.frechet_distance(few, few + 2) == pytest.approx(160, rel=1e-6)


def test_batch_norms_fold_into_convolutions():
    rng = np.random.default_rng(0)
    kernel, bias, mean = rng.normal(size=(1, 1, 1, 2, 3)), rng.normal(size=3), rng.normal(size=3)
    var = rng.uniform(0.5, 2, 3)
    node = {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": bias}}
    stats = {"BatchNorm_0": {"mean": mean.reshape(1, 1, 1, 1, 3), "var": var.reshape(1, 1, 1, 1, 3)}}
    folded = i3d.fold({"Mixed": {"Conv": node}}, {"Mixed": {"Conv": stats}})
    new_kernel, new_bias = folded["Mixed/Conv"]
    x = rng.normal(size=2)
    expected = (x @ kernel[0, 0, 0] - mean) / np.sqrt(var + 1e-3) + bias
    np.testing.assert_allclose(x @ new_kernel[0, 0, 0] + new_bias, expected, rtol=1e-5)


def test_i3d_is_its_3d_convolutions_with_their_norms():
    """Against the network written out with 3D convolutions and unfolded norms, two channels wide, random weights."""
    rng, params, stats = np.random.default_rng(0), {}, {}

    def add(name, size, inputs, outputs=2, norm=True):
        *path, last = name.split("/")
        nodes = [params, stats] if norm else [params]
        for i, node in enumerate(nodes):
            for part in path:
                node = node.setdefault(part, {})
            scale = 1.5 / np.sqrt(np.prod(size) * inputs)
            kernel = {"kernel": (scale * rng.normal(size=(*size, inputs, outputs))).astype(np.float32)}
            if not norm:
                node[last] = {"Conv_0": kernel | {"bias": rng.normal(size=outputs).astype(np.float32)}}
            elif i == 0:
                node[last] = {"Conv_0": kernel, "BatchNorm_0": {"bias": rng.normal(size=outputs).astype(np.float32)}}
            else:
                mean, var = rng.normal(size=outputs), rng.uniform(0.5, 2, outputs)
                node[last] = {"BatchNorm_0": {"mean": mean.astype(np.float32), "var": var.astype(np.float32)}}
        stats.setdefault(name.split("/")[0], {})

    def conv(name, x, stride=(1, 1, 1), norm=True):
        node, stat = params, stats
        for part in name.split("/"):
            node, stat = node[part], stat.get(part, {})
        dims = ("NDHWC", "DHWIO", "NDHWC")
        y = jax.lax.conv_general_dilated(
            x, node["Conv_0"]["kernel"], stride, "SAME", dimension_numbers=dims, precision="highest"
        )
        if not norm:
            return y + node["Conv_0"]["bias"]
        stat = stat["BatchNorm_0"]
        return jax.nn.relu((y - stat["mean"]) / jnp.sqrt(stat["var"] + 1e-3) + node["BatchNorm_0"]["bias"])

    def pool(x, size, stride):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *size, 1), (1, *stride, 1), "SAME")

    def mixed(name, x):
        one = [conv(f"{name}/Branch_{i}/Conv3d_0a_1x1", x) for i in range(3)]
        wide = [conv(f"{name}/Branch_{i}/Conv3d_0b_3x3", one[i]) for i in (1, 2)]
        return jnp.concatenate(
            [one[0], *wide, conv(f"{name}/Branch_3/Conv3d_0b_1x1", pool(x, (3, 3, 3), (1, 1, 1)))], -1
        )

    names = ["Mixed_3b", "Mixed_3c", *(f"Mixed_4{letter}" for letter in "bcdef"), "Mixed_5b", "Mixed_5c"]
    add("Conv3d_1a_7x7", (7, 7, 7), 3)
    add("Conv3d_2b_1x1", (1, 1, 1), 2)
    add("Conv3d_2c_3x3", (3, 3, 3), 2)
    for i, name in enumerate(names):
        inputs = 8 if i else 2
        for branch in range(3):
            add(f"{name}/Branch_{branch}/Conv3d_0a_1x1", (1, 1, 1), inputs)
        for branch in (1, 2):
            add(f"{name}/Branch_{branch}/Conv3d_0b_3x3", (3, 3, 3), 2)
        add(f"{name}/Branch_3/Conv3d_0b_1x1", (1, 1, 1), inputs)
    add("Logits/Conv3d_0c_1x1", (1, 1, 1), 8, 5, norm=False)

    @jax.jit
    def written_out(x):
        x = pool(conv("Conv3d_1a_7x7", x, (2, 2, 2)), (1, 3, 3), (1, 2, 2))
        x = pool(conv("Conv3d_2c_3x3", conv("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
        for name in names:
            x = pool(x, (3, 3, 3), (2, 2, 2)) if name == "Mixed_4b" else x
            x = pool(x, (2, 2, 2), (2, 2, 2)) if name == "Mixed_5b" else x
            x = mixed(name, x)
        means = jnp.stack([x[:, t : t + 2].mean((1, 2, 3)) for t in range(x.shape[1] - 1)], axis=1)  # 2 x 7 x 7
        return conv("Logits/Conv3d_0c_1x1", means[:, :, None, None], norm=False).mean((1, 2, 3))

    video = rng.integers(0, 256, (1, 18, 224, 224, 3), np.uint8)  # three frames are left at the end
    found = jax.jit(i3d.logits)(i3d.fold(params, stats), video)
    np.testing.assert_allclose(found, written_out(video.astype(np.float32) / 127.5 - 1), rtol=2e-4, atol=2e-4)
    assert np.asarray(found).std() > 0.01


def test_short_clips_are_refused():
    with pytest.raises(UserError, match="at least 9 frames"):
        i3d.logits({}, jnp.zeros((1, 8, 16, 16, 3), jnp.uint8))


@needs("lpips alex")
@pytest.mark.parametrize("net, golden", [("alex", 0.81401)])
def test_lpips_of_black_and_white(net, golden):
    """Golden value of the official implementation for black against white, 64 x 64."""
    model = perceptual.PerceptualNet(net)
    black, white = -jnp.ones((1, 64, 64, 3)), jnp.ones((1, 64, 64, 3))
    distance = jax.jit(lambda a, b: model.lpips(model.features(a), model.features(b)))
    assert float(distance(black, white)[0]) == pytest.approx(golden, abs=2e-4)


@needs("i3d")
@pytest.mark.parametrize("frames, golden", [(16, 152.902), (30, 151.392)])
def test_fvd_of_black_and_white(frames, golden):
    """The original network's FVD between black and white clips (all clips alike: only means differ)."""
    params, run = i3d.load_params(), jax.jit(i3d.logits)
    black, white = (np.full((1, frames, 64, 64, 3), value, np.uint8) for value in (0, 255))
    distance = i3d.frechet_distance(run(params, black), run(params, white))
    assert distance == pytest.approx(golden, abs=0.02)


def test_a_network_that_sees_every_fourth_pixel_does_not_overlook_a_grid(monkeypatch):
    class EveryFourth:
        features = staticmethod(lambda images: images[:, ::4, ::4])
        lpips = staticmethod(lambda a, b: jnp.square(a - b).mean(axis=(1, 2, 3)))

    monkeypatch.setattr(perceptual, "PerceptualNet", lambda net: EveryFourth)
    loss = PixelLoss(
        Config(
            task="tokenizer",
            data=DataConfig(buckets=((5, 64, 64),)),
            perceptual=PerceptualConfig(net="alex", weight=1.0),
        )
    )
    video = jnp.zeros((1, 2, 16, 16, 3))
    grid = video.at[:, :, 1::4, 2::4].set(1.0)
    seen = [float(loss(grid, video, step)[1]["lpips"]) for step in range(32)]
    assert sum(value > 0 for value in seen) == 2  # each of the 16 phases comes twice
