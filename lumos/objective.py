"""What `lumos train` trains: the contract of the loop, the step, checkpoints and sharding with it. They know nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax

from lumos.config import OptimizerConfig
from lumos.model.definition import Definition, Params

Batch = dict[str, jax.Array]


class Loss(NamedTuple):
    """What a (micro)batch gives. Sums add over microbatches and, under jit, over devices."""

    sum: jax.Array  # of the losses, scalar; the mean loss of a step is sum / weight
    weight: jax.Array  # scalar
    metrics: dict[str, jax.Array]  # sums, which the step divides by the weight
    extra: Any = None  # the extra state after this (micro)batch, of the form it came in
    statistics: Any = {}  # sums that `update_statistics` takes


class ExtraState(NamedTuple):
    """State beside parameters, moments and EMA, such as a frozen teacher, a bank of errors, or a cache of rollouts."""

    abstract: dict[str, Any]  # named parts, each a tree of shapes and dtypes
    axes: dict[str, Any]  # the same tree of logical axes, a tuple for each array
    start: Callable[[dict[str, Any]], dict[str, Any]]  # shardings, a tree like `abstract` -> the first value, so placed

    @staticmethod
    def join(*states: ExtraState | None) -> ExtraState | None:
        """Return the parts of several states as one."""
        states = [state for state in states if state]
        if len(states) < 2:
            return states[0] if states else None
        merge = lambda parts: {name: part for each in parts for name, part in each.items()}
        start = lambda places: merge(s.start({name: places[name] for name in s.abstract}) for s in states)
        return ExtraState(merge(s.abstract for s in states), merge(s.axes for s in states), start)


class Objective:
    """What is trained, and how. Subclasses set `definition` and define `loss` and what else they need.

    Attributes:
      definition: of all parameters.
      groups: None, or a tree like the parameters with the group of each: a name of `group_optimizers`, or "frozen".
      group_optimizers: the optimizer of each group.
      group_starts: steps before which a group waits.
      new_terms_at: steps at which a term enters the loss: losses before and after are not compared.
      facts: JSON values that a checkpoint has to hold so that its run can be built again (`make_objective`).
    """

    definition: Definition
    groups: Params | None = None
    group_optimizers: Mapping[str, OptimizerConfig] = {}
    group_starts: Mapping[str, int] = {}
    new_terms_at: Collection[int] = ()
    facts: Mapping[str, Any] = {}

    def extra_state(self) -> ExtraState | None:
        """Return what else the training state carries; None if nothing."""
        return None

    def weights(self, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Return what the terms of the loss are means over, summed over the batch, from its masks alone.

        `loss` gets the sums over all microbatches as `totals`, so that accumulation equals one large batch. A loss whose
        terms all are means over its weight has none.
        """
        return {}

    def loss(
        self,
        params: Params,
        batch: Batch,
        key: jax.Array,
        step: jax.Array | int = 0,
        extra: Any = None,
        totals: dict[str, jax.Array] | None = None,
    ) -> Loss:
        """Return the loss of a (micro)batch. Pure: the step differentiates `sum` with respect to `params`.

        Args:
          key: of this (micro)batch; `weights` gets the same.
          step: finished updates.
          extra: the extra state, as the microbatch before left it.
          totals: `weights` of all microbatches of the step; by default this batch is the only one.
        """
        raise NotImplementedError

    def update_statistics(self, params: Params, statistics: Any) -> Params:
        """Return the parameters with what is learnt without gradients. Called after the optimizer's update."""
        return params

    def evaluate_batch(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Return sums over the batch that `summarize` turns into metrics."""
        raise NotImplementedError

    def summarize(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Return scalar metrics (lists are one value per latent frame) from summed `evaluate_batch` results."""
        raise NotImplementedError

    def samples(self, params: Params, batch: Batch) -> tuple[Any, list[str]]:
        """Return videos to look at, uint8 [B, F, Y, X, 3], and their captions."""
        raise NotImplementedError

    def flops_per_step(self, shape: tuple[int, ...] = ()) -> float:
        """Return the FLOPs of one step (forward and backward), counted exactly.

        `shape` is that of the global batch, tokens [B, T, H, W] or video [B, F, Y, X, 3]; by default of the first bucket.
        """
        raise NotImplementedError
