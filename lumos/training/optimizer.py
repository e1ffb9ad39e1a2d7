"""Optimizers by name (all of optax and optax.contrib), learning-rate schedules, and updates of bfloat16 parameters."""

from __future__ import annotations

import difflib
import inspect
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lumos.config import OptimizerConfig
from lumos.errors import UserError

_MUON_MOMENTUM = 0.95
_log = logging.getLogger(__name__)


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Return step -> learning rate: linear warm-up, then cosine, warm-up-stable-decay (linear) or constant."""
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    warmup = min(config.warmup_steps, num_steps)
    rest = max(num_steps - warmup, 1)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    elif config.schedule == "wsd":
        decay = max(int(round(num_steps * config.decay_fraction)), 1)
        after = optax.linear_schedule(peak, end, decay, transition_begin=max(rest - decay, 0))
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Return clipping + the named optimizer + weight decay.

    An optimizer with weight decay of its own keeps its form of it. With all others it is decoupled: `parameter -= learning
    rate * weight_decay * parameter` (Loshchilov and Hutter 2019). It acts on what `decays` says.

    Raises:
      UserError: no such optimizer, one that needs more than gradients, or a field was changed that it has no use for.
    """
    factory = getattr(optax, config.name, None) or getattr(optax.contrib, config.name, None)
    parameters = inspect.signature(factory).parameters if callable(factory) else {}
    if "learning_rate" not in parameters:
        near = difflib.get_close_matches(config.name, [*dir(optax), *dir(optax.contrib)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"config.optimizer.name={config.name!r} is not an optimizer of optax or optax.contrib{hint}")
    schedule, mask = make_schedule(config, num_steps), decays if config.decay == "matrices" else None
    wanted = {"learning_rate": schedule, "b1": config.beta1, "b2": config.beta2}
    if config.name == "muon":
        # The embedding, head and norm parameters run Adam.
        wanted |= {"beta": _MUON_MOMENTUM, "adam_b1": OptimizerConfig.beta1, "adam_b2": config.beta2}
        wanted["muon_weight_dimension_numbers"] = _muon_dimensions
        wanted["consistent_rms"] = 0.2  # updates as large as Adam's (Moonlight), so that one learning rate serves both
    _refuse_unused(config, parameters)
    outside = None
    mask_name = next((name for name in ("mask", "weight_decay_mask") if name in parameters), None)
    if "weight_decay" not in parameters or (config.name == "muon" and mask):  # Muon's Adam has no mask
        wanted |= {"weight_decay": 0.0, "adam_weight_decay": 0.0}
        if config.weight_decay:
            outside = optax.add_decayed_weights(lambda step: -config.weight_decay * schedule(step), mask)
    elif mask and config.name in ("schedule_free_adamw", "schedule_free_sgd"):
        factory, parameters = _schedule_free, ("config", "schedule", "mask")
        wanted = {"config": config, "schedule": schedule, "mask": mask}
    else:
        wanted |= {"weight_decay": config.weight_decay, "adam_weight_decay": config.weight_decay, mask_name: mask}
        if mask and not mask_name and config.weight_decay:
            _log.warning("%s decays every parameter, norms and biases too: it cannot spare any", config.name)
    try:
        optimizer = factory(**{name: value for name, value in wanted.items() if name in parameters})
        # What it asks for shows at its first update: here, of one small matrix.
        jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), {"kernel": jnp.zeros((2, 2))})
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.optimizer.name={config.name!r} cannot be used: it asks for more than gradients and a learning rate schedule "
            f"({' '.join(str(error).split())[:120]})"
        ) from error
    clip = _clip(config.clip_norm) if config.clip_norm > 0 else optax.identity()
    optimizer = optax.chain(clip, optax.chain(optimizer, outside) if outside else optimizer)
    return _in_float32(_rated(optimizer, config.rates))


def norm(tree: Any) -> jax.Array:
    """Return the square root of the sum of the squares of all numbers, float32."""

    def squares(x):
        y = jnp.square(x.astype(jnp.float32))
        # Over layers first, and apart: a CPU adds vectors then. The sum of all at once takes it four times as long.
        return (jax.lax.optimization_barrier(y.sum(0)) if y.ndim > 2 else y).sum()

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree)), jnp.float32(0)))


def _clip(most: float) -> optax.GradientTransformation:
    """Scale gradients whose norm is above `most` down to it; like `optax.clip_by_global_norm`, by a product, which XLA fuses with
    what reads it, as it does not with a division."""

    def update(grads, state, params=None):
        factor = jnp.minimum(1.0, most / norm(grads))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def check_rates(config: OptimizerConfig, params: Any) -> None:
    """Refuse factors of the learning rate that have no part to act on, or an optimizer that they do not fit. Raises UserError."""
    if config.rates and config.name.startswith("schedule_free"):
        raise UserError(
            f"config.optimizer.rates does not go with {config.name}, which averages what it has been at; take another optimizer"
        )
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    for name, factor in config.rates:
        if not 0 <= factor < float("inf"):
            raise UserError(
                f"config.optimizer.rates: the factor of {name!r} is {factor}; it must be at least 0, and finite"
            )
        if not any(_is_part(path, name) for path in paths):
            near = difflib.get_close_matches(
                name, {"/".join(path.split("/")[:n]) for path in paths for n in (1, 2, 3)}, n=3
            )
            raise UserError(
                f"config.optimizer.rates names {name!r}, of which the model has no parameter; near it: {', '.join(near) or 'nothing'}; "
                f"whole parts: {', '.join(sorted({path.split('/')[0] for path in paths}))}"
            )


def _is_part(path: str, name: str) -> bool:
    return f"{path}/".startswith(f"{name}/")


