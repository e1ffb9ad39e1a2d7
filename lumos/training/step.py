"""One training step, for every objective."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lumos import sharding
from lumos.config import Config
from lumos.objective import Batch, Objective
from lumos.training.optimizer import apply_updates, norm, to_float32
from lumos.training.state import TrainState, state_shardings

_ROUNDING = 2**31  # tells the random numbers of rounding from those of microbatches


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
    """Return the jitted, donating update `(state, batch) -> (state, metrics)`; see `make_update`."""
    update = make_update(objective, optimizer, config)
    places = state_shardings(
        objective.definition,
        optimizer,
        mesh,
        ema=config.optimizer.ema_decay > 0,
        offload=config.optimizer.offload,
        extra=objective.extra_state(),
    )
    step = lambda state, batch: update(state, batch, config.seed)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, None))


def make_update(
    objective: Objective, optimizer: optax.GradientTransformation, config: Config
) -> Callable[[TrainState, Batch, jax.Array | int], tuple[TrainState, dict]]:
    """Return the update `(state, batch, seed) -> (state, metrics)`; with the seed as an argument, runs that differ in it alone share a
    program.

    The randomness of step s is fold_in(seed, s). Gradients of the summed loss are accumulated over microbatches and
    divided once by the summed weight, so accumulation equals one large batch however weights are spread.
    The extra state goes through the microbatches in order. A step whose loss or gradient is not finite leaves parameters,
    optimizer state, EMA and extra state as they were ("skipped" is 1).
    """
    num_micro, decay = config.train.accumulation, config.optimizer.ema_decay

    def without_frozen(params):
        """Stop the gradients of frozen parameters, so that their backward pass is not computed for the gradient norm."""
        if objective.groups is None:
            return params
        fixed = lambda p, group: jax.lax.stop_gradient(p) if group == "frozen" else p
        return jax.tree.map(fixed, params, objective.groups)

    def summed_gradients(params, batch, key, step, extra, totals):
        """Return (gradients, weight, metrics, statistics), which add over microbatches, and the new extra state."""

        def loss_sum(params):
            loss = objective.loss(without_frozen(params), batch, key, step, extra, totals)
            return loss.sum, loss

        (_, loss), grads = jax.value_and_grad(loss_sum, has_aux=True)(params)
        return (grads, loss.weight, loss.metrics | {"loss": loss.sum}, loss.statistics), loss.extra

    def update(state: TrainState, batch: Batch, seed: jax.Array | int) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if num_micro == 1:
            totals = objective.weights(batch, key)
            sums, extra = summed_gradients(state.params, batch, key, state.step, state.extra, totals)
        else:
            # Strided rows, so that every microbatch stays spread over all devices.
            split = jax.tree.map(lambda x: x.reshape(-1, num_micro, *x.shape[1:]).swapaxes(0, 1), batch)

            keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_micro))
            _, each = jax.lax.scan(lambda _, slices: (None, objective.weights(*slices)), None, (split, keys))
            totals = jax.tree.map(jnp.sum, each)

            def micro(carry, slices):
                before, extra = carry
                sums, extra = summed_gradients(state.params, *slices, state.step, extra, totals)
                return (jax.tree.map(jnp.add, before, sums), extra), None

            part = jax.tree.map(lambda x: x[0], split)
            shapes, _ = jax.eval_shape(summed_gradients, state.params, part, key, state.step, state.extra, totals)
            # Gradients of bfloat16 parameters add up in float32.
            wide = lambda x: jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x)), shapes)
            (sums, extra), _ = jax.lax.scan(micro, (zeros, state.extra), (split, keys))
        grads, weight, sums, statistics = sums
        weight = jnp.maximum(weight, 1e-9)
        share = 1 / weight  # a product, which XLA fuses with what reads it
        grads = jax.tree.map(lambda g: g * share, to_float32(grads))
        moments = sharding.to_device(state.opt_state) if config.optimizer.offload else state.opt_state
        updates, opt_state = optimizer.update(grads, moments, state.params)
        params = apply_updates(state.params, updates, jax.random.fold_in(key, _ROUNDING))
        params = objective.update_statistics(params, statistics)
        ema = state.ema
        if ema is not None:
            # Short averages at the start, when the parameters move fast.
            rate = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda e, p: e + (1 - rate) * (p - e), ema, params)
        metrics = {name: value / weight for name, value in sums.items()}
        metrics["grad_norm"] = norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        metrics["skipped"] = 1.0 - finite
        # Selected on the device: the host learns of it one step later, and nothing waits.
        new, old = (params, opt_state, ema, extra), (state.params, moments, state.ema, state.extra)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        return TrainState(state.step + 1, *kept), metrics

    return update
