"""One training step, for every task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lumos import sharding
from lumos.config import Config
from lumos.model.definition import Definition, Params
from lumos.training.optimizer import apply_updates, to_float32
from lumos.training.state import TrainState, state_shardings

Batch = dict[str, jax.Array]
_ROUNDING = 2**31  # tells the random numbers of rounding from those of microbatches


class Task(Protocol):
    """What `lumos train` trains. The loop, the step, sharding and checkpoints know nothing else.

    A task may divide its parameters: `groups`, shaped like them, holds names of `group_optimizers` or "frozen", and
    `group_starts` the steps before which groups wait. It may name the steps at which another term enters its loss
    (`new_terms_at`): losses before and after are not compared.
    """

    definition: Definition

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        """Return (sum of losses, sum of weights, metrics as weighted sums): the mean loss is their ratio.

        A task that learns something without gradients also has `update_statistics(params, statistics) -> params`, called
        after the optimizer's update. Its `loss` then takes the step as a fourth argument and returns as a fourth value
        the statistics: sums over the batch, which add over microbatches and, under jit, over devices.

        A task whose loss has terms that are means over different things also has `weights(batch, key)`, which returns what
        each is a mean over, summed over the batch, from the masks alone. Its `loss` then takes the sums over all microbatches
        of the step as `totals`, so that accumulation equals one large batch.
        """

    def evaluate_batch(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Return sums over the batch that `summarize` turns into metrics."""

    def summarize(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Return scalar metrics (lists are one value per latent frame) from summed `evaluate_batch` results."""

    def samples(self, params: Params, batch: Batch) -> tuple[Any, list[str]]:
        """Return videos to look at, uint8 [B, F, Y, X, 3], and their captions."""

    def flops_per_step(self, shape: tuple[int, ...] = ()) -> float:
        """Return the FLOPs of one step (forward and backward), counted exactly.

        `shape` is that of the global batch, tokens [B, T, H, W] or video [B, F, Y, X, 3]; by default of the first bucket.
        """


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
    """Return the jitted, donating update `(state, batch) -> (state, metrics)`.

    The randomness of step s is fold_in(seed, s). Gradients of the summed loss are accumulated over microbatches and
    divided once by the summed weight, so accumulation equals one large batch however weights are spread.
    A step whose loss or gradient is not finite leaves parameters, optimizer state and EMA as they were ("skipped" is 1).
    """
    num_micro, decay = config.train.accumulation, config.optimizer.ema_decay
    update_statistics, groups = getattr(task, "update_statistics", None), getattr(task, "groups", None)
    weights = getattr(task, "weights", lambda batch, key: {})

    def without_frozen(params):
        """Stop the gradients of frozen parameters, so that their backward pass is not computed for the gradient norm."""
        if groups is None:
            return params
        return jax.tree.map(lambda p, group: jax.lax.stop_gradient(p) if group == "frozen" else p, params, groups)

    def summed_gradients(params, batch, key, step, totals):
        def loss_sum(params):
            arguments = (without_frozen(params), batch, key) + ((step,) if update_statistics else ())
            total, weight, metrics, *statistics = task.loss(*arguments, **({"totals": totals} if totals else {}))
            return total, (weight, metrics | {"loss": total}, statistics)

        (_, (weight, metrics, statistics)), grads = jax.value_and_grad(loss_sum, has_aux=True)(params)
        return grads, weight, metrics, statistics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if num_micro == 1:
            totals = weights(batch, key)
            grads, weight, sums, statistics = summed_gradients(state.params, batch, key, state.step, totals)
        else:
            # Strided rows, so that every microbatch stays spread over all devices.
            split = jax.tree.map(lambda x: x.reshape(-1, num_micro, *x.shape[1:]).swapaxes(0, 1), batch)

            keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_micro))
            _, each = jax.lax.scan(lambda _, slices: (None, weights(*slices)), None, (split, keys))
            totals = jax.tree.map(jnp.sum, each)

            def micro(total, slices):
                sums = summed_gradients(state.params, *slices, state.step, totals)
                return jax.tree.map(jnp.add, total, sums), None

            part = jax.tree.map(lambda x: x[0], split)
            shapes = jax.eval_shape(summed_gradients, state.params, part, key, state.step, totals)
            # Gradients of bfloat16 parameters add up in float32.
            wide = lambda x: jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x)), shapes)
            (grads, weight, sums, statistics), _ = jax.lax.scan(micro, zeros, (split, keys))
        weight = jnp.maximum(weight, 1e-9)
        grads = jax.tree.map(lambda g: g / weight, to_float32(grads))
        moments = sharding.to_device(state.opt_state) if config.optimizer.offload else state.opt_state
        updates, opt_state = optimizer.update(grads, moments, state.params)
        params = apply_updates(state.params, updates, jax.random.fold_in(key, _ROUNDING))
        if update_statistics:
            params = update_statistics(params, *statistics)
        ema = state.ema
        if ema is not None:
            # Short averages at the start, when the parameters move fast.
            rate = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda e, p: e + (1 - rate) * (p - e), ema, params)
        metrics = {name: value / weight for name, value in sums.items()}
        metrics["grad_norm"] = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        metrics["skipped"] = 1.0 - finite
        # Selected on the device: the host learns of it one step later, and nothing waits.
        new, old = (params, opt_state, ema), (state.params, moments, state.ema)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        return TrainState(state.step + 1, *kept), metrics

    places = state_shardings(task.definition, optimizer, mesh, ema=decay > 0, offload=config.optimizer.offload)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, None))
