"""The transformer trained on its own rollouts (`generation.rollouts`): towards a frozen teacher, or a reward."""

from __future__ import annotations

import dataclasses
import importlib
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from lumos.errors import UserError
from lumos.generation import rollouts
from lumos.generation.guidance import NoGuidance
from lumos.objective import ExtraState, Loss
from lumos.training import code_values
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

_ROLL, _HIDE = 7, 8  # tell the random numbers of rolling and of hiding from others of a step


class RolloutObjective(TransformerObjective):
    """Of a batch it takes the prompts; its clips say nothing but their shape. Evaluation and samples are those of all
    transformers."""

    def __init__(self, config, facts=None):
        super().__init__(config, facts)
        settings = dataclasses.replace(config.generate, guidance=NoGuidance())
        self.engine = make_engine(config, self.definition, settings=settings)

    @cached_property
    def _raster(self) -> np.ndarray:
        """Where the code of each cell in raster order lies among those of the groups, int [J]."""
        layout, stored = self.engine.layout, self.engine.groups.cell_index.reshape(-1)
        place_L = np.zeros(layout.length, int)
        place_L[stored] = np.arange(len(stored))
        return place_L[layout.visual_index]

    def extra_state(self):
        return ExtraState.join(super().extra_state(), self._live_state())

    def _live_state(self) -> ExtraState | None:
        """Return the state of videos that live on from step to step, split like a batch: {"rollout": ...}."""
        rows, length = self.config.data.batch_size // self.config.train.accumulation, self.config.sequence.text_length

        def live(rows):
            shapes = jax.ShapeDtypeStruct((rows, length), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
            return {"rollout": self.config.train.rollout.live(self.engine, self.definition.abstract, shapes)}

        abstract, twice = live(rows), live(2 * rows)
        if abstract["rollout"] is None:
            return None
        axes_of = lambda a, b: tuple("batch" if n != m else None for n, m in zip(a.shape, b.shape))
        zeros = lambda leaf, place: jnp.zeros(leaf.shape, leaf.dtype, device=place)
        return ExtraState(
            abstract, jax.tree.map(axes_of, abstract, twice), lambda places: jax.tree.map(zeros, abstract, places)
        )

    def _prompts(self, batch):
        if batch["tokens"].shape[1:] != self.layout.grid:
            raise ValueError(f"rollouts are clips of {self.layout.grid}, but a batch has {batch['tokens'].shape[1:]}")
        return batch["text"], batch["text_length"]

    def _by_cell(self, codes_BGC):
        """Return values of all codes in raster order, [B, J, ...]."""
        return codes_BGC.reshape(codes_BGC.shape[0], -1, *codes_BGC.shape[3:])[:, self._raster]


class DistilledObjective(RolloutObjective):
    """The newest clip of a rollout, hidden again in part: KL to the teacher, which sees this clip alone."""

    def loss(self, params, batch, key, step=0, extra=None, totals=None):
        """Return the KL to the teacher over the codes of the newest clip that are hidden again, weighted by their number."""
        c, layout, stop = self.config, self.layout, jax.lax.stop_gradient
        roll_key = jax.random.fold_in(key, _ROLL)
        rolled = c.train.rollout(self.engine, stop(params), roll_key, self._prompts(batch), extra.get("rollout"))
        codes_BJ = self._by_cell(rolled.codes_BGC)
        drawn = c.corruption.draw(jax.random.fold_in(key, _HIDE), len(codes_BJ), *layout.content_index.shape)
        model, features_BJF = self._student(params, rolled, drawn)
        clip = {
            "tokens": codes_BJ.reshape(-1, *layout.grid),
            "text": rolled.prompts[0],
            "text_length": rolled.prompts[1],
        }
        teacher = self._forward(layout, self._teacher.definition, stop(extra["teacher"]), clip, drawn, None, key)
        where = c.sequence.targets(layout)
        teacher_features = code_values.features(teacher.model, layout, where, teacher.hidden_BLD)
        weights_BJ, counts_BJ = self._weights(layout, drawn)
        kl = self._kl(model, features_BJF, teacher.model, teacher_features, weights_BJ)
        if rolled.live is not None:
            extra = extra | {"rollout": rolled.live}
        return Loss(c.loss.teacher_weight * kl, counts_BJ.sum(), {"teacher_kl": kl}, extra)

    def _student(self, params, rolled: rollouts.Rolled, drawn):
        """Run the clip behind its history; return the model and the features of its codes in raster order, [B, J, F]."""
        engine, model = self.engine, self.engine.bind(params)
        groups, before = engine.groups, jax.lax.stop_gradient(rolled.before)
        groups_G = before.group + jnp.arange(groups.num)
        _, template, run = engine._open(model, before, groups_G)
        hidden_BJ = code_values.of_content(self.layout, drawn.mask_BTC)
        known_BGC = ~hidden_BJ[:, np.argsort(self._raster)].reshape(rolled.codes_BGC.shape)
        ids_BQ = engine._with_codes(template, groups_G, rolled.codes_BGC, known_BGC)
        hidden_BQD, _ = run(ids_BQ, jnp.repeat(drawn.ratio_BT, groups.per_frame * groups.size, axis=1))
        cells = (np.arange(groups.num)[:, None] * groups.size + groups.cells).reshape(-1)
        return model, hidden_BQD[:, cells[self._raster]]


class RewardObjective(RolloutObjective):
    """Clips that are compared with others of their prompt (`rollouts.Reward`)."""

    def __init__(self, config, facts=None):
        super().__init__(config, facts)
        self._reward = _load(config.train.rollout.function)
        if not self.engine.groups.is_uniform:
            raise UserError(
                f"config.train.rollout='reward' needs groups of one size, not config.sequence.layout={config.sequence.layout.name!r}"
            )

    def loss(self, params, batch, key, step=0, extra=None, totals=None):
        """Return the clipped gain of every code, negative; the weight is the number of codes."""
        c, live, stop = self.config.train.rollout, extra["rollout"], jax.lax.stop_gradient
        prompts, key = self._prompts(batch), jax.random.fold_in(key, _ROLL)

        def reward(codes_BGC, prompts):
            return self._reward(self._by_cell(codes_BGC).reshape(-1, *self.layout.grid), *prompts)

        anew = lambda: c.roll(self.engine, stop(params), key, prompts, reward)
        is_new = live["used"] == 0
        clips = jax.lax.cond(is_new, anew, lambda: {name: live[name] for name in live if name not in ("log_p", "used")})
        begin = rollouts.start(self.engine, params, key, (clips["text"], clips["text_length"]))
        features_BGCD = rollouts.replay(self.engine, params, begin, clips["codes"], clips["kept"])
        model, codes_BJ = self.definition.bind(params), self._by_cell(clips["codes"])
        ones_BJ, chunk = jnp.ones(codes_BJ.shape, jnp.float32), self.config.loss.chunk
        log_p_BJ = -self.config.model.head.loss(
            model, self._by_cell(features_BGCD), codes_BJ, ones_BJ, chunk=chunk
        ).loss
        old_BJ = jnp.where(is_new, stop(log_p_BJ), live["log_p"])
        gain = c.gains(log_p_BJ, old_BJ, clips["advantage"]).sum()
        metrics = {"reward": clips["reward"].mean() * codes_BJ.size, "log_p": log_p_BJ.sum()}
        live = clips | {"log_p": old_BJ, "used": (live["used"] + 1) % c.updates}
        return Loss(-gain, jnp.float32(codes_BJ.size), metrics, extra | {"rollout": live})


def _load(name: str):
    """Return the function of "module:function". Raises UserError."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.train.rollout.function={name!r} must be module:function, importable from here: {error}"
        ) from error
