"""Layers of the causal 3D VAE, channels last: activations are [B, T, H, W, C].

The factorised layers of the Cosmos tokenizer (arXiv 2501.03575, section 4.1): a 3x3x3 convolution is a (1, 3, 3)
one followed by a causal (3, 1, 1) one. Space is padded with zeros, time by repeating the first frame, and every
norm sees one frame (or one position) only, so no output depends on a later frame. Compute follows the dtype of the input; norm
statistics are float32. `axis` names the logical axis of a kernel's output channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lumos.model.definition import param
from lumos.tokenizers.streaming import Stream

_fan_in_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def _init(shape: tuple[int, ...], gain: float, rngs: nnx.Rngs) -> jax.Array:
    """Draw a kernel [..., in, out] whose outputs have `gain` times the standard deviation of its inputs."""
    return gain * _fan_in_normal(rngs.params(), shape, jnp.float32)


class Dense(nnx.Module):
    """1x1x1 convolution. Kernel [in, out]."""

    def __init__(self, in_dim: int, out_dim: int, rngs: nnx.Rngs, *, axis: str | None = "channels", gain: float = 1.0):
        self.kernel = param(_init((in_dim, out_dim), gain, rngs), (None, axis))
        self.bias = param(jnp.zeros(out_dim), (None,))

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        return x_BTHWC @ self.kernel.astype(x_BTHWC.dtype) + self.bias.astype(x_BTHWC.dtype)


class SpatialConv(nnx.Module):
    """(1, 3, 3) convolution, run as a 2D one over B * T images. Kernel [3, 3, in, out].

    With stride 2 the padding is one row below and one column to the right.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        axis: str | None = "channels",
        gain: float = 1.0,
    ):
        self.stride = stride
        self.kernel = param(_init((3, 3, in_dim, out_dim), gain, rngs), (None, None, None, axis))
        self.bias = param(jnp.zeros(out_dim), (None,))

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        batch, frames, *image = x_BTHWC.shape
        padding = (1, 1) if self.stride == 1 else (0, 1)
        y = jax.lax.conv_general_dilated(
            x_BTHWC.reshape(batch * frames, *image),
            self.kernel.astype(x_BTHWC.dtype),
            window_strides=(self.stride, self.stride),
            padding=(padding, padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.reshape(batch, frames, *y.shape[1:]) + self.bias.astype(y.dtype)


class TemporalConv(nnx.Module):
    """Causal (3, 1, 1) convolution as three shifted matrix products. Kernel [3, in, out], the last tap is now.

    In front stand the last 3 - stride frames of the chunk before, or copies of the first frame.
    """

    def __init__(self, in_dim: int, out_dim: int, rngs: nnx.Rngs, *, stride: int = 1, axis: str | None = "channels"):
        self.stride = stride
        self.kernel = param(_init((3, in_dim, out_dim), 1.0, rngs), (None, None, axis))
        self.bias = param(jnp.zeros(out_dim), (None,))

    def __call__(self, x_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        padded = (stream or Stream()).extend(x_BTHWC, 3 - self.stride)
        span = padded.shape[1] - 2
        kernel = self.kernel.astype(padded.dtype)
        taps = [padded[:, tap : tap + span : self.stride] @ kernel[tap] for tap in range(3)]
        return sum(taps) + self.bias.astype(padded.dtype)


class FactorizedConv(nnx.Module):
    """(1, 3, 3) convolution, then causal (3, 1, 1) convolution, nothing in between."""

    def __init__(self, in_dim: int, out_dim: int, rngs: nnx.Rngs, *, axis: str | None = "channels", gain: float = 1.0):
        self.spatial = SpatialConv(in_dim, out_dim, rngs, axis=axis, gain=gain)
        self.temporal = TemporalConv(out_dim, out_dim, rngs, axis=axis)

    def __call__(self, x_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        return self.temporal(self.spatial(x_BTHWC), stream)


class FrameNorm(nnx.Module):
    """Normalise each frame over rows, columns and channels together (group norm with one group), then scale."""

    def __init__(self, dim: int):
        self.scale = param(jnp.ones(dim), (None,))
        self.bias = param(jnp.zeros(dim), (None,))

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        x = x_BTHWC.astype(jnp.float32)
        mean = x.mean(axis=(2, 3, 4), keepdims=True)
        variance = jnp.square(x - mean).mean(axis=(2, 3, 4), keepdims=True)
        y = (x - mean) * jax.lax.rsqrt(variance + 1e-6) * self.scale + self.bias
        return y.astype(x_BTHWC.dtype)


class PositionNorm(nnx.Module):
    """Normalise each position over its channels (RMS norm), then scale: no cell depends on another through it."""

    def __init__(self, dim: int):
        self.scale = param(jnp.ones(dim), (None,))

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        x = x_BTHWC.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6) * self.scale
        return y.astype(x_BTHWC.dtype)


NORMS = {"frame": FrameNorm, "position": PositionNorm}


class ResidualBlock(nnx.Module):
    """norm, swish, conv, norm, swish, conv beside an identity (or a 1x1x1 map where the channels change).

    The last layer of the branch starts at zero (Zhang et al., arXiv 1901.09321), so a new network is linear.
    """

    def __init__(self, in_dim: int, out_dim: int, rngs: nnx.Rngs, *, norm: str = "frame"):
        self.norm1 = NORMS[norm](in_dim)
        self.conv1 = FactorizedConv(in_dim, out_dim, rngs)
        self.norm2 = NORMS[norm](out_dim)
        self.conv2 = FactorizedConv(out_dim, out_dim, rngs, gain=0.0)
        if in_dim != out_dim:
            self.nin_shortcut = Dense(in_dim, out_dim, rngs)

    def __call__(self, x_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        branch = self.conv1(jax.nn.silu(self.norm1(x_BTHWC)), stream)
        branch = self.conv2(jax.nn.silu(self.norm2(branch)), stream)
        identity = self.nin_shortcut(x_BTHWC) if hasattr(self, "nin_shortcut") else x_BTHWC
        return identity + branch


class Attention(nnx.Module):
    """Pre-norm single-head attention with a residual: `over="space"` within a frame, `over="time"` causal per cell.

    There is no position encoding. In time a frame sees the last `window` frames, itself included; 0 = all.
    """

    def __init__(self, dim: int, rngs: nnx.Rngs, *, over: str, window: int = 0, norm: str = "frame"):
        self.over, self.window = over, window
        self.norm = NORMS[norm](dim)
        self.q = Dense(dim, dim, rngs)
        self.k = Dense(dim, dim, rngs)
        self.v = Dense(dim, dim, rngs)
        self.proj_out = Dense(dim, dim, rngs, gain=0.0)

    def __call__(self, x_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        normed = self.norm(x_BTHWC)
        q, k, v = (self._to_sequences(layer(normed)) for layer in (self.q, self.k, self.v))
        if self.over == "time":
            mixed = (stream or Stream()).attend(q, k, v, self.window)
        else:
            mixed = jax.nn.dot_product_attention(q, k, v)
        return x_BTHWC + self.proj_out(self._to_video(mixed, x_BTHWC.shape))

    def _to_sequences(self, x_BTHWC: jax.Array) -> jax.Array:
        batch, frames, rows, columns, dim = x_BTHWC.shape
        if self.over == "space":
            return x_BTHWC.reshape(batch * frames, rows * columns, 1, dim)
        return x_BTHWC.swapaxes(1, 2).swapaxes(2, 3).reshape(batch * rows * columns, frames, 1, dim)

    def _to_video(self, sequences: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        batch, frames, rows, columns, dim = shape
        if self.over == "space":
            return sequences.reshape(shape)
        return sequences.reshape(batch, rows, columns, frames, dim).swapaxes(2, 3).swapaxes(1, 2)


class Downsample(nnx.Module):
    """Halve rows and columns and/or time: strided convolution plus average pooling, then a 1x1x1 map.

    Time goes from 1 + 2k to 1 + k frames: frame j of the output sees frames 2j - 2 ... 2j.
    """

    def __init__(self, dim: int, rngs: nnx.Rngs, *, space: bool, time: bool):
        if space:
            self.conv1 = SpatialConv(dim, dim, rngs, stride=2)
        if time:
            self.conv2 = TemporalConv(dim, dim, rngs, stride=2)
        self.conv3 = Dense(dim, dim, rngs)

    def __call__(self, x_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        x, stream = x_BTHWC, stream or Stream()
        if hasattr(self, "conv1"):
            batch, frames, rows, columns, dim = x.shape
            pooled = x.reshape(batch, frames, rows // 2, 2, columns // 2, 2, dim).mean(axis=(3, 5))
            x = self.conv1(x) + pooled
        if hasattr(self, "conv2"):
            if stream.first:
                x = jnp.concatenate([x[:, :1], x], axis=1)
            x = self.conv2(x, stream) + (x[:, ::2] + x[:, 1::2]) / 2
        return self.conv3(x)


class Upsample(nnx.Module):
    """Double time and/or rows and columns: repetition plus a convolution of it, then a 1x1x1 map.

    Time goes from 1 + k to 1 + 2k frames.
    """

    def __init__(self, dim: int, rngs: nnx.Rngs, *, space: bool, time: bool):
        if time:
            self.conv1 = TemporalConv(dim, dim, rngs)
        if space:
            self.conv2 = SpatialConv(dim, dim, rngs)
        self.conv3 = Dense(dim, dim, rngs)

    def __call__(self, x_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        x, stream = x_BTHWC, stream or Stream()
        if hasattr(self, "conv1"):
            x = jnp.repeat(x, 2, axis=1)[:, int(stream.first) :]
            x = x + self.conv1(x, stream)
        if hasattr(self, "conv2"):
            x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
            x = x + self.conv2(x)
        return self.conv3(x)


def frames_as_channels(x_BTHWC: jax.Array, size: int, stride: int = 1) -> jax.Array:
    """Return [B, T / stride, H, W, size * C]: side by side, the frames that a temporal kernel with "same" padding sees.

    With them a 3D convolution is a 2D one, for which XLA has faster code on CPUs, above all for its gradient.
    """
    x = jnp.pad(x_BTHWC, ((0, 0), same_padding(x_BTHWC.shape[1], size, stride), (0, 0), (0, 0), (0, 0)))
    last = x.shape[1] - size + 1
    return jnp.concatenate([x[:, t : t + last : stride] for t in range(size)], axis=-1)


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Return what "same" padding adds before and after."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2