def _rated(
    optimizer: optax.GradientTransformation, rates: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """Multiply updates by the factors of their parts. The state keeps its form, so a run may go on with other factors."""

    def one(path, update):
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        _, factor = max(((len(name), factor) for name, factor in rates if _is_part(names, name)), default=(0, 1.0))
        return update * factor

    def update(grads, state, params=None):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.GradientTransformation(optimizer.init, update) if rates else optimizer


def _schedule_free(config: OptimizerConfig, schedule: optax.Schedule, mask) -> optax.GradientTransformation:
    """Return optax's schedule_free_adamw or schedule_free_sgd with a mask of weight decay, which those do not take."""
    scale = optax.scale_by_rms(config.beta2, eps_in_sqrt=False, bias_correction=True)
    base = optax.chain(
        scale if config.name == "schedule_free_adamw" else optax.identity(),
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.contrib.schedule_free(base, schedule, b1=config.beta1)


def decays(params: Any) -> Any:
    """Return which parameters weight decay acts on: matrices, tables and kernels, but neither norms nor biases."""

    def one(path, leaf):
        names = [key.key for key in path]
        # Layers are stacked, but for those that have a number (of holistic tokenizers).
        own_axes = leaf.ndim - any(name == "layers" and not after.isdigit() for name, after in zip(names, names[1:]))
        return own_axes >= 2 and names[-1] != "bias" and not any("norm" in name for name in names)

    return jax.tree_util.tree_map_with_path(one, params)


def _refuse_unused(config: OptimizerConfig, parameters) -> None:
    """Raise UserError where a field was changed from its default that the optimizer has no use for."""
    for name, used in (("beta1", "b1" in parameters), ("beta2", bool({"b2", "adam_b2"} & set(parameters)))):
        value, default = getattr(config, name), getattr(OptimizerConfig, name)
        if not used and value != default:
            why = f"its momentum is {_MUON_MOMENTUM}" if config.name == "muon" else "it has no such field"
            raise UserError(
                f"config.optimizer.{name}={value} has no effect on {config.name} ({why}); leave it at {default}"
            )


def check_resumed(config: OptimizerConfig, began: dict[str, Any], where: str) -> None:
    """Refuse to go on under another rule of weight decay than a run began with: its state has another form.

    `began` is this section of the config in the checkpoint. Before it held the rule, decay acted on every parameter, and on
    none with optimizers that have no decay of their own; beta1 was that of Muon's Adam. Raises UserError.
    """
    factory = getattr(optax, config.name, None) or getattr(optax.contrib, config.name)
    if "decay" not in began:
        if config.name == "muon" and began.get("beta1", OptimizerConfig.beta1) != OptimizerConfig.beta1:
            raise UserError(
                f"{where} began when config.optimizer.beta1, there {began['beta1']}, was that of Muon's Adam, which has "
                f"{OptimizerConfig.beta1} now: it cannot go on; start a new run from its weights with lumos train --init_from"
            )
        if "weight_decay" not in inspect.signature(factory).parameters:
            if config.weight_decay:
                raise UserError(
                    f"{where} began when weight decay had no effect on {config.name}: it cannot go on with any; set "
                    "config.optimizer.weight_decay=0"
                )
            return
    rule = began.get("decay", "all")
    if config.decay != rule:
        acts = {"all": "acts on every parameter", "matrices": "spares norms and biases"}[rule]
        raise UserError(f"{where} is of a run whose weight decay {acts}; set config.optimizer.decay={rule} to go on")


def _in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep moments and compute updates in float32, whatever the parameters are."""

    def init(params):
        return optimizer.init(to_float32(params))

    def update(grads, state, params=None):
        return optimizer.update(to_float32(grads), state, to_float32(params))

    return optax.GradientTransformation(init, update)


def to_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def apply_updates(params: Any, updates: Any, key: jax.Array) -> Any:
    """Add float32 updates to parameters; the sum is rounded stochastically where the parameter is bfloat16.

    An update is often smaller than half the distance between two bfloat16 numbers. Rounded to the nearest it is lost, step
    after step; rounded up or down at random, in proportion, it arrives on average.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def one(param, update, key):
        new = param.astype(jnp.float32) + update
        return stochastic_round(new, key) if param.dtype == jnp.bfloat16 else new.astype(param.dtype)

    return tree.unflatten([one(*parts) for parts in zip(leaves, tree.flatten_up_to(updates), keys, strict=True)])


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Round float32 to one of the two nearest bfloat16 numbers, so that the expected value is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16)
    kept = bits & jnp.uint32(0xFFFF0000)  # bfloat16 is the upper half of a float32
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


def make_grouped_optimizer(
    groups: Any, configs: dict[str, OptimizerConfig], num_steps: int, starts: dict[str, int]
) -> optax.GradientTransformation:
    """Return one optimizer for each group of parameters.

    `groups` is shaped like the parameters and holds names of `configs`, or "frozen" for leaves that stay as they are: no
    update and no weight decay. A group named in `starts` waits until that step; its schedule fills the rest.
    """

    def make(name: str, config: OptimizerConfig) -> optax.GradientTransformation:
        start = min(starts.get(name, 0), num_steps)
        optimizer = make_optimizer(config, num_steps - start)
        return optax.conditionally_mask(optimizer, lambda step: step >= start) if start else optimizer

    named = {name: make(name, config) for name, config in configs.items()}
    return optax.partition({**named, "frozen": optax.set_to_zero()}, groups)


def _muon_dimensions(params):
    """Orthogonalise the kernels of layers and convolutions as [inputs, outputs]; the rest (tables, head, norms) runs Adam."""

    def one(path, leaf):
        names = [getattr(key, "key", None) for key in path]
        first = int("layers" in names)  # stacked layers: one matrix each
        if names[-1] != "kernel" or "lm_head" in names or leaf.ndim < first + 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(one, params)
