"""Reconstruction losses of the tokenizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumos.config import TokenizerConfig


def reconstruction_losses(recon_BFYXC: jax.Array, video_BFYXC: jax.Array) -> dict[str, jax.Array]:
    """Return the mean absolute ("l1") and mean squared ("l2") error of pixels in [-1, 1], float32 scalars."""
    error = recon_BFYXC.astype(jnp.float32) - video_BFYXC.astype(jnp.float32)
    return {"l1": jnp.abs(error).mean(), "l2": jnp.square(error).mean()}


def total_loss(losses: dict[str, jax.Array], auxiliary: dict[str, jax.Array], config: TokenizerConfig) -> jax.Array:
    """Weigh the reconstruction losses as configured and add the quantiser's own losses (already weighted)."""
    weighted = config.l1_weight * losses["l1"] + config.l2_weight * losses["l2"]
    return weighted + sum(auxiliary.values())
