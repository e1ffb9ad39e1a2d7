"""Latent actions as an objective of the training loop: loss, evaluation and samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import Config
from lumos.latent_actions import model as latent
from lumos.model import flops
from lumos.model.definition import Params
from lumos.objective import Batch, Loss, Objective
from lumos.tokenizers import pretrained
from lumos.tokenizers.quantizers import code_histogram, codebook_usage, perplexity


def losses(
    model: latent.LatentActions, frames_PFHW: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict, dict, jax.Array]:
    """Return the mean loss of pairs, its parts as metrics, statistics of the codebook, and the codes of the pairs, int32 [P].

    The loss is the cross-entropy of a token of the second frame, and what pulls the inverse model to its codes. `use` and `perplexity` are
    those of the codes of the batch.
    """
    found = model.explain(frames_PFHW, key)
    counts = code_histogram(found.quantized.indices, model.codebook.size).astype(jnp.float32)
    share = counts / counts.sum()
    entropy = -(share * jnp.log(jnp.maximum(share, 1e-20))).sum()
    metrics = {
        "action_nll": found.next.nll.mean(),
        "action_accuracy": found.next.correct.mean(),
        **found.quantized.losses,
        "action_use": (counts > 0).mean(),
        "action_perplexity": jnp.exp(entropy),
    }
    loss = found.next.loss.mean() + sum(found.quantized.losses.values())
    return loss, metrics, found.quantized.statistics, found.quantized.indices


class ActionsObjective(Objective):
    """Name what leads from frame to frame of {"tokens": int32 [B, T, H, W]}, and predict the next frame by the name."""

    def __init__(self, config: Config):
        self.config, self.actions = config, config.actions
        self.definition = latent.make_definition(config.actions, config.model.visual_vocab)
        self.groups = jax.tree.map(lambda trained: "actions" if trained else "frozen", self.definition.trained)
        self.group_optimizers = {"actions": config.optimizer}
        self._predict = jax.jit(self._next_tokens)

    def loss(self, params, batch, key, step=0, extra=None, totals=None) -> Loss:
        """Return the loss, weighted by the number of pairs of frames."""
        frames_PFHW = latent.pairs(batch["tokens"], self.actions.history)
        loss, metrics, statistics, _ = losses(self.definition.bind(params), frames_PFHW, key)
        weight = jnp.float32(len(frames_PFHW))
        metrics = {name.removeprefix("action_"): value * weight for name, value in metrics.items()}
        return Loss(loss * weight, weight, metrics, extra, {"codebook": statistics})

    def update_statistics(self, params: Params, statistics: dict[str, Any]) -> Params:
        """Return the parameters with the codebook after a step that summed `statistics`."""
        model = self.definition.bind(params)
        model.codebook.update_statistics(statistics["codebook"])
        return self.definition.unbind(model)

    def evaluate_batch(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Return sums over the batch; see `summarize`."""
        return jax.tree.map(lambda x: x.sum(0), self.evaluate_rows(params, batch))

    def evaluate_rows(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Return sums of each clip, [B] each, and how often each code leads to its frames, [B, codes]."""
        tokens_BTHW = batch["tokens"]
        batch_size, num_frames = tokens_BTHW.shape[:2]
        frames_PFHW = latent.pairs(tokens_BTHW, self.actions.history)
        model = self.definition.bind(params)
        true = model.explain(frames_PFHW)
        # The actions of another clip: what the codes are worth, beyond what the past tells.
        others_PC = jnp.roll(true.quantized.codes, num_frames - 1, axis=0)
        shuffled = model.score(frames_PFHW, others_PC)
        of_clip = lambda x: x.reshape(batch_size, -1).sum(1)
        indices_BT = true.quantized.indices.reshape(batch_size, -1)
        return {
            "nll": of_clip(true.next.nll),
            "nll_shuffled": of_clip(shuffled.nll),
            "correct": of_clip(true.next.correct),
            "count": jnp.full(batch_size, float(true.next.nll.size // batch_size)),
            "codes": jax.nn.one_hot(indices_BT, self.actions.codes).sum(1),
        }

    def summarize(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Return nats a token with the codes of the frames and with those of other clips, `use` (the share of codes that occur) and
        `perplexity` (how many codes are used, as if evenly)."""
        sums = jax.tree.map(np.asarray, sums)
        return {
            **{name: float(sums[name] / sums["count"]) for name in ("nll", "nll_shuffled")},
            "accuracy": float(sums["correct"] / sums["count"]),
            "use": codebook_usage(sums["codes"]),
            "perplexity": perplexity(sums["codes"]),
        }

    def _next_tokens(self, params: Params, tokens_BTHW: jax.Array) -> jax.Array:
        """Return every frame but the first as it is predicted from those before it and its action, the first as it is."""
        model, frames_PFHW = self.definition.bind(params), latent.pairs(tokens_BTHW, self.actions.history)
        features_PND = model.predict(frames_PFHW[:, :-1], model.infer(frames_PFHW).codes)
        # One pair after the other: logits of all would be far larger than anything else.
        predicted_PN = jax.lax.map(lambda x_ND: (x_ND @ model.head()).argmax(-1), features_PND)
        return tokens_BTHW.at[:, 1:].set(predicted_PN.reshape(tokens_BTHW[:, 1:].shape).astype(tokens_BTHW.dtype))

    def samples(self, params: Params, batch: Batch) -> tuple[np.ndarray, list[str]]:
        """Return the clips, and beside them every frame predicted from the true ones before it, decoded by the run's tokenizer."""
        tokens_BTHW = np.asarray(batch["tokens"])
        decode = pretrained.load(self.config.tokenizer_workdir).decode
        both = [decode(x) for x in (tokens_BTHW, np.asarray(self._predict(params, tokens_BTHW)))]
        return np.concatenate(both, axis=3), ["clip | next frames by their actions"] * len(tokens_BTHW)

    def flops_per_step(self, shape: tuple[int, ...] = ()) -> float:
        """Return the matmul FLOPs of a step: forward + backward = 3 forwards."""
        rows, *grid = shape or (self.config.data.batch_size, *self.config.sequence.grid)
        frames = jax.ShapeDtypeStruct((rows * (grid[0] - 1), self.actions.history + 1, *grid[1:]), jnp.int32)
        forward = flops.count_matmul_flops(
            lambda p, x: self.definition.bind(p).explain(x).next.loss, self.definition.abstract, frames
        )
        return 3 * forward
