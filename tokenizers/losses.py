"""Reconstruction losses of the tokenizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumos.config import Config
from lumos.tokenizers import perceptual
from lumos.tokenizers.adversarial import ramp


def reconstruction_losses(
    recon_BFYXC: jax.Array, video_BFYXC: jax.Array, weights: jax.Array | float = 1.0
) -> dict[str, jax.Array]:
    """Return the mean absolute ("l1") and mean squared ("l2") error of pixels in [-1, 1], float32 scalars."""
    error = recon_BFYXC.astype(jnp.float32) - video_BFYXC.astype(jnp.float32)
    return {"l1": (weights * jnp.abs(error)).mean(), "l2": (weights * jnp.square(error)).mean()}


def motion_weights(video_BFYXC: jax.Array, motion_weight: float) -> jax.Array:
    """Return the weight of each pixel, [B, F, Y, X, 1]: 1, and more in proportion to how far it is from the mean of its clip's frames.

    The mean of the weights over a batch is 1 + motion_weight, however few pixels move; without motion all are 1.
    """
    video_BFYXC = video_BFYXC.astype(jnp.float32)
    moved_BFYX1 = jnp.abs(video_BFYXC - video_BFYXC.mean(1, keepdims=True)).mean(-1, keepdims=True)
    return 1 + motion_weight * moved_BFYX1 / jnp.maximum(moved_BFYX1.mean(), 1e-6)


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
        weighted, weight = losses, self._tokenizer.motion_weight
        if weight:
            weighted = reconstruction_losses(recon_BFYXC, video_BFYXC, motion_weights(video_BFYXC, weight))
        total = self._tokenizer.l1_weight * weighted["l1"] + self._tokenizer.l2_weight * weighted["l2"]
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
