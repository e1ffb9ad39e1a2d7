"""The tokenizer as an objective of the training loop: loss, evaluation and samples."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos import sharding
from lumos.config import Config
from lumos.model import flops
from lumos.model.definition import Params
from lumos.objective import Batch, Loss, Objective
from lumos.tokenizers import adversarial
from lumos.tokenizers.causal_vae import ENCODER_PARTS, make_definition
from lumos.tokenizers.lookup_free import annealed
from lumos.tokenizers.losses import PixelLoss
from lumos.tokenizers.pixel_quality import frame_psnr, psnr, ssim, to_float, to_uint8
from lumos.tokenizers.quantizers import code_histogram, codebook_usage, factor_histograms, perplexity

_log = logging.getLogger(__name__)
_FEW, _MANY = 8, 64  # fewer codes than this, of a codebook of at least so many, are reported


class TokenizerObjective(Objective):
    """Train the causal VAE to reproduce its input, {"video": uint8 [B, F, Y, X, 3]}.

    Attributes:
      definition: of everything that is trained: {"vae": ...}, beside it "discriminator" in adversarial training.
      vae: definition of the VAE alone.
      groups, group_optimizers, group_starts, new_terms_at: see `lumos.objective.Objective`.
    """

    def __init__(self, config: Config):
        self.config = config
        self.adversarial = config.adversarial.weight > 0
        self.vae = make_definition(config.tokenizer)
        self.definition = adversarial.make_training_definition(config)
        self.groups = self._groups()
        starts = (config.adversarial.start_step, config.perceptual.start_step, config.perceptual.gram_start_step)
        self.new_terms_at = frozenset((*starts, config.tokenizer.prior_start))
        self.group_optimizers = {
            "vae": config.optimizer,
            "discriminator": dataclasses.replace(
                config.optimizer,
                name="adamw",
                learning_rate=config.adversarial.learning_rate,
                beta1=config.adversarial.beta1,
            ),
        }
        self.group_starts = {"discriminator": config.adversarial.start_step}
        self.quantizer = self.vae.bind(self.vae.abstract).quantizer
        self._pixel_loss = PixelLoss(config)
        self._max_frames = max(frames for frames, _, _ in config.data.buckets)
        self._reconstruct_pixels = jax.jit(self._reconstruct)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array | int = 0, extra: None = None, totals=None
    ) -> Loss:
        """Return the loss, weighted by the number of clips, with the statistics of the quantiser and of LeCAM."""
        video = to_float(batch["video"])
        vae_params = params["vae"]
        last = _get(vae_params, self._last_kernel)
        reconstruct = lambda last: self.vae.bind(_put(vae_params, self._last_kernel, last)).reconstruct(video, key)

        statistics: dict[str, Any] = {}
        if self.adversarial:
            recon, pull, quantized = jax.vjp(reconstruct, last, has_aux=True)
            loss, metrics, logits_N2 = self._adversarial_loss(params, recon, pull, video, step)
            clips = jnp.float32(video.shape[0]) * adversarial.ramp(step, self.config.adversarial.start_step)
            statistics["discriminator"] = {"clips": clips, "logits": jax.lax.stop_gradient(logits_N2) * clips}
        else:
            recon, quantized = reconstruct(last)
            loss, metrics = self._pixel_loss(recon, video, step)
        statistics["quantizer"] = quantized.statistics
        auxiliary = dict(quantized.losses)
        if "entropy" in auxiliary:
            auxiliary["entropy"] *= annealed(step, self.config.tokenizer.entropy_boost_steps)
        if self.config.tokenizer.prior_start:
            auxiliary["prior"] *= step >= self.config.tokenizer.prior_start
        loss += sum(auxiliary.values())
        weight = jnp.float32(video.shape[0])
        # Before rounding to 8 bits and over the whole batch; evaluation uses the exact definition.
        metrics = {**metrics, **auxiliary, "psnr": 10 * jnp.log10(4 / jnp.maximum(metrics["l2"], 1e-12))}
        sums = {name: value * weight for name, value in metrics.items()}
        return Loss(loss * weight, weight, sums, extra, statistics)

    def _adversarial_loss(self, params, recon, pull, video, step) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Return both players' losses in one (see `adversarial`), the metrics, and each network's mean logits."""
        c, stop = self.config.adversarial, jax.lax.stop_gradient
        fixed = stop(recon)
        (pixel_loss, metrics), d_pixels = jax.value_and_grad(self._pixel_loss, has_aux=True)(fixed, video, step)
        bind = lambda params: self.definition.bind(params).discriminator
        made = adversarial.generator_gradients(bind(stop(params)), fixed, video, c)
        metrics["generator"], metrics["feature_distance"] = made.generator, made.features
        strength = c.weight * adversarial.ramp(step, c.start_step, c.ramp_steps)
        if c.adaptive:
            metrics["adaptive_weight"] = adversarial.adaptive_weight(pull, d_pixels, made.d_generator)
            strength *= metrics["adaptive_weight"]
        feature_strength = c.feature_weight * adversarial.ramp(step, c.start_step, c.ramp_steps)
        loss = pixel_loss + strength * made.generator + feature_strength * made.features
        gradient = d_pixels + strength * made.d_generator + feature_strength * made.d_features
        # The value of the loss with its known gradient at the pixels: nothing is differentiated twice.
        linear = (recon * stop(gradient)).sum()
        loss = stop(loss - linear) + linear
        terms, logits_N2 = adversarial.discriminator_terms(bind(params), fixed, video, c)
        metrics["real_logit"], metrics["fake_logit"] = logits_N2.mean(axis=0)
        loss += sum(terms.values()) * adversarial.ramp(step, c.start_step)
        return loss, {**metrics, **terms}, logits_N2

    def update_statistics(self, params: Params, statistics: dict[str, Any]) -> Params:
        """Return the parameters with what is learnt without gradients, after a step that summed `statistics`."""
        module = self.definition.bind(params)
        if statistics["quantizer"] and not self.config.freeze_encoder:
            module.vae.quantizer.update_statistics(statistics["quantizer"])
        if self.adversarial:
            sums, means = statistics["discriminator"], module.discriminator.mean_logits
            new = sums["logits"] / jnp.maximum(sums["clips"], 1e-9)
            rate = jnp.where(sums["clips"] > 0, 1 - adversarial.LECAM_DECAY, 0.0)
            means[...] += rate * (new - means[...])
        return self.definition.unbind(module)

    def evaluate_batch(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Return sums over the clips of a batch; sums of several batches add up."""
        recon, quantized = self.vae.bind(params["vae"]).reconstruct(to_float(batch["video"]))
        return self.measure(batch["video"], to_uint8(recon), quantized.indices)

    def measure(self, video: jax.Array, recon: jax.Array, indices: jax.Array) -> dict[str, jax.Array]:
        """Return what `evaluate_batch` does, of clips and reconstructions uint8 [B, F, Y, X, 3] and their tokens."""
        parts, frames = self.quantizer.by_part(indices), video.shape[1]
        positions = jnp.arange(self._max_frames) < frames
        per_frame = frame_psnr(recon, video).sum(axis=0)
        return {
            "clips": jnp.float32(video.shape[0]),
            "psnr": psnr(recon, video).sum(),
            "ssim": ssim(recon, video).sum(),
            "frame_clips": positions * jnp.float32(video.shape[0]),
            "frame_psnr": jnp.pad(per_frame, (0, self._max_frames - frames)),
            "codes": jnp.stack([code_histogram(part, self.quantizer.codebook_size) for part in parts]),
            "pixels": jnp.float32(video.size / 3),
        }

    def summarize(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Turn the added sums into scalars.

        `psnr` is the mean over clips of the per-clip PSNR, `frame_psnr` the mean over frames of the mean per-frame
        PSNR, `psnr_frame_<i>` that of frame i. `usage` is the share of codes that occurred, `perplexity` exp(entropy),
        both means over the parts of a composed quantiser; `factor_usage` is exp(entropy) of each factor of the code as a
        share of its size (not for tables of codes). Bits per pixel are those of fixed-length codes, and after ideal
        entropy coding of single tokens.
        """
        sums = jax.tree.map(np.asarray, sums)
        num_clips = float(sums["clips"])
        seen = sums["frame_clips"] > 0
        by_frame = sums["frame_psnr"][seen] / sums["frame_clips"][seen]
        return {
            "psnr": float(sums["psnr"]) / num_clips,
            "ssim": float(sums["ssim"]) / num_clips,
            "frame_psnr": float(sums["frame_psnr"].sum() / sums["frame_clips"].sum()),
            **self._codebook_metrics(sums["codes"], float(sums["pixels"])),
            **{f"psnr_frame_{i}": float(value) for i, value in enumerate(by_frame)},
        }

    def _codebook_metrics(self, codes_PK: np.ndarray, num_pixels: float) -> dict[str, Any]:
        size, tokens = self.quantizer.codebook_size, codes_PK.sum(axis=1)
        perplexities, used = [perplexity(histogram) for histogram in codes_PK], int((codes_PK > 0).sum(axis=1).max())
        if used < _FEW and size >= _MANY:
            _log.warning(
                "only %d of %d codes occur, so the codes may miss what moves in the clips: look at the reconstructions, and try "
                "config.tokenizer.fsq_latent_weight=0.01 (FSQ) or a larger entropy_weight (LFQ, BSQ, IBQ, SVQ)", used, size,
            )  # fmt: skip
        metrics: dict[str, Any] = {
            "usage": codebook_usage(codes_PK),
            "perplexity": float(np.mean(perplexities)),
            "codebook_size": float(size),
            "num_tokens": float(tokens.sum()),
            "bits_per_pixel": float(tokens.sum() * np.log2(size) / num_pixels),
            "bits_per_pixel_coded": float(tokens @ np.log2(perplexities) / num_pixels),
        }
        if len(codes_PK) > 1:
            metrics["part_usage"] = [codebook_usage(histogram) for histogram in codes_PK]
        if self.config.tokenizer.quantizer in ("fsq", "lfq", "bsq"):
            factors = factor_histograms(codes_PK.sum(axis=0), self.quantizer.levels)
            metrics["factor_usage"] = [perplexity(histogram) / len(histogram) for histogram in factors]
        return metrics

    def _reconstruct(self, params: Params, video: jax.Array) -> jax.Array:
        recon = to_uint8(self.vae.bind(params["vae"]).reconstruct(to_float(video))[0])
        return sharding.constrain(recon, (None,) * recon.ndim)  # every process of a run reads it

    def samples(self, params: Params, batch: Batch) -> tuple[np.ndarray, list[str]]:
        """Return `side_by_side` of the clips."""
        return side_by_side(np.asarray(batch["video"]), np.asarray(self._reconstruct_pixels(params, batch["video"])))

    def flops_per_step(self, shape: tuple[int, ...] = ()) -> float:
        """Return the matmul and convolution FLOPs of the VAE in a step: forward + backward = 3 forwards."""
        shape = shape or (self.config.data.batch_size, *self.config.data.buckets[0], 3)
        video = jax.ShapeDtypeStruct(shape, jnp.float32)
        forward = flops.count_matmul_flops(lambda p, v: self.vae.bind(p).reconstruct(v)[0], self.vae.abstract, video)
        return 3 * forward

    @property
    def _last_kernel(self) -> tuple[str, ...]:
        """Path of the weights of the decoder's last layer."""
        layer, c = ("decoder", "conv_out"), self.config.tokenizer
        factorized = c.body == "causal" and c.outer_norm
        return (*layer, "temporal", "kernel") if factorized else (*layer, "kernel")

    def _groups(self) -> Params | None:
        """Return the group of every parameter, or None where all are trained alike."""

        def group(path, trained):
            names = [key.key for key in path]
            if names[0] == "discriminator":
                return "discriminator" if trained else "frozen"
            fixed = self.config.freeze_encoder and names[1] in ENCODER_PARTS
            return "vae" if trained and not fixed else "frozen"

        groups = jax.tree_util.tree_map_with_path(group, self.definition.trained)
        return None if set(jax.tree.leaves(groups)) == {"vae"} else groups


def side_by_side(video: np.ndarray, recon: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return original, reconstruction and absolute error in a row, uint8 [B, F, Y, 3 X, 3], and their labels."""
    error = np.abs(recon.astype(np.int16) - video).astype(np.uint8)
    return np.concatenate([video, recon, error], axis=3), ["original | reconstruction | error"] * len(video)


def _get(tree: Params, path: tuple[str, ...]) -> jax.Array:
    """Return the leaf at a path."""
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: Params, path: tuple[str, ...], leaf: jax.Array) -> Params:
    """Return the tree with another leaf at a path."""
    name, *rest = path
    return {**tree, name: _put(tree[name], tuple(rest), leaf) if rest else leaf}
