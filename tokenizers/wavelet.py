"""Haar wavelet patching of video: the fixed first and last layer of the causal VAE.

`p x p x p` pixels (time, rows, columns) become one cell whose channels are Haar bands. The first frame is
repeated p - 1 times, so it fills a cell of its own and an image is a one-frame video. The transform is the
log2(p)-round separable Haar transform of the Cosmos tokenizer (arXiv 2501.03575, section 4.1), applied as one
matrix product.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def haar_matrix(patch_size: int) -> np.ndarray:
    """Return the [bands, samples] analysis matrix of one p x p x p block, both axes of length p**3.

    Samples run over (frame, row, column). One round takes sums and differences of neighbours along the three axes
    and divides by 8, so that a constant block keeps its value in band 0; the next round does the same on every
    band. The band of the last (coarsest) round is the most significant part of the band number, and within a round
    the order is frame, row, column. Rows are orthogonal with squared norm p**-3.
    """
    num_rounds = patch_size.bit_length() - 1
    if patch_size != 1 << num_rounds:
        raise ValueError(f"patch size {patch_size} is not a power of two")
    pair = np.array([[1.0, 1.0], [1.0, -1.0]])
    one_round = np.kron(pair, np.kron(pair, pair)) / 8.0
    matrix = functools.reduce(np.kron, [one_round] * num_rounds, np.ones((1, 1)))
    # Columns are ordered (t y x) of the coarsest bit, then of the next one: bring the bits of each axis together.
    bits = matrix.reshape((-1, *(2,) * (3 * num_rounds)))
    order = [1 + 3 * bit + axis for axis in range(3) for bit in range(num_rounds)]
    return bits.transpose(0, *order).reshape(patch_size**3, patch_size**3)


def haar_patch(video_BFYXC: jax.Array, patch_size: int, *, first: bool = True) -> jax.Array:
    """Turn video [B, F, Y, X, C] with F = 1 + k * p into bands [B, 1 + k, Y / p, X / p, p**3 * C].

    The channel index is `band * C + colour`. Band 0 is the mean of the block. Without `first` the frames continue a
    video: F = k * p.
    """
    p = patch_size
    batch, frames, rows, columns, colours = video_BFYXC.shape
    if (frames - int(first)) % p or rows % p or columns % p:
        raise ValueError(f"video of shape {video_BFYXC.shape} does not divide into patches of {p}")
    video = video_BFYXC
    if first:
        video = jnp.concatenate([jnp.repeat(video[:, :1], p - 1, axis=1), video], axis=1)
    blocks = video.reshape(batch, -1, p, rows // p, p, columns // p, p, colours)
    matrix = jnp.asarray(haar_matrix(p).reshape(-1, p, p, p), video.dtype)
    bands = jnp.einsum("BTtHyWxC,Ntyx->BTHWNC", blocks, matrix, precision="highest")
    return bands.reshape(*bands.shape[:4], -1)


def haar_unpatch(bands_BTHWC: jax.Array, patch_size: int, *, first: bool = True) -> jax.Array:
    """Invert `haar_patch`: bands [B, T, H, W, p**3 * C] -> video [B, 1 + (T - 1) * p, H * p, W * p, C]."""
    p = patch_size
    batch, _, rows, columns, channels = bands_BTHWC.shape
    bands = bands_BTHWC.reshape(*bands_BTHWC.shape[:4], p**3, channels // p**3)
    inverse = jnp.asarray((p**3 * haar_matrix(p)).reshape(-1, p, p, p), bands.dtype)  # p**3 M^T inverts M
    blocks = jnp.einsum("BTHWNC,Ntyx->BTtHyWxC", bands, inverse, precision="highest")
    video = blocks.reshape(batch, -1, rows * p, columns * p, channels // p**3)
    return video[:, p - 1 :] if first else video
