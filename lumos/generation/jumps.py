"""Slot 6, a sampler for models that were trained on random codes in place of hidden ones (the kernel 'replace')."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lumos.generation.sampler import Sampler, uniform_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jumps(Sampler, name="jumps"):
    """Uniform discrete diffusion: a group begins as random codes, and every code may be revised in every pass (URSA, arXiv
    2510.24717; Discrete Flow Matching, arXiv 2407.15595 section 3).

    On the path whose cells are those of the data with probability s, and random ones else, the Markov chain that keeps this
    marginal jumps to a code of the model's prediction at rate 1 / (1 - s). An Euler step from s = p / S to (p + 1) / S jumps with
    probability 1 / (S - p): always in the last pass.
    """

    masks, kernels = False, ("replace", "metric")

    def __post_init__(self):
        super().__post_init__()
        if self.eta:
            raise ValueError("eta must be 0: every code may be revised in every pass")

    def begin(self, keys_BW, num_codes, coarse_BWC):
        drawn = lambda key: jax.random.randint(key, coarse_BWC.shape[2:], 0, num_codes)
        return jax.vmap(jax.vmap(drawn))(keys_BW)

    def counts(self, num_cells, steps):
        return np.where(np.arange(steps) < steps - 1, num_cells, 0).astype(np.int32)

    def temperatures(self, steps, is_first):
        return jnp.asarray(1.0 / (steps - np.arange(steps)), jnp.float32)

    def taken(self, noise, known, temperature):
        return uniform_of(noise) < temperature

    def level(self, known_BWC, step_W, steps):
        return jnp.broadcast_to((steps - step_W) / steps, known_BWC.shape[:2])

    def __call__(self, noise, log_p_BJ, known_BJ, num_hidden, temperature, order_J=None):
        return jnp.broadcast_to(num_hidden == 0, known_BJ.shape)
