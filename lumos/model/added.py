"""What tokens show, and what is added to their embeddings: what a memory token stands for, what comes with a frame, and which is the first."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.model import transformer
from lumos.model.injection import Condition, OfFrames
from lumos.sequence.memory import Rung


def inputs(
    model: transformer.Transformer,
    ids_BQ: jax.Array,
    rungs: tuple[Rung, ...],
    first_BQ: jax.Array,
    of_frames: tuple[np.ndarray, np.ndarray],
) -> tuple[jax.Array, dict[str, Any]]:
    """Return the ids that tokens show, and what else the model is given, as its arguments: `added_BQD`, [B, Q, D], and `condition`, where
    there are any.

    Args:
      rungs: where memory tokens and their codes are among the tokens. Their embedding is a linear map of the codes (FAR, arXiv
        2503.19325 section 3.3).
      first_BQ: bool [B or 1, Q], which tokens are codes of the first latent frame of a video (`model.first_frame`).
      of_frames: the places of the stream tokens of each frame, and the frame of each token; see `OfFrames`.
    """
    c = model.config
    is_told = bool(model.vocabulary.stream_tokens) and not c.streams.in_sequence
    if not rungs and not c.first_frame and not is_told:
        return ids_BQ, {}
    table_VD, batch = model.embeddings(), len(ids_BQ)
    added_BQD, more = jnp.zeros((*ids_BQ.shape, c.model_dim), table_VD.dtype), {}
    for i, rung in enumerate(rungs):
        weight_FD = model.memory_embed[str(i)][...].astype(table_VD.dtype)
        codes_BJD = transformer.embed(table_VD, ids_BQ[:, rung.cells.reshape(-1)], model.vocabulary.mask)
        of_tokens_BMF = codes_BJD.reshape(batch, rung.index.size, -1)
        added_BQD = added_BQD.at[:, rung.index.reshape(-1)].set(of_tokens_BMF @ weight_FD)
    if c.first_frame:
        added_BQD += first_BQ[..., None] * model.first_embed[...].astype(table_VD.dtype)
    if is_told:
        where = OfFrames(*of_frames)
        told_BSD = transformer.embed(table_VD, ids_BQ[:, where.index.reshape(-1)], model.vocabulary.mask)
        told_BFS = told_BSD.reshape(batch, len(where.index), where.index.shape[1] * c.model_dim)
        of_frame_BFD = told_BFS @ model.stream_embed[...].astype(table_VD.dtype)
        ids_BQ = ids_BQ.at[:, where.index.reshape(-1)].set(model.vocabulary.mask)
        condition = Condition(of_frame_BFD, where.frame)
        if c.streams.modulates:
            more["condition"] = condition
        else:
            added_BQD += condition.of_tokens(of_frame_BFD)
    return ids_BQ, more | ({"added_BQD": added_BQD} if rungs or c.first_frame or not more else {})
