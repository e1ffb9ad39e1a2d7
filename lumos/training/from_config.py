"""Builds what is trained: the objective of a config and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from lumos.config import Config
from lumos.objective import Objective
from lumos.training.optimizer import check_rates, make_grouped_optimizer, make_optimizer


def make_objective(config: Config, facts: Mapping[str, Any] | None = None) -> Objective:
    """Build the objective of a resolved config; with the `facts` of the checkpoint that a run resumes from."""
    if config.task == "tokenizer":
        from lumos.tokenizers.objective import TokenizerObjective

        return TokenizerObjective(config)
    if config.task == "actions":
        from lumos.latent_actions.objective import ActionsObjective

        return ActionsObjective(config)
    if config.train.rollout.name != "none":
        from lumos.training.rollout_objective import DistilledObjective, RewardObjective

        return (RewardObjective if config.train.rollout.name == "reward" else DistilledObjective)(config, facts)
    if config.actions.weight:
        from lumos.training.cotraining import CotrainedObjective

        return CotrainedObjective(config, facts)
    from lumos.training.transformer_objective import TransformerObjective

    return TransformerObjective(config, facts)


def make_objective_optimizer(objective: Objective, config: Config) -> optax.GradientTransformation:
    """Return the optimizer of a run: one for all, or one for each of the groups an objective divides its parameters into."""
    check_rates(config.optimizer, objective.definition.abstract)
    if objective.groups is None:
        return make_optimizer(config.optimizer, config.train.num_steps)
    return make_grouped_optimizer(
        objective.groups, objective.group_optimizers, config.train.num_steps, objective.group_starts
    )
