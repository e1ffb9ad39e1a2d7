"""Values of the codes of a clip, in raster order, from those of sequences and of latent frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lumos.model import transformer
from lumos.model.heads import gather_arms
from lumos.sequence.layout import Layout
from lumos.sequence.targets import Targets


def of_content(layout: Layout, x_BTC: jax.Array) -> jax.Array:
    """Return the values of codes [B, J] from those of each content token [B, T, cells], or of each frame [B, T]."""
    is_code = np.isin(layout.content_index, layout.visual_index)[0]
    if x_BTC.ndim == 2:
        x_BTC = jnp.broadcast_to(x_BTC[..., None], (*x_BTC.shape, len(is_code)))
    return x_BTC[..., is_code].reshape(x_BTC.shape[0], -1)


def features(model: transformer.Transformer, layout: Layout, where: Targets, hidden_BLD: jax.Array) -> jax.Array:
    """Return the features from which each code is predicted, [B, J, F].

    hidden_BLD: final hidden states in the slots of the sequence's storage.
    """
    take = model.storage(layout.num_read).take
    if where.source.shape[1] > 1:
        return gather_arms(take(model.config.head.arms(model, hidden_BLD), axis=1), where.source)
    return take(hidden_BLD, axis=1)[:, where.source[:, 0]]


def before(layout: Layout, inputs_BL: jax.Array) -> jax.Array:
    """Return the codes that the model sees one frame before each cell, in its place, [B, T, H, W]; -1 = none, or hidden."""
    seen = layout.visual_index if layout.clean_index is None else layout.clean_index
    codes_BJ = inputs_BL[:, seen] - layout.vocabulary.visual_start
    is_code = (codes_BJ >= 0) & (codes_BJ < layout.vocabulary.visual_size)
    codes_BTHW = jnp.where(is_code, codes_BJ, -1).reshape(-1, *layout.grid)
    return jnp.pad(codes_BTHW, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=-1)[:, :-1]
