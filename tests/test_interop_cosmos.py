"""The released Cosmos tokenizer: against the official implementation (golden data), streams, files."""

import dataclasses
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lumos.config import TokenizerConfig
from lumos.errors import UserError
from lumos.interop import cosmos
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.streaming import KeyMemory, VideoStream, reflect_index

TINY = TokenizerConfig(channels=4, channel_mult=(1, 2), z_channels=4)


def channels_last(array):
    return array.transpose(0, 2, 3, 4, 1)


def random_video(frames, rows=16, columns=24, batch=1, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, frames, rows, columns, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny(large_golden):
    return cosmos.load(large_golden("cosmos_tiny.safetensors")), np.load(large_golden("cosmos_tiny_golden.npz"))


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_equals_the_official_tokenizer(tiny, frames):
    tokenizer, data = tiny
    video = channels_last(data["tiny_T9/input"])[:, :frames]
    want = {key: data[f"tiny_T{frames}/{key}"] for key in ("latent", "indices", "recon")}
    np.testing.assert_allclose(tokenizer.latents(video), channels_last(want["latent"]), atol=1e-5)
    indices = tokenizer.encode(video)
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, want["indices"])
    np.testing.assert_allclose(tokenizer.decode(indices), channels_last(want["recon"]), atol=1e-4)


def test_every_tensor_is_used_or_listed_and_written_back(tiny, large_golden, tmp_path):
    tokenizer, _ = tiny
    assert all("sample.conv" in name for name in tokenizer.ignored) and len(tokenizer.ignored) == 16
    tokenizer.save(tmp_path)
    before, after = load_file(large_golden("cosmos_tiny.safetensors")), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].shape == after[name].shape and before[name].tobytes() == after[name].tobytes(), name


@pytest.mark.parametrize(
    "frames, continued",
    [
        (1, [0]),
        (5, [0, 1, 2, 3, 4]),
        # Halving twice: an odd count of frames, then of pairs, is mirrored at its last element.
        (2, [0, 1, 0, 0, 0]),
        (3, [0, 1, 2, 0, 0]),
        (4, [0, 1, 2, 3, 2]),
        (6, [0, 1, 2, 3, 4, 5, 4, 3, 4]),
    ],
)
def test_videos_of_any_length_are_continued_as_the_wavelet_does(frames, continued):
    np.testing.assert_array_equal(reflect_index(frames, 4), continued)
    # The definition: pad, pair, twice.
    sequence = [0, 0, 0, *range(frames)]
    sequence += sequence[-2:-1] * (len(sequence) % 2)
    pairs = [sequence[i : i + 2] for i in range(0, len(sequence), 2)]
    pairs += pairs[-2:-1] * (len(pairs) % 2)
    np.testing.assert_array_equal(np.concatenate(pairs)[3:], continued)


def test_odd_lengths_have_codes(tiny):
    tokenizer, _ = tiny
    video = random_video(6)
    indices = tokenizer.encode(video)
    assert indices.shape == (1, 3, 2, 3) and tokenizer.decode(indices).shape[1] == 9
    np.testing.assert_array_equal(indices[:, :2], tokenizer.encode(video[:, :5]))
    stream = tokenizer.stream()
    parts = [stream.encode(video[:, :2]), stream.encode(video[:, 2:]), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), indices)
    assert len(reflect_index(84, 4)) == 1 + 4 * 21


# --- streams ------------------------------------------------------------------------------------------------------


def random_stream(config, seed=0):
    definition = make_definition(config)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        kind = path[-1].key
        return {"scale": 1 + 0.1 * x, "bias": 0.05 * x}.get(kind, x / np.float32(np.prod(leaf.shape[:-1]) ** 0.5))

    params = jax.tree_util.tree_map_with_path(draw, definition.abstract)
    return definition, params, VideoStream(definition, config, params)


def _whole(definition, params, name, x):
    return np.asarray(jax.jit(lambda params, x: getattr(definition.bind(params), name)(x))(params, x))


