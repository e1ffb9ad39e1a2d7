"""The training state: one frozen pytree, born sharded."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lumos import sharding
from lumos.model.definition import Definition
from lumos.objective import ExtraState

_INITIALISATION = 2**32 - 1  # tells the random numbers of initialisation from those of steps


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("step", "params", "opt_state", "ema", "extra"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 scalar, finished updates. ema: like params in float32, or None. extra: see `objective.ExtraState`, or None.
    Random keys are fold_in(seed, step).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    extra: Any = None

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate and sample with: the EMA, or the average that a schedule-free optimizer keeps."""
        if self.ema is not None:
            return self.ema
        is_average = lambda x: isinstance(x, optax.contrib.ScheduleFreeState)
        averages = [x for x in jax.tree.leaves(self.opt_state, is_leaf=is_average) if is_average(x)]
        return optax.contrib.schedule_free_eval_params(averages[0], self.params) if averages else self.params


def state_shardings(
    definition: Definition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool,
    offload: bool = False,
    extra: ExtraState | None = None,
) -> TrainState:
    """Return the sharding of every leaf: moments and EMA lie as their parameter does, scalars are replicated.

    Factored moments (Adafactor) miss an axis of their parameter and are split along the axes that are left. With
    `offload` the optimizer's state waits in the memory of the host.
    """
    params = sharding.param_shardings(mesh, definition.axes, definition.abstract)
    everywhere = sharding.replicated(mesh)
    by_path = {
        path: (leaf.shape, place)
        for (path, leaf), place in zip(
            jax.tree_util.tree_leaves_with_path(definition.abstract), jax.tree.leaves(params), strict=True
        )
    }

    def place_of(path, leaf):
        # Moments lie in copies of the parameter tree, so their paths end in the path of their parameter.
        for start in range(len(path)):
            if path[start:] in by_path:
                shape, place = by_path[path[start:]]
                return place if shape == leaf.shape else _reduced(mesh, shape, place, leaf.shape)
        return everywhere

    opt_state = jax.tree_util.tree_map_with_path(place_of, jax.eval_shape(optimizer.init, definition.abstract))
    if offload:
        opt_state = jax.tree.map(sharding.on_host, opt_state)
    places = sharding.param_shardings(mesh, extra.axes, extra.abstract) if extra else None
    return TrainState(step=everywhere, params=params, opt_state=opt_state, ema=params if ema else None, extra=places)


def _reduced(mesh: Mesh, shape, place, reduced_shape):
    """Return the sharding of an array whose axes are some of those of a sharded one, in order."""
    entries, remaining = [], list(zip(shape, [*place.spec, *[None] * (len(shape) - len(place.spec))]))
    for size in reduced_shape:
        while remaining and remaining[0][0] != size:
            remaining.pop(0)
        if not remaining:
            return sharding.replicated(mesh)
        entries.append(remaining.pop(0)[1])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*entries))


def create_state(
    definition: Definition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    ema: bool,
    offload: bool = False,
    params: Any = None,
    extra: ExtraState | None = None,
) -> TrainState:
    """Initialise the state inside jit, straight into its shards; around `params`, where they are given (fine-tuning).

    The extra state starts outside: it may be read from files.
    """

    init = lambda params: new_state(definition, optimizer, seed, params, ema=ema)
    with jax.set_mesh(mesh):
        places = state_shardings(definition, optimizer, mesh, ema=ema, offload=offload)
        state = jax.jit(init, out_shardings=places, donate_argnums=0)(params)
        if extra is None:
            return state
        return dataclasses.replace(state, extra=extra.start(sharding.param_shardings(mesh, extra.axes, extra.abstract)))


def new_state(definition: Definition, optimizer, seed: jax.Array | int, params: Any = None, *, ema: bool) -> TrainState:
    """Return a state without extra state that begins at `params`, or at random ones of this seed."""
    if params is None:
        # The randomness of step s is fold_in(key(seed), s): no step reaches this number.
        params = definition.init(jax.random.fold_in(jax.random.key(seed), _INITIALISATION))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), start_average(params) if ema else None)


def start_average(params: Any) -> Any:
    """Return the EMA that begins at these parameters.

    It is float32 whatever they are: an average in bfloat16 would lose its small changes. It is a copy: without one, donating
    the state would donate the same buffer twice.
    """
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)


def abstract_state(
    definition: Definition,
    optimizer,
    mesh: Mesh,
    *,
    ema: bool,
    offload: bool = False,
    extra: ExtraState | None = None,
) -> TrainState:
    """Return shapes, dtypes and shardings of the state without allocating it (for restoring)."""
    shapes = jax.eval_shape(
        lambda params, extra: TrainState(
            jnp.zeros((), jnp.int32), params, optimizer.init(params), start_average(params) if ema else None, extra
        ),
        definition.abstract,
        extra.abstract if extra else None,
    )
    places = state_shardings(definition, optimizer, mesh, ema=ema, offload=offload, extra=extra)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)
