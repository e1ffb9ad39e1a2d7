"""Reconstruction losses of the tokenizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumos.config import Config
from lumos.tokenizers import perceptual
from lumos.tokenizers.adversarial import ramp


def reconstruction_losses(recon_BFYXC: jax.Array, video_BFYXC: jax.Array) -> dict[str, jax.Array]:
    """Return the mean absolute ("l1") and mean squared ("l2") error of pixels in [-1, 1], float32 scalars."""
    error = recon_BFYXC.astype(jnp.float32) - video_BFYXC.astype(jnp.float32)
    return {"l1": jnp.abs(error).mean(), "l2": jnp.square(error).mean()}


class PixelLoss:
    """The weighted sum of everything that compares pixels with pixels: L1, L2, LPIPS, Gram matrices."""

    def __init__(self, config: Config):
        self._tokenizer, self._perceptual = config.tokenizer, config.perceptual
        wanted = config.perceptual.weight or config.perceptual.gram_weight
        self._net = perceptual.PerceptualNet(config.perceptual.net) if wanted else None

    def __call__(
        self, recon_BFYXC: jax.Array, video_BFYXC: jax.Array, step: jax.Array | int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss and its unweighted terms."""
        losses = reconstruction_losses(recon_BFYXC, video_BFYXC)
        total = self._tokenizer.l1_weight * losses["l1"] + self._tokenizer.l2_weight * losses["l2"]
        if self._net:
            c = self._perceptual
            images = (perceptual.frames(video) for video in (recon_BFYXC, video_BFYXC))
            made, true = (self._net.features(_moved(x, step)) for x in images)
            if c.weight:
                losses["lpips"] = self._net.lpips(made, true).mean()
                total += c.weight * ramp(step, c.start_step) * losses["lpips"]
            if c.gram_weight:
                losses["gram"] = perceptual.gram_distance(made, true)
                total += c.gram_weight * ramp(step, c.gram_start_step) * losses["gram"]
        return total, losses


def _moved(images_NYXC: jax.Array, step: jax.Array | int) -> jax.Array:
    """Cut 3 rows and 3 columns off, at every step differently many of them before the rest.

    AlexNet looks every 4 pixels. A decoder that always met it in one phase learnt to please it with a grid of that period.
    """
    batch, rows, columns, channels = images_NYXC.shape
    start = (0, step % 4, step // 4 % 4, 0)
    return jax.lax.dynamic_slice(images_NYXC, start, (batch, rows - 3, columns - 3, channels))
