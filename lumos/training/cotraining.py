"""A transformer whose stream is made while it is trained: by a latent action model that learns in the same steps.

Codes are labels to the transformer, and its loss does not reach the model that makes them (Genie, arXiv 2402.15391, section 2.2). What
trains that model, codebook included, is its own loss, which therefore is always there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lumos.config import Config
from lumos.latent_actions import beside
from lumos.latent_actions import model as latent
from lumos.latent_actions.objective import ActionsObjective, losses
from lumos.objective import Batch
from lumos.training.transformer_objective import TransformerObjective

_ACTIONS = 8  # tells the random numbers of the codebook from others


class CotrainedObjective(TransformerObjective):
    """The loss of the transformer on the codes of latent actions as they are now, and `actions.weight` times the loss of these."""

    def __init__(self, config: Config, facts: Mapping[str, Any] | None = None):
        super().__init__(config, facts)
        self.definition = beside.make_definition(config, self.layout.vocabulary)
        self.groups = jax.tree.map(lambda trained: "all" if trained else "frozen", self.definition.trained)
        self.group_optimizers = {"all": config.optimizer}
        self._latent = ActionsObjective(config)

    def loss(self, params, batch, key, step=0, extra=None, totals=None):
        """As the transformer's, weighted by the number of predicted codes."""
        totals = totals or self.weights(batch, key)
        frames_PFHW = latent.pairs(batch["tokens"], self.config.actions.history)
        model = self.definition.bind(params).latent_actions
        loss, metrics, statistics, indices_P = losses(model, frames_PFHW, jax.random.fold_in(key, _ACTIONS))
        found = super().loss(params, batch | self._stream(batch, indices_P), key, step, extra, totals)
        # Means over pairs, of which every microbatch has as many as its share of rows.
        share = totals["visual"] * len(frames_PFHW) / totals["pairs"]
        metrics = {name: value * share for name, value in metrics.items()}
        return found._replace(
            sum=found.sum + self.config.actions.weight * loss * share,
            metrics=found.metrics | metrics,
            statistics={"codebook": statistics},
        )

    def weights(self, batch, key):
        """Return how many codes, pairs of frames and text tokens the losses of a batch average over."""
        layout = self._layout_of(batch["tokens"].shape[1:])
        drawn, _ = self._corruption(layout, batch, key)
        batch_size, num_frames = batch["tokens"].shape[:2]
        pairs = {
            "pairs": jnp.float32(batch_size * (num_frames - 1)),
            "visual": self._weights(layout, drawn)[1].sum().astype(jnp.float32),
        }
        return super().weights(batch, key) | pairs

    def update_statistics(self, params, statistics):
        """Return the parameters with the codebook after a step."""
        rest = {name: part for name, part in params.items() if name != beside.PART}
        return rest | {beside.PART: self._latent.update_statistics(params[beside.PART], statistics)}

    def evaluate_rows(self, params, batch, ratio):
        """As the transformer's, with the codes of latent actions as they are now."""
        return super().evaluate_rows(params, self._labelled(params, batch), ratio)

    def samples(self, params, batch):
        """Generate videos for the captions of a batch, each with the actions that its clip is read to have."""
        return super().samples(params, self._labelled(params, jax.tree.map(jnp.asarray, batch)))

    def flops_per_step(self, shape=()):
        """Return the FLOPs of both models."""
        return super().flops_per_step(shape) + self._latent.flops_per_step(shape)

    def _labelled(self, params, batch: Batch) -> Batch:
        frames_PFHW = latent.pairs(batch["tokens"], self.config.actions.history)
        return batch | self._stream(batch, self.definition.bind(params).latent_actions.infer(frames_PFHW).indices)

    def _stream(self, batch: Batch, indices_P: jax.Array) -> Batch:
        return {"stream_0": latent.as_stream(indices_P, len(batch["tokens"]), self.config.actions.codes)}
