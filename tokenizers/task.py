"""The tokenizer as a task of the training loop: loss, evaluation and samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos import sharding
from lumos.config import Config
from lumos.model.definition import Params
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.losses import reconstruction_losses, total_loss
from lumos.tokenizers.metrics import frame_psnr, psnr, ssim, to_float, to_uint8
from lumos.tokenizers.quantizers import code_histogram, codebook_usage, perplexity
from lumos.training import flops

Batch = dict[str, jax.Array]  # {"video": uint8 [B, F, Y, X, 3]}


class TokenizerTask:
    """Train the causal VAE to reproduce its input. `loss` and `evaluate_batch` are pure, for the caller to jit."""

    def __init__(self, config: Config):
        self.config = config
        self.definition = make_definition(config.tokenizer)
        self.codebook_size = self.definition.bind(self.definition.abstract).quantizer.codebook_size
        self._max_frames = max(frames for frames, _, _ in config.data.buckets)
        self._reconstruct_pixels = jax.jit(self._reconstruct)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Return (sum over clips of the loss, number of clips, metrics summed over clips)."""
        del key  # nothing is random
        video = to_float(batch["video"])
        recon, _, auxiliary = self.definition.bind(params).reconstruct(video)
        losses = reconstruction_losses(recon, video)
        loss = total_loss(losses, auxiliary, self.config.tokenizer)
        weight = jnp.float32(video.shape[0])
        # Before rounding to 8 bits and over the whole batch; evaluation uses the exact definition.
        estimate = 10 * jnp.log10(4 / jnp.maximum(losses["l2"], 1e-12))
        metrics = {**losses, **auxiliary, "psnr": estimate}
        return loss * weight, weight, {name: value * weight for name, value in metrics.items()}

    def evaluate_batch(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Return sums over the clips of a batch; sums of several batches add up."""
        video = batch["video"]
        recon, indices, _ = self.definition.bind(params).reconstruct(to_float(video))
        recon = to_uint8(recon)
        frames = video.shape[1]
        positions = jnp.arange(self._max_frames) < frames
        per_frame = frame_psnr(recon, video).sum(axis=0)
        return {
            "clips": jnp.float32(video.shape[0]),
            "psnr": psnr(recon, video).sum(),
            "ssim": ssim(recon, video).sum(),
            "frame_clips": positions * jnp.float32(video.shape[0]),
            "frame_psnr": jnp.pad(per_frame, (0, self._max_frames - frames)),
            "codes": code_histogram(indices, self.codebook_size),
        }

    def summarize(self, sums: dict[str, Any]) -> dict[str, float]:
        """Turn the added sums into scalars.

        `psnr` is the mean over clips of the per-clip PSNR, `frame_psnr` the mean over frames of the mean per-frame
        PSNR, `psnr_frame_<i>` that of frame i. `usage` is the share of codes that occurred, `perplexity` exp(entropy).
        """
        sums = jax.tree.map(np.asarray, sums)
        num_clips = float(sums["clips"])
        seen = sums["frame_clips"] > 0
        by_frame = sums["frame_psnr"][seen] / sums["frame_clips"][seen]
        return {
            "psnr": float(sums["psnr"]) / num_clips,
            "ssim": float(sums["ssim"]) / num_clips,
            "frame_psnr": float(sums["frame_psnr"].sum() / sums["frame_clips"].sum()),
            "usage": codebook_usage(sums["codes"]),
            "perplexity": perplexity(sums["codes"]),
            "codebook_size": float(self.codebook_size),
            **{f"psnr_frame_{i}": float(value) for i, value in enumerate(by_frame)},
        }

    def _reconstruct(self, params: Params, video: jax.Array) -> jax.Array:
        recon = to_uint8(self.definition.bind(params).reconstruct(to_float(video))[0])
        return sharding.constrain(recon, (None,) * recon.ndim)  # every process of a run reads it

    def samples(self, params: Params, batch: Batch) -> tuple[np.ndarray, list[str]]:
        """Return original and reconstruction side by side, uint8 [B, F, Y, 2 X, 3], and their labels."""
        recon = self._reconstruct_pixels(params, batch["video"])
        videos = np.concatenate([batch["video"], recon], axis=3)
        return videos, ["original | reconstruction"] * len(videos)

    def flops_per_step(self) -> float:
        """Return the matmul and convolution FLOPs of a step: forward + backward = 3 forwards, first bucket."""
        video = jax.ShapeDtypeStruct((self.config.data.batch_size, *self.config.data.buckets[0], 3), jnp.float32)
        forward = flops.count_matmul_flops(
            lambda p, v: self.definition.bind(p).reconstruct(v)[0], self.definition.abstract, video
        )
        return 3 * forward
