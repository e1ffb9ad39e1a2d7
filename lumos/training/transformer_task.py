"""The transformer as a training task: assemble, corrupt, predict in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import Config
from lumos.data.buckets import latent_shape
from lumos.model import transformer
from lumos.sequence import attention, corruption, targets
from lumos.sequence.layout import Positions, make_layout
from lumos.training import flops
from lumos.training.losses import linear_cross_entropy


class TransformerTask:
    """Masked prediction of visual codes given text (Lumos-1 section 3.3), and optionally next-token loss on the text."""

    def __init__(self, config: Config):
        self.config = config
        self.layout = make_layout(config)  # of sequence.grid; batches of other buckets get their own
        self.definition = transformer.make_definition(config.model, self.layout.vocabulary)
        grids = [config.sequence.grid, *(latent_shape(bucket, config.tokenizer) for bucket in config.data.buckets)]
        self._max_frames = max(frames for frames, _, _ in grids)
        self._generator = None

    def loss(self, params, batch, key, totals=None):
        """Return (loss sum, number of masked codes, metric sums). Batch: tokens [B,T,H,W], text [B,P], text_length [B].

        `totals` are the `weights` of all microbatches of the step; by default this batch is the only one.
        """
        c, layout = self.config, self._layout_of(batch["tokens"].shape[1:])
        totals = totals or self.weights(batch, key)
        mask_BTC, dropped_B = self._corruption(layout, batch, key)
        hidden_BLD, model, ids_BL, mask_BL = self._forward(layout, params, batch, mask_BTC, dropped_B)
        ce = self._cross_entropy(layout, model, hidden_BLD, ids_BL, mask_BL)
        total = ce.loss.sum()
        metrics = {"nll": ce.nll.sum(), "accuracy": ce.correct.sum()}
        if c.loss.text_weight:
            text_nll = self._text_nll(layout, model, hidden_BLD, ids_BL, self._text_seen(layout, batch, dropped_B))
            # The step divides by the visual weight: its mean loss is mean visual + text_weight * mean text.
            metrics["text_nll"] = text_nll / jnp.maximum(totals["text"], 1) * totals["visual"]
            total = total + c.loss.text_weight * metrics["text_nll"]
        return total, mask_BL[:, layout.visual_index].sum().astype(jnp.float32), metrics

    def weights(self, batch, key):
        """Return how many codes and text tokens the loss of a batch averages over; nothing where codes are all it has."""
        if not self.config.loss.text_weight:
            return {}
        layout = self._layout_of(batch["tokens"].shape[1:])
        mask_BTC, dropped_B = self._corruption(layout, batch, key)
        is_code = np.isin(layout.content_index, layout.visual_index)
        seen_BJ = self._text_seen(layout, batch, dropped_B)
        counts = {"visual": (mask_BTC & is_code).sum(), "text": seen_BJ.sum()}
        return {name: count.astype(jnp.float32) for name, count in counts.items()}

    def _corruption(self, layout, batch, key):
        """Draw which content is masked, bool [B, T, cells], and which rows lose their text, bool [B]."""
        c, batch_size = self.config.corruption, batch["tokens"].shape[0]
        mask_key, drop_key = jax.random.split(key)
        mask_BTC, _ = corruption.content_mask(mask_key, batch_size, *layout.content_index.shape, c)
        return mask_BTC, corruption.drop_text(drop_key, batch_size, c.text_drop)

    def _layout_of(self, grid):
        return self.layout if grid == self.layout.grid else make_layout(self.config, grid)

    def _forward(self, layout, params, batch, mask_BTC, dropped_B):
        model = self.definition.bind(params)
        ids_BL = layout.assemble(batch["text"], batch["tokens"])
        flat = mask_BTC.reshape(mask_BTC.shape[0], -1)
        mask_BL = jnp.zeros(ids_BL.shape, bool).at[:, layout.content_index.reshape(-1)].set(flat)
        inputs_BL = jnp.where(mask_BL, layout.vocabulary.mask, ids_BL)
        storage = model.storage(layout.length)
        first_B = layout.first_key(batch["text_length"], dropped_B)
        keys = attention.layout_range(layout, first_B, storage)
        positions = Positions(*(storage.put(a) for a in layout.positions))
        return model.hidden(storage.put(inputs_BL), positions, keys), model, ids_BL, mask_BL

    def _cross_entropy(self, layout, model, hidden_BLD, ids_BL, mask_BL):
        """Return the loss of the masked codes, in the slots of the sequence's storage."""
        vocabulary, storage = layout.vocabulary, model.storage(layout.length)
        where = targets.visual(layout)
        labels_BL = jnp.zeros_like(ids_BL).at[:, where.source].set(ids_BL[:, where.target] - vocabulary.visual_start)
        weights_BL = jnp.zeros(ids_BL.shape).at[:, where.source].set(mask_BL[:, where.target].astype(jnp.float32))
        return linear_cross_entropy(
            hidden_BLD,
            model.head(vocabulary.visual_start, vocabulary.visual_end),
            storage.put(labels_BL),
            storage.put(weights_BL, fill=0),
            chunk=self.config.loss.chunk,
            label_smoothing=self.config.loss.label_smoothing,
            z_loss=self.config.loss.z_loss,
        )

    def _text_seen(self, layout, batch, dropped_B):
        """Return which text targets have a loss: those of tokens behind the padding, in rows that keep their text."""
        first_B = layout.num_text - batch["text_length"]
        return (targets.text(layout).source[None] >= first_B[:, None]) & ~dropped_B[:, None]

    def _text_nll(self, layout, model, hidden_BLD, ids_BL, seen_BJ):
        where, storage = targets.text(layout), model.storage(layout.length)
        ce = linear_cross_entropy(
            hidden_BLD,
            model.head(0, layout.vocabulary.size),
            storage.put(jnp.zeros_like(ids_BL).at[:, where.source].set(ids_BL[:, where.target])),
            storage.put(jnp.zeros(ids_BL.shape).at[:, where.source].set(seen_BJ.astype(jnp.float32)), fill=0),
            chunk=self.config.loss.chunk,
        )
        return ce.loss.sum()

    def evaluate_batch(self, params, batch):
        """Return per-frame sums under a fixed evaluation mask: AR-DF tubes at evaluate.mask_ratio, same for every run."""
        layout, ratio = self._layout_of(batch["tokens"].shape[1:]), self.config.evaluate.mask_ratio
        num_frames, num_cells = layout.content_index.shape
        batch_size = batch["tokens"].shape[0]
        u = jax.random.uniform(jax.random.key(0), (batch_size, 1, num_cells))
        mask_BTC = jnp.broadcast_to(
            corruption.choose(u, jnp.full((batch_size, 1), ratio)), (batch_size, num_frames, num_cells)
        )
        hidden_BLD, model, ids_BL, mask_BL = self._forward(layout, params, batch, mask_BTC, None)
        ce = self._cross_entropy(layout, model, hidden_BLD, ids_BL, mask_BL)
        storage = model.storage(layout.length)

        def per_frame(x_BL):  # of the longest bucket: batches of all buckets add up
            sums = x_BL[:, layout.visual_index].reshape(batch_size, num_frames, -1).sum((0, 2))
            return jnp.pad(sums, (0, self._max_frames - num_frames))

        return {
            "nll": per_frame(storage.take(ce.nll)),
            "correct": per_frame(storage.take(ce.correct)),
            "count": per_frame(mask_BL.astype(jnp.float32)),
        }

    def summarize(self, sums):
        nll, correct, count = (sums[name] for name in ("nll", "correct", "count"))
        return {
            "nll": float(nll.sum() / count.sum()),
            "accuracy": float(correct.sum() / count.sum()),
            "frame_nll": [float(x) for x in nll[count > 0] / count[count > 0]],
        }

    def samples(self, params, batch):
        """Generate videos for the captions of a batch, decoded by the run's tokenizer."""
        if self._generator is None:
            from lumos.generation.generate import Generator

            self._generator = Generator(self.config, self.definition, params)
        generator, generator.params = self._generator, params  # compiled once for all samples of a run
        captions = [generator.text.decode(ids) for ids in batch["text"]]
        return generator.generate(captions, seed=self.config.seed).videos, captions

    def flops_per_step(self, shape=()):
        """Forward + backward = 3 forwards; recomputation (remat) is not counted."""
        rows, *grid = shape or (self.config.data.batch_size, *self.layout.grid)
        layout = self._layout_of(tuple(grid))
        return 3 * rows * flops.forward_flops(self.config.model, layout, layout.vocabulary.visual_size)
