"""Rotary position embedding: MM-RoPE (Lumos-1 section 3.2) and the schemes it is compared with.

Rotate-half convention: channel c is paired with c + A/2, and both use inverse frequency theta^(-2 (c mod A/2) / A).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lumos.sequence.tokens import Positions

_T, _H, _W, _TEXT = 0, 1, 2, 3
# MM-RoPE spreads every axis over the whole frequency range: in each group of 16 channels t takes 4, h and w take 6.
_MM_GROUP = np.array([_T] * 4 + [_H, _H, _W, _W] * 3)


def channel_axis(head_dim: int, scheme: str = "mm") -> np.ndarray:
    """Return which axis (0 t, 1 h, 2 w, 3 plain index) rotates each of the head_dim channels of a visual token."""
    half = head_dim // 2
    if scheme == "mm":
        return np.resize(_MM_GROUP, head_dim)
    if scheme == "3d":  # contiguous 2:3:3 split, the "naive 3-D" baseline
        t, h = half * 2 // 8, half * 5 // 8
        return np.tile(np.repeat([_T, _H, _W], [t, h - t, half - h]), 2)
    return np.full(head_dim, _TEXT)


def mm_rope(
    positions: Positions, head_dim: int, theta: float = 10_000.0, scheme: str = "mm"
) -> tuple[jax.Array, jax.Array]:
    """Return cos and sin, float32 [..., L, head_dim].

    Args:
      positions: five integer arrays [..., L]: `text` (the plain sequence index), `t`, `h`, `w` (already scaled by 4,
        8, 8 and offset by the index of the first visual token) and `is_content`. Content tokens rotate channel c by
        axis `channel_axis[c]`; all others rotate every channel by `text`.
      head_dim: multiple of 32.
      theta: base of the frequencies.
      scheme: "mm", "3d" or "1d".
    """
    if head_dim % 32:
        raise ValueError(f"head_dim {head_dim} must be a multiple of 32: both channels of a pair need the same axis")
    positions, half = Positions(*positions), head_dim // 2
    # Rounded to float32 before and after the division: the frequencies that the released models were trained with.
    inv_freq = np.float32(1.0) / (theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    axis = channel_axis(head_dim, scheme)[:half]
    by_axis = jnp.stack([jnp.asarray(a) for a in (positions.t, positions.h, positions.w, positions.text)], axis=-1)
    content = by_axis[..., axis]
    plain = jnp.asarray(positions.text)[..., None]
    angle = jnp.where(jnp.asarray(positions.is_content)[..., None] > 0, content, plain).astype(jnp.float32) * inv_freq
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLNA: jax.Array, cos_LA: jax.Array, sin_LA: jax.Array) -> jax.Array:
    """Rotate queries or keys; cos and sin are [L, A] or [B, L, A]."""
    cos, sin = cos_LA[..., None, :].astype(x_BLNA.dtype), sin_LA[..., None, :].astype(x_BLNA.dtype)
    first, second = jnp.split(x_BLNA, 2, axis=-1)
    return x_BLNA * cos + jnp.concatenate([-second, first], axis=-1) * sin