def _assert_close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize("window", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_streams_equal_one_pass_over_a_hundred_frames(window):
    config = dataclasses.replace(TINY, temporal_window=window)
    definition, params, stream = random_stream(config)
    video = random_video(101)
    parts = [stream.latents(video[:, start : start + 24]) for start in range(0, 101, 24)]
    assert [part.shape[1] for part in parts] == [6, 6, 6, 6, 2] and stream.num_left == 0
    _assert_close(np.concatenate(parts, axis=1), _whole(definition, params, "latents", video))
    tokens = np.random.default_rng(1).integers(0, 1000, (1, 26, 2, 3)).astype(np.int32)
    frames = [stream.decode(tokens[:, start : start + 6]) for start in range(0, 26, 6)]
    assert [part.shape[1] for part in frames] == [21, 24, 24, 24, 8]
    _assert_close(np.concatenate(frames, axis=1), _whole(definition, params, "decode", tokens))


@pytest.mark.slow
def test_memory_is_constant_with_a_window_and_grows_without():
    def slots(window, num_chunks):
        _, _, stream = random_stream(dataclasses.replace(TINY, temporal_window=window))
        for chunk in range(num_chunks):
            stream.encode(random_video(1 if chunk == 0 else 8, 8, 8))
        entries = stream._encoder.memory
        (keys,) = [entry for entry in entries if isinstance(entry, KeyMemory)]
        others = sum(
            leaf.size for entry in entries if not isinstance(entry, KeyMemory) for leaf in jax.tree.leaves(entry)
        )
        return keys.k.shape[1], int(keys.seen), others

    assert slots(3, 2)[:2] == slots(3, 8)[:2] == (2, 2)
    assert slots(0, 2)[:2] == (8, 3) and slots(0, 8)[:2] == (16, 15)
    assert slots(3, 2)[2] == slots(3, 8)[2]


def test_a_window_limits_what_attention_sees():
    definition, params, _ = random_stream(dataclasses.replace(TINY, temporal_window=1))
    unlimited, _, _ = random_stream(TINY)
    video = random_video(9)
    narrow, wide = (_whole(d, params, "latents", video) for d in (definition, unlimited))
    np.testing.assert_allclose(narrow[:, 0], wide[:, 0], atol=1e-5)
    assert np.abs(narrow[:, 1:] - wide[:, 1:]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("spatial, temporal, patch", [pytest.param(8, 8, 4, marks=pytest.mark.slow), (8, 4, 2)])
def test_streams_go_through_strides_in_time(spatial, temporal, patch):
    sizes = dict(spatial_compression=spatial, temporal_compression=temporal, patch_size=patch)
    config = dataclasses.replace(TINY, channel_mult=(1, 2, 2), outer_norm=True, **sizes)
    definition, params, stream = random_stream(config)
    video = random_video(1 + 4 * temporal, 8, 16)
    parts = [
        stream.latents(video[:, :3]),
        stream.latents(video[:, 3 : 4 + temporal]),
        stream.latents(video[:, 4 + temporal :]),
    ]
    _assert_close(
        np.concatenate([p for p in parts if p.shape[1]], axis=1), _whole(definition, params, "latents", video)
    )
    tokens = np.random.default_rng(1).integers(0, 1000, (1, 5, 1, 2)).astype(np.int32)
    frames = [stream.decode(tokens[:, :2]), stream.decode(tokens[:, 2:])]
    _assert_close(np.concatenate(frames, axis=1), _whole(definition, params, "decode", tokens))


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A narrow DV4x8x8 of ours, in a file with the official names."""
    config = dataclasses.replace(cosmos.CONFIGS["dv4x8x8"], channels=4)
    _, params, _ = random_stream(config)
    folder = tmp_path_factory.mktemp("cosmos")
    cosmos.CosmosTokenizer(config, params).save(folder)
    return folder, params


def test_the_width_is_read_from_the_weights(own):
    folder, params = own
    tokenizer = cosmos.load(folder)
    assert tokenizer.config.channels == 4 and tokenizer.codebook_size == 64_000 and not tokenizer.ignored
    for a, b in zip(jax.tree.leaves(tokenizer.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_torchscript_archives_are_read_by_torch_alone(own, tmp_path, monkeypatch):
    folder, params = own
    tensors = load_file(folder / "model.safetensors")
    for name in ("encoder.jit", "decoder.jit"):
        (tmp_path / name).write_bytes(b"an archive")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="lumos-video\\[convert\\]"):
        cosmos.load(tmp_path)

    class Tensor(np.ndarray):
        detach = float = lambda self: self
        numpy = lambda self: np.asarray(self)

    def archive(path, map_location):
        side = "encoder" if "encoder.jit" in path else "decoder"
        keep = (f"{side}.", "quant_conv." if side == "encoder" else "post_quant_conv.")
        state = {name: tensor.view(Tensor) for name, tensor in tensors.items() if name.startswith(keep)}
        state[f"{side}.patcher3d.wavelets"] = np.ones(2).view(Tensor)
        state["quantizer._levels"] = np.ones(6).view(Tensor)
        return types.SimpleNamespace(state_dict=lambda: state)

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(jit=types.SimpleNamespace(load=archive)))
    tokenizer = cosmos.load(tmp_path)
    for a, b in zip(jax.tree.leaves(tokenizer.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_networks_are_refused_with_a_reason(own, tmp_path):
    tensors = load_file(own[0] / "model.safetensors")
    cases = {
        "patch size 2": tensors | {"encoder.conv_in.0.conv3d.weight": np.zeros((4, 24, 1, 3, 3), np.float32)},
        "lacks quant_conv.conv3d.bias": {n: t for n, t in tensors.items() if n != "quant_conv.conv3d.bias"},
        "1 tensors of another network: encoder.extra": tensors | {"encoder.extra": np.zeros(2, np.float32)},
        "has shape": tensors | {"quant_conv.conv3d.bias": np.zeros(7, np.float32)},
        "no encoder.conv_in": {"x": np.zeros(2, np.float32)},
    }
    for number, (message, changed) in enumerate(cases.items()):
        save_file(changed, tmp_path / f"{number}.safetensors")
        with pytest.raises(UserError, match=message):
            cosmos.load(tmp_path / f"{number}.safetensors")
    with pytest.raises(UserError, match="known: dv4x8x8"):
        cosmos.load(own[0], config="dv")
    with pytest.raises(UserError, match=r"float \[B, F, H, W, 3\]"):
        cosmos.load(own[0]).encode(np.zeros((1, 5, 16, 16, 3), np.uint8))
