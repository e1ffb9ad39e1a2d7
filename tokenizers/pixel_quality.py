"""Reconstruction quality: PSNR and SSIM of batches of uint8 videos [B, F, Y, X, 3]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

MAX_PSNR = 100.0  # reported for identical clips, whose PSNR is infinite


def to_float(video: jax.Array) -> jax.Array:
    """Map uint8 pixels to float32 in [-1, 1]: 2 v / 255 - 1."""
    return video.astype(jnp.float32) / 127.5 - 1


def to_uint8(video: jax.Array) -> jax.Array:
    """Clip to [-1, 1] and round to uint8 pixels, the inverse of `to_float`."""
    return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def psnr(video_BFYXC: jax.Array, other_BFYXC: jax.Array) -> jax.Array:
    """Return the PSNR of each clip in dB, [B]: 10 log10(255**2 / MSE), MSE over all pixels of the clip.

    The per-video convention. It is never above the mean of `frame_psnr`, which some papers report instead.
    """
    return _decibel(_squared_error(video_BFYXC, other_BFYXC).mean(axis=(1, 2, 3, 4)))


def frame_psnr(video_BFYXC: jax.Array, other_BFYXC: jax.Array) -> jax.Array:
    """Return the PSNR of each frame in dB, [B, F]."""
    return _decibel(_squared_error(video_BFYXC, other_BFYXC).mean(axis=(2, 3, 4)))


def ssim(video_BFYXC: jax.Array, other_BFYXC: jax.Array) -> jax.Array:
    """Return the mean SSIM of each clip, [B] (Wang et al. 2004).

    An 11 x 11 Gaussian window with sigma 1.5, K1 = 0.01, K2 = 0.03, only windows that lie inside the frame; the mean
    runs over windows, RGB channels and frames. Frames must be at least 11 x 11.
    """
    batch, frames, rows, columns, colours = video_BFYXC.shape
    a, b = (
        jnp.moveaxis(video.astype(jnp.float32), -1, 2).reshape(-1, rows, columns, 1)
        for video in (video_BFYXC, other_BFYXC)
    )
    # Centring leaves variances as they are and keeps E[a^2] - E[a]^2 accurate in float32.
    centre = 127.5
    a, b = a - centre, b - centre
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + centre, mean_b + centre
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * contrast).reshape(batch, -1).mean(axis=1)


def _squared_error(video: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.square(video.astype(jnp.float32) - other.astype(jnp.float32))


def _decibel(mse: jax.Array) -> jax.Array:
    return jnp.minimum(10 * jnp.log10(255.0**2 / jnp.maximum(mse, 1e-12)), MAX_PSNR)


def _blur(images_NYX1: jax.Array) -> jax.Array:
    """Average under the Gaussian window, separably, without padding."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = jnp.asarray(window / window.sum(), jnp.float32)
    for kernel in (window.reshape(11, 1, 1, 1), window.reshape(1, 11, 1, 1)):
        images_NYX1 = jax.lax.conv_general_dilated(
            images_NYX1, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
    return images_NYX1
