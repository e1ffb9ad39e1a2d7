"""Slot 4, the kernel "metric": codes drift to near ones first, in the space of their embeddings, before they are lost."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lumos import sharding
from lumos.sequence.corruption import Kernel

_CHUNK = 1024  # tokens per device whose distances to all codes exist at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric(Kernel, name="metric"):
    """Every code x of a frame with level r becomes y with probability softmax over y of -beta(r) d(x, y), the metric path of
    URSA (arXiv 2510.24717) and of Shaul et al. (arXiv 2412.03487): beta(r) = scale ((1 - r) / r)^power.

    d is the squared distance of the model's embeddings, divided by its mean over all pairs of codes. Level 0 leaves the code
    as it is, level 1 draws any code. All codes of a frame change, whichever of them are chosen: `loss.weights` is "all".
    """

    scale: float = 3.0  # of beta
    power: float = 0.9  # how fast beta falls with the level

    def __post_init__(self):
        if self.scale <= 0 or self.power <= 0:
            raise ValueError(f"scale={self.scale} and power={self.power} must be positive")

    def __call__(self, key, ids_BL, chosen_BL, ids, context):
        table_VD = jax.lax.stop_gradient(context.embeddings())[ids.visual_start : ids.visual_end].astype(jnp.float32)
        norm_V, mean_D = jnp.square(table_VD).sum(-1), table_VD.mean(0)
        mean_distance = jnp.maximum(2 * (norm_V.mean() - jnp.square(mean_D).sum()), 1e-30)

        def local(key, table_VD, norm_V, rows_B, code_BL, level_BL):
            """Every token draws with a key of its own, on whatever device it is."""
            keys_BL = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row), code_BL.shape[1]))(rows_B)

            def one(token):
                key, code, level = token
                distance_V = norm_V + norm_V[code] - 2 * table_VD @ table_VD[code]
                logits_V = -self.beta(level) * jnp.maximum(distance_V, 0) / mean_distance
                return jax.random.categorical(key, logits_V)

            flat = (keys_BL.reshape(-1), code_BL.reshape(-1), level_BL.reshape(-1))
            return jax.lax.map(one, flat, batch_size=_CHUNK).reshape(code_BL.shape)

        changes_BL = (ids_BL >= ids.visual_start) & (ids_BL < ids.visual_end) & (context.level_BL > 0)
        code_BL = jnp.where(changes_BL, ids_BL - ids.visual_start, 0)
        batch = sharding.axis_of(len(ids_BL), "batch")
        rows = (batch, None)
        place = sharding.per_device(local, ((), (None, None), (None,), (batch,), rows, rows), rows)
        drawn_BL = place(key, table_VD, norm_V, jnp.arange(len(ids_BL)), code_BL, context.level_BL)
        return jnp.where(changes_BL, drawn_BL + ids.visual_start, ids_BL)

    def beta(self, level: jax.Array) -> jax.Array:
        """Return how strongly a code is bound to where it was; 0 at level 1."""
        return self.scale * ((1 - level) / jnp.maximum(level, 1e-6)) ** self.power
