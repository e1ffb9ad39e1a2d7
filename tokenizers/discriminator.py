"""Discriminators: convolutional nets that judge overlapping patches (PatchGAN, arXiv 1611.07004), in 3D or by frame."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lumos.config import AdversarialConfig
from lumos.model.definition import param, statistic
from lumos.tokenizers.layers import FrameNorm, frames_as_channels, same_padding


class PatchDiscriminator(nnx.Module):
    """Strided convolutions of size 4 in space, and of size 3 in time where `over_time`; one logit for each patch.

    Norms see one frame at a time and padding keeps short clips whole, so that clips of any length, and images, have
    logits. The first strided layer keeps time as it is.
    """

    def __init__(self, config: AdversarialConfig, rngs: nnx.Rngs, *, over_time: bool):
        dims = [3, *(config.channels * min(2**i, 8) for i in range(config.num_layers))]
        self._last, kernel = config.num_layers, (3 if over_time else 1, 4, 4)
        for i in range(config.num_layers):
            stride = (2 if over_time and i else 1, 2, 2)
            setattr(self, f"conv{i}", Conv(dims[i], dims[i + 1], kernel, stride, rngs))
            if i:
                setattr(self, f"norm{i}", FrameNorm(dims[i + 1]))
        setattr(self, f"conv{self._last}", Conv(dims[-1], 1, kernel, (1, 1, 1), rngs, axis=None))

    def __call__(self, video_BFYXC: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Return logits [B, ...] of a video in [-1, 1] and the features of the layers before."""
        x, features = video_BFYXC, []
        for i in range(self._last):
            x = getattr(self, f"conv{i}")(x)
            if i:
                x = getattr(self, f"norm{i}")(x)
            x = jax.nn.leaky_relu(x, 0.2)
            features.append(x)
        return getattr(self, f"conv{self._last}")(x)[..., 0], features


class Discriminator(nnx.Module):
    """The configured discriminators and, for LeCAM, the running mean logits [N, 2] of each for real and for made clips."""

    def __init__(self, config: AdversarialConfig, rngs: nnx.Rngs):
        if config.discriminator in ("video", "both"):
            self.video = PatchDiscriminator(config, rngs, over_time=True)
        if config.discriminator in ("frame", "both"):
            self.frame = PatchDiscriminator(config, rngs, over_time=False)
        num_nets = 2 if config.discriminator == "both" else 1
        self.mean_logits = statistic(jnp.zeros((num_nets, 2)), (None, None))

    def __call__(self, video_BFYXC: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return the logits of each discriminator and the features of all of them."""
        nets = [getattr(self, name) for name in ("video", "frame") if hasattr(self, name)]
        logits, features = zip(*(net(video_BFYXC) for net in nets))
        return list(logits), [x for layers in features for x in layers]


class Conv(nnx.Module):
    """3D convolution with "same" padding. Kernel [t, y, x, in, out]; stride (1 or 2, 1, 1) or (1 or 2, 2, 2).

    It runs as a 2D convolution of stride 1: the frames that a kernel sees become channels, and with stride 2 so do the
    four pixels of a 2x2 block. XLA has no fast gradient of strided 3D convolutions on CPUs.
    """

    def __init__(self, in_dim: int, out_dim: int, size, stride, rngs: nnx.Rngs, *, axis: str | None = "channels"):
        self._stride = stride
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1, 2, 3))
        self.kernel = param(init(rngs.params(), (*size, in_dim, out_dim), jnp.float32), (None,) * 4 + (axis,))
        self.bias = param(jnp.zeros(out_dim), (None,))

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        *size, _, out_dim = kernel.shape
        padding = [same_padding(*numbers) for numbers in zip(x_BTHWC.shape[2:4], size[1:], self._stride[1:])]
        x = frames_as_channels(jnp.pad(x_BTHWC, ((0, 0), (0, 0), *padding, (0, 0))), size[0], self._stride[0])
        batch, frames, rows, columns, dim = x.shape
        b = self._stride[1]
        x = x.reshape(batch * frames, rows // b, b, columns // b, b, dim).swapaxes(2, 3)
        x = x.reshape(batch * frames, rows // b, columns // b, b * b * dim)
        kernel = kernel.reshape(size[0], size[1] // b, b, size[2] // b, b, -1, out_dim).transpose(1, 3, 2, 4, 0, 5, 6)
        y = jax.lax.conv_general_dilated(
            x,
            kernel.reshape(size[1] // b, size[2] // b, b * b * dim, out_dim),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.reshape(batch, frames, *y.shape[1:]) + self.bias[...]
