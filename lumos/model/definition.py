"""A model as an init function and a pure apply: NNX describes, plain JAX runs.

`nnx.Module` classes declare parameters with `param(...)`, which records the logical axis names that
`lumos.sharding` maps to the mesh. `Definition` splits such a module once: parameters become a plain nested
dict, and `bind(params)` rebuilds the module inside a jitted function at no run-time cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]


def param(value: jax.Array, axes: tuple[str | None, ...]) -> nnx.Param:
    """Declare a parameter with one logical axis name (or None) per dimension."""
    if value.ndim != len(axes):
        raise ValueError(f"parameter of shape {value.shape} needs {value.ndim} axis names, got {axes}")
    return nnx.Param(value, axes=axes)


def statistic(value: jax.Array, axes: tuple[str | None, ...]) -> nnx.Param:
    """Declare a parameter that no optimizer touches: running averages, frozen tables (see `Definition.trained`)."""
    variable = param(value, axes)
    variable.set_metadata(trained=False)
    return variable


def stack(make: Callable[[nnx.Rngs], nnx.Module], num: int, rngs: nnx.Rngs) -> nnx.Module:
    """Build `num` copies of a module with a leading "layers" axis on every parameter."""
    return nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), num))


def apart(stacked: nnx.Module) -> nnx.List:
    """Return the layers of a stacked module one by one, for loops that run them many times: what is taken out of an array inside
    of a loop is copied in every turn of it."""
    graph, params = nnx.split(stacked)
    num = jax.tree.leaves(params)[0].shape[0]
    return nnx.List([nnx.merge(graph, _layer(params, i)) for i in range(num)])


def scan(
    stacked: nnx.Module,
    call: Callable,
    carry: Any,
    *per_layer: Any,
    turns: int = 1,
    kinds: tuple[str, ...] = (),
    remat: Callable | None = None,
    unroll: bool = False,
) -> Any:
    """Run `carry, out = call(layer, carry, turn, *per_layer_slices)` over the layers of a stacked module.

    `kinds`: of each turn. `per_layer` is then one dict with a tree for each kind (or none), stacked over the layers of that kind,
    and so are the outs. Layer i has turn i % `turns`, a Python integer: layers that take turns may differ in what they compute. `remat` wraps the
    layer body (a `jax.checkpoint` with a policy); `unroll` compiles every layer on its own. Returns the last carry and the
    stacked outs.
    """
    if not kinds:
        carry, outs = scan(
            stacked, call, carry, {"": per_layer}, turns=turns, kinds=("",) * turns, remat=remat, unroll=unroll
        )
        return carry, outs[""]
    (given,), turns = per_layer, len(kinds)
    is_apart = isinstance(stacked, nnx.List)
    graph, params = nnx.split(stacked[0] if is_apart else stacked)

    def body_of(turn):
        def body(carry, slices):
            layer_params, *rest = slices
            return call(nnx.merge(graph, layer_params), carry, turn, *rest)

        return remat(body) if remat else body

    if is_apart:
        outs, bodies = {kind: [] for kind in kinds}, [jax.jit(body_of(turn)) for turn in range(turns)]
        for i, layer in enumerate(stacked):
            of_kind = outs[kinds[i % turns]]
            own = (_layer(tree, len(of_kind)) for tree in given.get(kinds[i % turns], ()))
            carry, out = bodies[i % turns](carry, (nnx.state(layer), *own))
            of_kind.append(out)
        return carry, {kind: jax.tree.map(lambda *x: jnp.stack(x), *of_kind) for kind, of_kind in outs.items()}

    if turns == 1:
        carry, out = jax.lax.scan(body_of(0), carry, (params, *given.get(kinds[0], ())), unroll=unroll)
        return carry, {kinds[0]: out}
    bodies = [body_of(turn) for turn in range(turns)]

    def all_turns(carry, slices):
        params, given = slices
        outs = {kind: [] for kind in kinds}
        for turn, (kind, body) in enumerate(zip(kinds, bodies)):
            own = (_layer(tree, len(outs[kind])) for tree in given.get(kind, ()))
            carry, out = body(carry, (_layer(params, turn), *own))
            outs[kind].append(out)
        return carry, {kind: jax.tree.map(lambda *x: jnp.stack(x), *of_kind) for kind, of_kind in outs.items()}

    split = lambda tree, num: jax.tree.map(lambda x: x.reshape(-1, num, *x.shape[1:]), tree)
    given = {kind: split(tree, kinds.count(kind)) for kind, tree in given.items()}
    carry, outs = jax.lax.scan(all_turns, carry, (split(params, turns), given), unroll=unroll)
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)


def _layer(tree: Any, i: int) -> Any:
    """Return what a layer has of a tree that is stacked, or a tuple with a tree for each layer."""
    return tree[i] if type(tree) is tuple else jax.tree.map(lambda x: x[i], tree)


class Definition:
    """What is needed to initialise and run a model, without holding its parameters."""

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0))))
        self._graph, state, self._rest = nnx.split(abstract, nnx.Param, ...)
        if jax.tree.leaves(self._rest):
            raise ValueError("modules hold parameters only: pass keys and buffers as arguments")
        self.abstract: Params = nnx.to_pure_dict(state)
        self.axes: Params = _axes(state, self.abstract)
        # Like the parameters: False where a leaf is a `statistic`.
        self.trained: Params = nnx.to_pure_dict(
            jax.tree.map(
                lambda variable: variable.get_metadata().get("trained", True),
                state,
                is_leaf=lambda x: isinstance(x, nnx.Variable),
            )
        )

    def init(self, key: jax.Array) -> Params:
        """Return freshly initialised parameters as a nested dict (call it inside jit to shard them at birth)."""
        return nnx.to_pure_dict(nnx.split(self._make(nnx.Rngs(params=key)), nnx.Param, ...)[1])

    def bind(self, params: Params) -> nnx.Module:
        """Return the module with these parameters."""
        return nnx.merge(self._graph, nnx.State(params), self._rest)

    def unbind(self, module: nnx.Module) -> Params:
        """Return the parameters of a module that `bind` made, changed or not."""
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))


def _axes(state: nnx.State, abstract: Params) -> Params:
    axes: Params = {}
    for path, variable in nnx.to_flat_state(state):
        node, leaf = axes, abstract
        for name in path[:-1]:
            node, leaf = node.setdefault(name, {}), leaf[name]
        names = variable.get_metadata()["axes"]
        if leaf[path[-1]].ndim == len(names) + 1:  # a stacked module
            names = ("layers", *names)
        node[path[-1]] = names
    return axes
