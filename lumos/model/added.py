"""What is added to the embeddings of tokens: what a memory token stands for, and that a frame is the first of its video."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumos.model import transformer
from lumos.sequence.memory import Rung


def embeddings(
    model: transformer.Transformer, ids_BQ: jax.Array, rungs: tuple[Rung, ...], first_BQ: jax.Array
) -> dict[str, jax.Array]:
    """Return what is added to the embeddings of tokens, [B, Q, D], as an argument of the model; nothing where it adds nothing.

    Args:
      rungs: where memory tokens and their codes are among the tokens. Their embedding is a linear map of the codes (FAR, arXiv
        2503.19325 section 3.3).
      first_BQ: bool [B or 1, Q], which tokens are codes of the first latent frame of a video (`model.first_frame`).
    """
    if not rungs and not model.config.first_frame:
        return {}
    table_VD, batch = model.embeddings(), len(ids_BQ)
    added_BQD = jnp.zeros((*ids_BQ.shape, model.config.model_dim), table_VD.dtype)
    for i, rung in enumerate(rungs):
        weight_FD = model.memory_embed[str(i)][...].astype(table_VD.dtype)
        codes_BJD = transformer.embed(table_VD, ids_BQ[:, rung.cells.reshape(-1)])
        of_tokens_BMF = codes_BJD.reshape(batch, rung.index.size, -1)
        added_BQD = added_BQD.at[:, rung.index.reshape(-1)].set(of_tokens_BMF @ weight_FD)
    if model.config.first_frame:
        added_BQD += first_BQ[..., None] * model.first_embed[...].astype(table_VD.dtype)
    return {"added_BQD": added_BQD}
