"""Adversarial training of the tokenizer: both players in one loss, one backward pass and one state.

    L = L_vae(vae, stop_gradient(discriminator)) + L_discriminator(discriminator, stop_gradient(reconstruction))

so the gradient of L with respect to each player is that of its own loss, and one step updates both, each with its own
optimizer. What the decoder takes from the discriminator arrives as a gradient at the pixels.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lumos.config import AdversarialConfig, Config
from lumos.model.definition import Definition
from lumos.tokenizers.causal_vae import make_tokenizer
from lumos.tokenizers.discriminator import Discriminator

LECAM_DECAY = 0.999


class Players(nnx.Module):
    """What a tokenizer run trains: the VAE and, in adversarial training, its discriminator."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.vae = make_tokenizer(config.tokenizer, rngs)
        if config.adversarial.weight:
            self.discriminator = Discriminator(config.adversarial, rngs)


def make_training_definition(config: Config) -> Definition:
    """Describe the parameters of a tokenizer run: {"vae": ...} or {"vae": ..., "discriminator": ...}."""
    return Definition(functools.partial(Players, config))


class PixelGradients(NamedTuple):
    """What the adversarial terms make of a reconstruction: values, and their gradients at its pixels."""

    generator: jax.Array
    features: jax.Array
    d_generator: jax.Array
    d_features: jax.Array


def generator_gradients(
    discriminator: Discriminator, recon: jax.Array, video: jax.Array, config: AdversarialConfig
) -> PixelGradients:
    """Return the generator's loss and the feature distance, with their gradients at the reconstruction."""
    _, real_features = discriminator(video)

    def judge(recon):
        logits, features = discriminator(recon)
        distances = [jnp.abs(a - b).mean() for a, b in zip(features, real_features)]
        return _mean(generator_loss(x, config.loss) for x in logits), sum(distances) / len(distances)

    (generator, features), pull = jax.vjp(judge, recon)
    one, zero = jnp.ones_like(generator), jnp.zeros_like(generator)
    d_features = pull((zero, one))[0] if config.feature_weight else jnp.zeros_like(recon)
    return PixelGradients(generator, features, pull((one, zero))[0], d_features)


def discriminator_terms(
    discriminator: Discriminator, recon: jax.Array, video: jax.Array, config: AdversarialConfig
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Return the discriminator's weighted losses ("discriminator", "lecam", "r1"), means over its networks, and the mean
    logits of each network for real and for made clips, [N, 2]."""
    real, fake = discriminator(video)[0], discriminator(recon)[0]
    terms = {"discriminator": _mean(discriminator_loss(r, f, config.loss) for r, f in zip(real, fake))}
    if config.lecam_weight:
        means_N2 = discriminator.mean_logits[...]
        terms["lecam"] = config.lecam_weight * _mean(lecam(*parts) for parts in zip(real, fake, means_N2))
    if config.r1_weight:
        # One pull-back of all networks' logits, then one gradient for each.
        logits, pull = jax.vjp(lambda x: [logits.mean(axis=(1, 2, 3)) for logits in discriminator(x)[0]], video)
        pick = [[jnp.full_like(x, i == j) for j, x in enumerate(logits)] for i in range(len(logits))]
        penalties = [jnp.square(pull(one)[0]).sum(axis=(1, 2, 3, 4)).mean() for one in pick]
        terms["r1"] = config.r1_weight * _mean(penalties)
    return terms, jnp.stack([jnp.stack([r.mean(), f.mean()]) for r, f in zip(real, fake)])


def generator_loss(logits: jax.Array, kind: str) -> jax.Array:
    """Hinge: -D(fake). Non-saturating (Goodfellow et al. 2014): softplus(-D(fake))."""
    return -logits.mean() if kind == "hinge" else jax.nn.softplus(-logits).mean()


def discriminator_loss(real: jax.Array, fake: jax.Array, kind: str) -> jax.Array:
    """Hinge (Lim and Ye, arXiv 1705.02894; half of it, as in VQGAN) or logistic."""
    if kind == "hinge":
        return (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()) / 2
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


def lecam(real: jax.Array, fake: jax.Array, mean_logits: jax.Array) -> jax.Array:
    """LeCAM (arXiv 2104.03310): keep logits near the running mean [real, fake] of the other side's."""
    mean_real, mean_fake = mean_logits
    return jnp.square(jax.nn.relu(real - mean_fake)).mean() + jnp.square(jax.nn.relu(mean_real - fake)).mean()


def adaptive_weight(pull_to_last_layer, d_reconstruction: jax.Array, d_generator: jax.Array) -> jax.Array:
    """Return |grad of the reconstruction loss| / |grad of the generator's loss| at the last layer (VQGAN, equation 7).

    `pull_to_last_layer` maps a gradient at the pixels to one at the weights of the decoder's last layer.
    """
    norms = [jnp.linalg.norm(pull_to_last_layer(d)[0]) for d in (d_reconstruction, d_generator)]
    return jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), 0, 1e4))


def ramp(step: jax.Array | int, start: int, length: int = 0) -> jax.Array:
    """Return 0 before step `start`, then a line that reaches 1 within `length` steps (at once for 0)."""
    return jnp.clip((jnp.float32(step) - start + 1) / max(length, 1), 0, 1)


def _mean(values) -> jax.Array:
    values = list(values)
    return sum(values) / len(values)
