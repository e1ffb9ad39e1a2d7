"""Haar wavelet patching of video: the fixed first and last layer of the causal VAE.

`t x p x p` pixels (time, rows, columns) become one cell whose channels are Haar bands; t is p, or fewer frames. The first
frame is repeated t - 1 times, so it fills a cell of its own and an image is a one-frame video. The transform is the
log2(p)-round separable Haar transform of the Cosmos tokenizer (arXiv 2501.03575, section 4.1), applied as one
matrix product.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def haar_matrix(patch_size: int, frames: int = 0) -> np.ndarray:
    """Return the [bands, samples] analysis matrix of one block of `frames` x p x p, both axes of length frames * p**2.

    Samples run over (frame, row, column). One round takes sums and differences of neighbours along the three axes
    and divides by 8, so that a constant block keeps its value in band 0; the next round does the same on every
    band. The band of the last (coarsest) round is the most significant part of the band number, and within a round
    the order is frame, row, column. Rows are orthogonal with squared norm 1 / samples. With fewer `frames` than p (0 = p) the
    last rounds leave time alone.
    """
    frames = frames or patch_size
    num_rounds, in_time = patch_size.bit_length() - 1, frames.bit_length() - 1
    if patch_size != 1 << num_rounds or frames != 1 << in_time:
        raise ValueError(f"a patch of {frames} frames and {patch_size} rows: each must be a power of two")
    pair = np.array([[1.0, 1.0], [1.0, -1.0]])
    plane = np.kron(pair, pair)
    rounds = [np.kron(pair, plane) / 8.0 if i < in_time else plane / 4.0 for i in range(num_rounds)]
    matrix = functools.reduce(np.kron, rounds, np.ones((1, 1)))
    # Columns are ordered (t y x) of the coarsest bit, then of the next one: bring the bits of each axis together.
    axes = [axis for i in range(num_rounds) for axis in ((0, 1, 2) if i < in_time else (1, 2))]
    bits = matrix.reshape((-1, *(2,) * len(axes)))
    order = [1 + place for axis in range(3) for place, of in enumerate(axes) if of == axis]
    return bits.transpose(0, *order).reshape(matrix.shape)


def haar_patch(video_BFYXC: jax.Array, patch_size: int, *, first: bool = True, frames: int = 0) -> jax.Array:
    """Turn video [B, F, Y, X, C] with F = 1 + k * t into bands [B, 1 + k, Y / p, X / p, t * p**2 * C].

    The channel index is `band * C + colour`. Band 0 is the mean of the block. t is `frames`, 0 = p. Without `first` the frames
    continue a video: F = k * t.
    """
    p, t = patch_size, frames or patch_size
    batch, num_frames, rows, columns, colours = video_BFYXC.shape
    if (num_frames - int(first)) % t or rows % p or columns % p:
        raise ValueError(f"video of shape {video_BFYXC.shape} does not divide into patches of {p}")
    video = video_BFYXC
    if first:
        video = jnp.concatenate([jnp.repeat(video[:, :1], t - 1, axis=1), video], axis=1)
    blocks = video.reshape(batch, -1, t, rows // p, p, columns // p, p, colours)
    matrix = jnp.asarray(haar_matrix(p, t).reshape(-1, t, p, p), video.dtype)
    bands = jnp.einsum("BTtHyWxC,Ntyx->BTHWNC", blocks, matrix, precision="highest")
    return bands.reshape(*bands.shape[:4], -1)


def haar_unpatch(bands_BTHWC: jax.Array, patch_size: int, *, first: bool = True, frames: int = 0) -> jax.Array:
    """Invert `haar_patch`: bands [B, T, H, W, t * p**2 * C] -> video [B, 1 + (T - 1) * t, H * p, W * p, C]."""
    p, t = patch_size, frames or patch_size
    samples = t * p**2
    batch, _, rows, columns, channels = bands_BTHWC.shape
    bands = bands_BTHWC.reshape(*bands_BTHWC.shape[:4], samples, channels // samples)
    inverse = jnp.asarray((samples * haar_matrix(p, t)).reshape(-1, t, p, p), bands.dtype)  # samples M^T inverts M
    blocks = jnp.einsum("BTHWNC,Ntyx->BTtHyWxC", bands, inverse, precision="highest")
    video = blocks.reshape(batch, -1, rows * p, columns * p, channels // samples)
    return video[:, t - 1 :] if first else video
