"""Mesh and logical axis rules: the only file that knows the names of mesh axes.

Model code names logical axes ("embed", "heads", ...); `RULES` maps them to the mesh (`replica`, `fsdp`, `context`,
`tensor`). Everything is checked before anything is compiled.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lumos.config import MeshConfig
from lumos.errors import UserError

MESH_AXES = ("replica", "fsdp", "context", "tensor")

# Logical axis -> mesh axes. Parameters shard their "embed" (or output channel) axis over fsdp and their head, mlp or
# vocabulary axis over tensor; batches split over replica and fsdp, sequences over context.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "fsdp"),
    "length": ("context",),
    "layers": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "channels": ("fsdp",),
}


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Build the mesh. Raises UserError if the axis sizes do not multiply to the number of devices."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"config.mesh {dict(zip(MESH_AXES, sizes))}: sizes are positive, and at most one may be -1")
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise UserError(
            f"config.mesh {dict(zip(MESH_AXES, sizes))} does not fit {len(devices)} devices: the sizes must multiply to "
            f"{len(devices)} (set one to -1 to fill it)"
        )
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    grid = np.array(devices).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Translate logical axis names to a PartitionSpec. Raises UserError on an unknown name or a mesh axis used twice."""
    used: list[str] = []
    entries = []
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise UserError(f"unknown logical axis {axis!r}; known: {', '.join(RULES)}")
        mesh_axes = RULES[axis] if axis else ()
        if set(mesh_axes) & set(used):
            raise UserError(f"logical axes {axes} use a mesh axis twice: {mesh_axes}")
        used += mesh_axes
        entries.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
    return PartitionSpec(*entries)


def param_shardings(mesh: Mesh, axes: Any, abstract: Any) -> Any:
    """Return a NamedSharding per parameter. Raises UserError where a dimension does not divide."""

    def one(path, names, leaf):
        partition = spec(names)
        for dim, entry in zip(leaf.shape, partition):
            parts = math.prod(mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry or ()))
            if dim % parts:
                raise UserError(
                    f"parameter {jax.tree_util.keystr(path)} of shape {leaf.shape} cannot be split {parts} ways over mesh axis "
                    f"{entry!r}: {dim} is not divisible; change config.mesh or the model size"
                )
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(one, axes, abstract, is_leaf=lambda x: isinstance(x, tuple))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis is the global batch."""
    return NamedSharding(mesh, spec(("batch",)))


def num_batch_shards(mesh: Mesh) -> int:
    """Return into how many parts a global batch is split."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Assemble a global batch on the devices from this process's rows of it."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def from_first_process(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what process 0 gives, in every process: input of a program that all of them run together."""
    if jax.process_count() == 1:
        return batch
    return multihost_utils.broadcast_one_to_all(batch)


def max_over_processes(mesh: Mesh, value: int) -> jax.Array:
    """Return the largest of the values that all processes give, as a device scalar: nothing waits until it is read."""
    spread = NamedSharding(mesh, PartitionSpec(MESH_AXES))
    array = jax.make_array_from_callback((mesh.size,), spread, lambda _: np.full(1, value, np.int32))
    return _max(mesh)(array)


@functools.cache
def _max(mesh: Mesh):
    return jax.jit(jnp.max, out_shardings=replicated(mesh))


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Run on this process's first device what takes no part in the mesh in use: a small network beside a large one."""
    with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
        yield


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Pin the sharding of an activation to its logical axes (nothing outside a mesh)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))
