"""Slot 4, corruption: which content tokens are replaced by [MASK] in training.

A corruption is level x temporal pattern x spatial pattern. AR-DF (Lumos-1 section 3.3) is cosine levels with a
floor, shared over frames, in temporal tubes: one random set of cells, masked in every frame, so that a masked
token can never be copied from an earlier frame.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumos.config import CorruptionConfig


def mask_ratio(u: jax.Array, level: str, floor: float) -> jax.Array:
    """Map uniform numbers in [0, 1) to mask ratios in [floor, 1].

    cosine: max(cos(pi u / 2), floor), as Lumos-1. uniform: floor + (1 - floor) u. constant: floor. full: 1.
    normal: NOVA's truncated normal with mean 1 and deviation 0.25 on [floor, 1].
    """
    if level == "cosine":
        return jnp.maximum(jnp.cos(jnp.pi * u / 2), floor)
    if level == "uniform":
        return floor + (1 - floor) * u
    if level == "normal":
        low = jax.scipy.special.ndtr((floor - 1) / 0.25)
        return 1 + 0.25 * jax.scipy.special.ndtri(low + (0.5 - low) * u)
    return jnp.full_like(u, 1.0 if level == "full" else floor)


def choose(u: jax.Array, ratio: jax.Array) -> jax.Array:
    """Mask exactly max(1, round(n * ratio)) of the n cells on the last axis, by the permutation argsort(u)."""
    num_cells = u.shape[-1]
    count = jnp.maximum(1, jnp.round(num_cells * ratio)).astype(jnp.int32)
    return jnp.argsort(u, axis=-1) < count[..., None]


def content_mask(
    key: jax.Array, batch: int, num_frames: int, num_cells: int, config: CorruptionConfig
) -> tuple[jax.Array, jax.Array]:
    """Draw a mask over the content of each frame: bool [B, T, cells], and its ratio float32 [B, T]."""
    level_key, cell_key = jax.random.split(key)
    frames = num_frames if config.temporal == "independent" else 1
    ratio_BT = mask_ratio(jax.random.uniform(level_key, (batch, frames)), config.level, config.floor)
    if config.spatial == "clip":  # one permutation over all cells of the clip
        u = jax.random.uniform(cell_key, (batch, num_frames * num_cells))
        mask = choose(u, ratio_BT[:, 0]).reshape(batch, num_frames, num_cells)
    else:
        sets = num_frames if config.spatial == "frame" else 1
        u = jax.random.uniform(cell_key, (batch, sets, num_cells))
        mask = choose(jnp.broadcast_to(u, (batch, max(sets, frames), num_cells)), ratio_BT)
    shape = (batch, num_frames, num_cells)
    return jnp.broadcast_to(mask, shape), jnp.broadcast_to(ratio_BT, shape[:2])


def drop_text(key: jax.Array, batch: int, probability: float) -> jax.Array:
    """Choose the rows that lose their text (classifier-free guidance): bool [B]."""
    return jax.random.uniform(key, (batch,)) < probability
