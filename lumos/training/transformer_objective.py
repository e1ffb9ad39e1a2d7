"""The transformer as a training objective: assemble, corrupt, predict. What each of these means, the slots of the config say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import Config
from lumos.layouts import make_layout
from lumos.model import added, flops, heads, transformer
from lumos.model.cross_entropy import CrossEntropy, linear_cross_entropy
from lumos.objective import ExtraState, Loss, Objective
from lumos.sequence import frame_order, targets
from lumos.sequence.corruption import Context, Corrupted, choose
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.layout import Layout
from lumos.sequence.rule import layout_ranges
from lumos.sequence.targets import Targets
from lumos.sequence.tokens import CODE, STREAM, Positions
from lumos.training import code_values
from lumos.training.distillation import Teacher, linear_kl
from lumos.training.history_errors import HistoryErrors

_KERNEL, _HEAD, _ORDER, _STREAMS = (
    3,
    4,
    6,
    7,
)  # tell the random numbers of kernels, heads, orders and streams from others


class _Run(NamedTuple):
    """A forward pass: hidden states in the slots of the sequence's storage, the bound model, the true ids [B, L], those that
    the model was given, and a random key for its head."""

    hidden_BLD: jax.Array
    model: transformer.Transformer
    ids_BL: jax.Array
    inputs_BL: jax.Array
    key: jax.Array


class TransformerObjective(Objective):
    """Prediction of visual codes given text and other codes, and optionally next-token loss on the text."""

    def __init__(self, config: Config, facts: Mapping[str, Any] | None = None):
        self.config = config
        self.layout = make_layout(config)  # of sequence.grid; batches of other buckets get their own
        self.definition = transformer.make_definition(config.model, self.layout.vocabulary)
        self._max_frames = max(frames for frames, _, _ in (config.sequence.grid, *config.data.buckets))
        self._generator = None
        self._errors = HistoryErrors(config.corruption.errors, self.layout.vocabulary.visual_size, config.loss.chunk)
        saved = (facts or {}).get("teacher")
        self._teacher = Teacher(config, self.layout.vocabulary, saved) if config.loss.teacher else None

    @property
    def facts(self):
        return {"teacher": self._teacher.facts} if self._teacher else {}

    def extra_state(self):
        return ExtraState.join(self._teacher and self._teacher.extra_state(), self._errors.extra_state())

    def loss(self, params, batch, key, step=0, extra=None, totals=None):
        """Return the loss, weighted by the number of predicted codes. Batch: tokens [B,T,H,W], text [B,P], text_length [B].

        `totals` are the `weights` of all microbatches of the step; by default this batch is the only one.
        """
        c, layout = self.config, self._layout_of(batch["tokens"].shape[1:])
        totals, errors, stop = totals or self.weights(batch, key), self._errors, jax.lax.stop_gradient
        drawn, dropped_B = self._corruption(layout, batch, key)
        batch = frame_order.reorder(c.sequence.order, jax.random.fold_in(key, _ORDER), batch)
        codes_BJ = batch["tokens"].reshape(drawn.ratio_BT.shape[0], -1)

        def predict(key, seen_BJ):
            drawn, kernel_key = self._corruption(layout, batch, key)[0], jax.random.fold_in(key, _KERNEL)
            inputs = batch, drawn, dropped_B, kernel_key, seen_BJ
            return self._features(layout, self._forward(layout, self.definition, stop(params), *inputs), drawn)

        seen_BJ = errors.inject(key, codes_BJ, step, extra, predict)
        inputs = batch, drawn, dropped_B, jax.random.fold_in(key, _KERNEL), seen_BJ
        run = self._forward(layout, self.definition, params, *inputs)
        weights_BJ, counts_BJ = self._weights(layout, drawn, errors.errors.in_loss and seen_BJ != codes_BJ)
        ce = self._cross_entropy(layout, run, weights_BJ)
        total = ce.loss.sum()
        metrics = {"nll": ce.nll.sum(), "accuracy": ce.correct.sum()}
        if c.loss.text_weight:
            text_nll = self._text_nll(layout, run, self._text_seen(layout, batch, dropped_B))
            # The step divides by the visual weight: its mean loss is mean visual + text_weight * mean text.
            metrics["text_nll"] = text_nll / jnp.maximum(totals["text"], 1) * totals["visual"]
            total = total + c.loss.text_weight * metrics["text_nll"]
        if self._teacher:
            teacher = self._forward(layout, self._teacher.definition, stop(extra["teacher"]), *inputs)
            metrics["teacher_kl"] = self._teacher_kl(layout, run, teacher, weights_BJ)
            total = total + c.loss.teacher_weight * metrics["teacher_kl"]
        if errors.errors.learns:
            run = run._replace(hidden_BLD=stop(run.hidden_BLD), model=self.definition.bind(stop(params)))
            extra = errors.learn(
                key,
                codes_BJ,
                extra,
                *self._features(layout, run, drawn),
                code_values.of_content(layout, drawn.ratio_BT),
            )
        return Loss(total, counts_BJ.sum(), metrics, extra)

    def weights(self, batch, key):
        """Return how many codes and text tokens the loss of a batch averages over; nothing where codes are all it has."""
        if not self.config.loss.text_weight:
            return {}
        layout = self._layout_of(batch["tokens"].shape[1:])
        drawn, dropped_B = self._corruption(layout, batch, key)
        counts = {"visual": self._weights(layout, drawn)[1], "text": self._text_seen(layout, batch, dropped_B)}
        return {name: count.sum().astype(jnp.float32) for name, count in counts.items()}

    def _corruption(self, layout, batch, key):
        """Draw what is hidden, and which rows lose their text, bool [B]."""
        c, batch_size = self.config.corruption, batch["tokens"].shape[0]
        mask_key, drop_key = jax.random.split(key)
        drawn = c.draw(mask_key, batch_size, *layout.content_index.shape)
        return drawn, c.drop_text(drop_key, batch_size)

    def _layout_of(self, grid):
        return self.layout if grid == self.layout.grid else make_layout(self.config, grid)

    def _forward(
        self, layout, definition, params, batch, drawn: Corrupted, dropped_B, kernel_key, seen_BJ=None
    ) -> _Run:
        model, c = definition.bind(params), self.config
        streams = tuple(batch[f"stream_{i}"] for i in range(len(layout.stream_index)))
        ids_BL = layout.assemble(batch["text"], batch["tokens"], streams)
        if layout.stream_index and c.corruption.stream_drop and dropped_B is not None:
            drop_B = c.corruption.drop_streams(jax.random.fold_in(kernel_key, _STREAMS), len(ids_BL))
            is_stream_L = layout.tokens.kind == STREAM
            ids_BL = jnp.where(drop_B[:, None] & is_stream_L, layout.vocabulary.mask, ids_BL)
        flat = drawn.mask_BTC.reshape(ids_BL.shape[0], -1)
        mask_BL = jnp.zeros(ids_BL.shape, bool).at[:, layout.content_index.reshape(-1)].set(flat)
        inputs_BL = ids_BL if seen_BJ is None else layout.with_codes(ids_BL, seen_BJ)
        share_BTC = jnp.broadcast_to(drawn.ratio_BT[..., None], drawn.mask_BTC.shape).reshape(flat.shape)
        level_BL = jnp.zeros(ids_BL.shape).at[:, layout.content_index.reshape(-1)].set(share_BTC)
        context = Context(layout, level_BL, model.embeddings)
        inputs_BL = c.corruption.kernel(kernel_key, inputs_BL, mask_BL, layout.vocabulary, context)
        storage = model.storage(layout.num_read)
        first_B = layout.first_key(batch["text_length"], dropped_B)
        in_time = "order" not in batch
        positions = layout.positions if in_time else frame_order.positions(layout, batch["order"])
        positions = Positions(*(storage.put(a) for a in positions))
        level = {}
        if model.config.level_embedding:  # of the student, or of a teacher
            level = {"level_BQ": storage.put(level_BL)}
        # Windows of long videos begin at any frame.
        begins_B1 = (batch["start"] == 0)[:, None] if "start" in batch else True
        first_BL = begins_B1 & ((layout.tokens.t == 0) & (layout.tokens.kind == CODE))[None]
        shown_BL, more = added.inputs(model, inputs_BL, layout.memory, first_BL, layout.of_frames)
        if "added_BQD" in more:
            more["added_BQD"] = storage.put(more["added_BQD"], 1)
        if "condition" in more:
            more["condition"] = more["condition"]._replace(frame=storage.put(layout.tokens.t))
        keys = self._keys(layout, first_B, storage)
        hidden_BLD = model.hidden(storage.put(shown_BL), positions, keys, **level, **more)
        return _Run(hidden_BLD, model, ids_BL, inputs_BL, jax.random.fold_in(kernel_key, _HEAD))

    def _keys(self, layout: Layout, first_B, storage):
        """Return what every token sees, for each turn of the layers."""

        def of(rule):
            bias_L = rule.bias(layout.tokens)
            bias = None if bias_L is None else jnp.asarray(storage.put(np.asarray(bias_L, np.float32)))[None]
            keys = KeyRanges.of(layout_ranges(layout, rule, storage), first_B, bias, storage.num_chunks)
            return dataclasses.replace(keys, gated=of(rule.gated())) if rule.gated() else keys

        return tuple(of(rule) for rule in self.config.sequence.attention.layers())

    def _features(self, layout: Layout, run: _Run, drawn: Corrupted):
        """Return the model of a pass, the features of all codes and their context, and which of them it predicts, bool [B, J]."""
        where, mask_BTC = self.config.sequence.targets(layout), drawn.mask_BTC
        in_place = self.config.sequence.targets.name == "in_place"
        predicted_BJ = code_values.of_content(layout, mask_BTC if in_place else jnp.ones_like(mask_BTC))
        features = code_values.features(run.model, layout, where, run.hidden_BLD)
        return run.model, features, heads.Context(code_values.before(layout, run.inputs_BL)), predicted_BJ

    def _weights(self, layout: Layout, drawn: Corrupted, wrong_BJ=False):
        """Return what each code's prediction weighs and counts, float32 [B, J]; wrong visible ones count as hidden."""
        c, (num_frames, *_) = self.config.loss, layout.grid
        hidden_BJ, ratio_BJ = (
            code_values.of_content(layout, drawn.mask_BTC) | wrong_BJ,
            code_values.of_content(layout, drawn.ratio_BT),
        )
        has_context = self.config.corruption.given.name != "none"
        predicted_BJ = code_values.of_content(layout, drawn.predicted_BT) if has_context else True
        weights_BJ, counts_BJ = c.weights(hidden_BJ, ratio_BJ, predicted_BJ)
        if c.frame_weights:
            share_J = np.repeat(np.array(c.frame_weights[:num_frames], np.float32), layout.grid[1] * layout.grid[2])
            weights_BJ, counts_BJ = weights_BJ * share_J, counts_BJ * share_J
        return weights_BJ, counts_BJ

    def _cross_entropy(self, layout: Layout, run: _Run, weights_BJ) -> CrossEntropy:
        """Return the losses of all codes: in the slots of the storage, or [B, J] where several positions predict a code."""
        where, options = self.config.sequence.targets(layout), self.config.loss
        codes_BL = run.ids_BL - layout.vocabulary.visual_start
        features, labels, weights = self._place(layout, run, where, codes_BL, weights_BJ)
        return self.config.model.head.loss(
            run.model, features, labels, weights, heads.Context(code_values.before(layout, run.inputs_BL), run.key),
            chunk=options.chunk, label_smoothing=options.label_smoothing, z_loss=options.z_loss,
        )  # fmt: skip

    def _place(self, layout: Layout, run: _Run, where: Targets, codes_BL, weights_BJ):
        """Return features, labels and weights of the predictions, each where its features are."""
        if where.source.shape[1] > 1 or self.config.model.head.in_raster:
            features = code_values.features(run.model, layout, where, run.hidden_BLD)
            return features, codes_BL[:, where.target], weights_BJ
        storage, source = run.model.storage(layout.num_read), where.source[:, 0]
        labels_BL = jnp.zeros_like(codes_BL).at[:, source].set(codes_BL[:, where.target])
        weights_BL = jnp.zeros(codes_BL.shape).at[:, source].set(weights_BJ)
        return run.hidden_BLD, storage.put(labels_BL), storage.put(weights_BL, fill=0)

    def _of_codes(self, layout: Layout, run: _Run, values):
        """Return values of `_cross_entropy` for each code in raster order, [B, J]."""
        where = self.config.sequence.targets(layout)
        if where.source.shape[1] > 1 or self.config.model.head.in_raster:
            return values
        return run.model.storage(layout.num_read).take(values)[:, where.source[:, 0]]

    def _teacher_kl(self, layout: Layout, run: _Run, teacher: _Run, weights_BJ):
        """Return the summed KL to the teacher, which sees the same corrupted sequence, over the predicted codes."""
        where, codes_BL = self.config.sequence.targets(layout), run.ids_BL - layout.vocabulary.visual_start
        features, _, weights = self._place(layout, run, where, codes_BL, weights_BJ)
        teacher_features, *_ = self._place(layout, teacher, where, codes_BL, weights_BJ)
        return self._kl(run.model, features, teacher.model, teacher_features, weights)

    def _kl(self, model, features, teacher, teacher_features, weights):
        """Return the summed KL of positions with these features to those of the teacher."""
        c = self.config.loss
        factors = [self.config.model.head.factors(model), self._teacher.model.head.factors(teacher)]
        return sum(
            linear_kl(
                features, ours.matrix_FV, teacher_features, its.matrix_FV, weights,
                chunk=c.chunk, temperature=c.teacher_temperature,
            ).sum()
            for ours, its in zip(*factors, strict=True)
        )  # fmt: skip

    def _text_seen(self, layout, batch, dropped_B):
        """Return which text targets have a loss: those of tokens behind the padding, in rows that keep their text."""
        first_B = layout.num_text - batch["text_length"]
        return (targets.text(layout).source[None, :, 0] >= first_B[:, None]) & ~dropped_B[:, None]

    def _text_nll(self, layout, run: _Run, seen_BJ):
        where, storage, ids_BL = targets.text(layout), run.model.storage(layout.num_read), run.ids_BL
        source = where.source[:, 0]
        ce = linear_cross_entropy(
            run.hidden_BLD,
            run.model.head(0, layout.vocabulary.size),
            storage.put(jnp.zeros_like(ids_BL).at[:, source].set(ids_BL[:, where.target])),
            storage.put(jnp.zeros(ids_BL.shape).at[:, source].set(seen_BJ.astype(jnp.float32)), fill=0),
            chunk=self.config.loss.chunk,
        )
        return ce.loss.sum()

    def evaluate_batch(self, params, batch):
        """Return sums per frame, the same for every run of a kind; see `evaluate_rows`."""
        return jax.tree.map(lambda x: x.sum(0), self.evaluate_rows(params, batch, self.config.evaluate.mask_ratio))

    def evaluate_rows(self, params, batch, ratio):
        """Return sums per row and frame, [B, T] each.

        Where hidden tokens predict themselves, AR-DF tubes of this ratio are hidden; elsewhere every code is predicted from
        clean ones.
        """
        batch_size = batch["tokens"].shape[0]
        num_frames, num_cells = self._layout_of(batch["tokens"].shape[1:]).content_index.shape
        ratio = ratio if self.config.sequence.targets.name == "in_place" else 0.0
        u = jax.random.uniform(jax.random.key(0), (batch_size, 1, num_cells))
        mask_BTC = jnp.broadcast_to(choose(u, jnp.full((batch_size, 1), ratio)), (batch_size, num_frames, num_cells))
        drawn = Corrupted(mask_BTC, jnp.full((batch_size, num_frames), ratio), jnp.ones((batch_size, num_frames), bool))
        return self.evaluate_drawn(params, batch, drawn)

    def evaluate_drawn(self, params, batch, drawn: Corrupted):
        """Return sums per row and frame, [B, T] each, of the codes that are hidden in frames with a loss; elsewhere than in place, of all."""
        layout = self._layout_of(batch["tokens"].shape[1:])
        batch_size, num_frames, _ = drawn.mask_BTC.shape
        run = self._forward(layout, self.definition, params, batch, drawn, None, jax.random.key(_KERNEL))
        hidden_BTC = drawn.mask_BTC & drawn.predicted_BT[..., None]
        in_place = self.config.sequence.targets.name == "in_place"
        weights_BJ = code_values.of_content(layout, hidden_BTC if in_place else jnp.ones_like(hidden_BTC)).astype(
            jnp.float32
        )
        ce = self._cross_entropy(layout, run, weights_BJ)

        def per_frame(x_BJ):  # of the longest bucket: batches of all buckets add up
            sums = x_BJ.reshape(batch_size, num_frames, -1).sum(2)
            return jnp.pad(sums, ((0, 0), (0, self._max_frames - num_frames)))

        return {
            "nll": per_frame(self._of_codes(layout, run, ce.nll)),
            "correct": per_frame(self._of_codes(layout, run, ce.correct)),
            "count": per_frame(weights_BJ),
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
            from lumos.videos.generator import Generator

            self._generator = Generator(self.config, self.definition, params)
        generator, generator.params = self._generator, params  # compiled once for all samples of a run
        captions = [generator.text.decode(ids) for ids in batch["text"]]
        streams = [np.asarray(batch[f"stream_{i}"]) for i in range(len(self.config.sequence.streams))]
        return generator.generate(captions, seed=self.config.seed, streams=streams).videos, captions

    def flops_per_step(self, shape=()):
        """Forward + backward = 3 forwards, those of errors, and 1 of a teacher; recomputation (remat) is not counted."""
        rows, *grid = shape or (self.config.data.batch_size, *self.layout.grid)
        layout, rule = self._layout_of(tuple(grid)), self.config.sequence.attention
        forward = lambda model: flops.forward_flops(model, layout, rule, layout.vocabulary.visual_size)
        c = self.config
        passes = 3 + c.corruption.errors.passes + c.train.rollout.passes(c.generate.steps, layout.grid[0])
        return rows * (passes * forward(self.config.model) + (forward(self._teacher.model) if self._teacher else 0))
