"""Mesh and logical axis rules: the only file that knows the names of mesh axes.

Model code names logical axes ("embed", "heads", ...); `RULES` maps them to the mesh (`replica`, `fsdp`, `context`,
`tensor`). Most of a step is partitioned by XLA from these annotations (`constrain`). Attention, the embedding and the
loss say themselves what moves: `per_device` runs a function on the shards, with the collectives below, which take
logical axes too and do nothing where an axis is not split. Everything is checked before anything is compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lumos.errors import UserError

MESH_AXES = ("replica", "fsdp", "context", "tensor")
Axes = tuple[str | None, ...]
_HOST = "pinned_host"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1 (all that remain)."""

    replica: int = 1  # data parallel across slices or nodes
    fsdp: int = -1  # data parallel with sharded parameters
    context: int = 1  # along the sequence
    tensor: int = 1  # along heads, mlp and vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Logical axis -> mesh axes.

    Parameters shard their "embed" (or output channel) axis over fsdp and their head, mlp or vocabulary axis over tensor;
    batches split over replica and fsdp, sequences over context.
    """

    batch: tuple[str, ...] = ("replica", "fsdp")
    length: tuple[str, ...] = ("context",)
    layers: tuple[str, ...] = ()
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    kv_heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    vocab: tuple[str, ...] = ("tensor",)
    channels: tuple[str, ...] = ("fsdp",)

    def __post_init__(self):
        for name, axes in self.items():
            unknown = [axis for axis in axes if axis not in MESH_AXES]
            if unknown:
                raise UserError(
                    f"sharding rule {name}={axes}: unknown mesh axis {unknown[0]!r}; known: {', '.join(MESH_AXES)}"
                )
            if len(set(axes)) < len(axes):
                raise UserError(f"sharding rule {name}={axes} uses a mesh axis twice")
        for first, second in (("batch", "length"), ("embed", "heads"), ("embed", "mlp"), ("embed", "vocab")):
            both = set(getattr(self, first)) & set(getattr(self, second))
            if both:
                raise UserError(
                    f"sharding rules {first} and {second} both use mesh axis {both.pop()!r}, but they meet in one tensor: "
                    "give them different axes"
                )

    def items(self):
        return ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))

    def mesh_axes(self, axis: str | None) -> tuple[str, ...]:
        """Return the mesh axes of a logical axis. Raises UserError on an unknown name."""
        if axis is not None and not hasattr(self, axis):
            raise UserError(f"unknown logical axis {axis!r}; known: {', '.join(name for name, _ in self.items())}")
        return getattr(self, axis) if axis else ()

    def spec(self, axes: Axes) -> PartitionSpec:
        """Translate logical axis names to a PartitionSpec. Raises UserError if a mesh axis would be used twice."""
        used: set[str] = set()
        entries = []
        for axis in axes:
            mesh_axes = self.mesh_axes(axis)
            if set(mesh_axes) & used:
                raise UserError(f"logical axes {axes} use a mesh axis twice: {mesh_axes}")
            used |= set(mesh_axes)
            entries.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
        return PartitionSpec(*entries)


RULES = Rules()
spec = RULES.spec


def fill(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Return the size of every axis. Raises UserError if they do not multiply to the number of devices."""
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    if list(sizes.values()).count(-1) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise UserError(f"config.mesh {sizes}: sizes are positive, and at most one may be -1")
    known = math.prod(size for size in sizes.values() if size != -1)
    if num_devices % known or (-1 not in sizes.values() and known != num_devices):
        raise UserError(
            f"config.mesh {sizes} does not fit {num_devices} devices: the sizes must multiply to {num_devices} (set one to -1 "
            "to fill it)"
        )
    return {axis: num_devices // known if size == -1 else size for axis, size in sizes.items()}


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Build the mesh. Raises UserError if the axis sizes do not multiply to the number of devices."""
    devices = jax.devices() if devices is None else list(devices)
    grid = _arrange(devices, list(fill(config, len(devices)).values()))
    return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))


def _arrange(devices: list, sizes: list[int]) -> np.ndarray:
    """Lay devices out so that the inner axes use the fast links; between TPU slices only `replica` may run."""
    num_slices = len({getattr(device, "slice_index", None) for device in devices})
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(sizes)  # processes are contiguous: inner axes stay inside a node
    if num_slices > 1:
        if sizes[0] % num_slices:
            raise UserError(
                f"config.mesh.replica={sizes[0]} must be a multiple of the {num_slices} slices: only that axis crosses the "
                f"network between slices; set config.mesh.replica={num_slices}"
            )
        inside = [sizes[0] // num_slices, *sizes[1:]]
        between = [num_slices, 1, 1, 1]
        return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def param_shardings(mesh: Mesh, axes: Any, abstract: Any) -> Any:
    """Return a NamedSharding per parameter. Raises UserError where a dimension does not divide."""

    def one(path, names, leaf):
        partition = spec(names)
        for dim, name in zip(leaf.shape, names):
            parts = num_shards(mesh, name)
            if dim % parts:
                raise UserError(
                    f"parameter {jax.tree_util.keystr(path)} of shape {leaf.shape} cannot be split {parts} ways over mesh axis "
                    f"{'x'.join(RULES.mesh_axes(name))!r}: {dim} is not divisible; change config.mesh or the model size"
                )
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(one, axes, abstract, is_leaf=lambda x: isinstance(x, tuple))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def on_host(place: NamedSharding) -> NamedSharding:
    """Return the same split, in the memory of the hosts."""
    return place.with_memory_kind(_HOST)


def is_on_host(place: NamedSharding) -> bool:
    return place.memory_kind == _HOST


def to_device(tree: Any) -> Any:
    """Inside jit: bring arrays from the memory of the hosts to the devices."""
    return jax.device_put(tree, jax.memory.Space.Device)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis is the global batch."""
    return NamedSharding(mesh, spec(("batch",)))


def num_batch_shards(mesh: Mesh) -> int:
    """Return into how many parts a global batch is split."""
    return num_shards(mesh, "batch")


@functools.cache
def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Return which part of a global batch this process reads, and of how many.

    Processes whose devices split tensors or sequences, but not the batch, read the same part.
    """
    num, rows_of = num_batch_shards(mesh), {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((num,)).items():
        rows_of.setdefault(device.process_index, set()).add(rows.start or 0)
    parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    if len(set(map(len, parts))) > 1 or sum(map(len, parts)) != num:
        raise UserError(
            f"config.mesh: processes would share some rows of a batch and not others ({parts}); make replica times fsdp, or tensor "
            "times context, a multiple of the devices of a process"
        )
    return parts.index(tuple(sorted(rows_of[jax.process_index()]))), len(parts)


def rows_to_split(mesh: Mesh, num: int, branches: int = 1) -> int:
    """Return the smallest batch of at least `num` rows that a mesh splits evenly when every row is there `branches` times."""
    shards = num_batch_shards(mesh)
    each = shards // math.gcd(shards, branches)
    return -(-num // each) * each


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Assemble a global batch on the devices from this process's part of it."""
    sharding, (_, count) = batch_sharding(mesh), batch_part(mesh)

    def put(x):
        return jax.make_array_from_process_local_data(sharding, x, (count * len(x), *x.shape[1:]))

    return {name: put(value) for name, value in batch.items()}


def row_sharding(mesh: Mesh, num: int) -> NamedSharding:
    """Return the sharding of arrays of so many rows: over the batch where that is even, else a copy on every device."""
    return batch_sharding(mesh) if num % num_batch_shards(mesh) == 0 else replicated(mesh)


def put_rows(mesh: Mesh, rows: Any) -> Any:
    """Put arrays that every process has whole on the devices; see `row_sharding`."""
    put = lambda x: jax.make_array_from_callback(x.shape, row_sharding(mesh, len(x)), lambda index: x[index])
    return jax.tree.map(put, rows)


def shared_work(call: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return what `call` makes of rows, one for each, in every process: each computes some of them. Rows are the same in all."""
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return call(rows)
    each = -(-len(rows) // count)
    own = np.minimum(np.arange(index * each, (index + 1) * each), len(rows) - 1)
    made = multihost_utils.process_allgather(call(rows[own]), tiled=True)
    return np.asarray(made)[: len(rows)]


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


def num_shards(mesh: Mesh | jax.sharding.AbstractMesh, axis: str | None) -> int:
    """Return into how many parts a mesh splits a logical axis."""
    return math.prod(mesh.shape[name] for name in RULES.mesh_axes(axis))


def shards(axis: str | None) -> int:
    """Return into how many parts the mesh in use splits a logical axis (1 without a mesh)."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_shards(mesh, axis)


def platform() -> str:
    """Return what a traced computation will run on: the platform of the mesh in use, or the default one."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    kind = getattr(device, "device_kind", "")
    return "tpu" if kind.startswith("TPU") else "gpu" if kind.startswith("NVIDIA") else jax.default_backend()


def axis_of(size: int, axis: str) -> str | None:
    """Return the axis if `size` splits evenly over it, else None: such an activation is replicated along it."""
    return axis if size % shards(axis) == 0 else None


def check_divides(field: str, size: int, axis: str) -> None:
    """Raise UserError unless the mesh in use splits a configured size evenly."""
    if axis_of(size, axis) is None:
        names = "*".join(f"config.mesh.{name}" for name in RULES.mesh_axes(axis))
        raise UserError(f"{field}={size} is not divisible by {names}={shards(axis)}: lower the axis, or change {field}")


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Run on this process's first device what takes no part in the mesh in use: a small network beside a large one."""
    with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
        yield


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Pin the sharding of an activation to its logical axes (nothing outside a mesh)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    axes = tuple(axis and axis_of(size, axis) for size, axis in zip(x.shape, axes, strict=True))
    return jax.lax.with_sharding_constraint(x, spec(axes))


def per_device(function: Callable, in_axes: Any, out_axes: Any) -> Callable:
    """Run `function` on the shards that each device holds of its arguments (as it is, without a mesh).

    `in_axes` and `out_axes` are trees of logical axes (a tuple per array), or PartitionSpecs where a library gives them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def is_axes(x):
        return isinstance(x, PartitionSpec) or (
            isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)
        )

    def to_specs(tree):
        return jax.tree.map(lambda a: a if isinstance(a, PartitionSpec) else spec(a), tree, is_leaf=is_axes)

    return jax.shard_map(function, in_specs=to_specs(in_axes), out_specs=to_specs(out_axes), check_vma=False)


def all_gather(x: jax.Array, axis: str | None, dim: int) -> jax.Array:
    """Inside `per_device`: join the shards of a logical axis along dimension `dim`."""
    return x if shards(axis) == 1 else jax.lax.all_gather(x, RULES.mesh_axes(axis), axis=dim, tiled=True)


def reduce_scatter(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Inside `per_device`: add over a logical axis and keep this device's part of dimension `dim`."""
    if shards(axis) == 1:
        return x
    return jax.lax.psum_scatter(x, RULES.mesh_axes(axis), scatter_dimension=dim, tiled=True)


def all_to_all(x: jax.Array, axis: str, *, split_dim: int, join_dim: int) -> jax.Array:
    """Inside `per_device`: exchange a split of `split_dim` for the whole of `join_dim`."""
    if shards(axis) == 1:
        return x
    return jax.lax.all_to_all(x, RULES.mesh_axes(axis), split_axis=split_dim, concat_axis=join_dim, tiled=True)


def psum(x: Any, *axes: str | None) -> Any:
    """Inside `per_device`: add over logical axes, each mesh axis once."""
    names = _split_axes(axes)
    return jax.lax.psum(x, names) if names else x


def psum_except(x: Any, axes: tuple[str, ...], without: str) -> Any:
    """Inside `per_device`: add over the mesh axes of `axes` that the logical axis `without` does not use."""
    names = tuple(name for name in _split_axes(axes) if name not in RULES.mesh_axes(without))
    return jax.lax.psum(x, names) if names else x


def pmax(x: jax.Array, axis: str) -> jax.Array:
    """Inside `per_device`: the maximum over a logical axis."""
    return x if shards(axis) == 1 else jax.lax.pmax(x, RULES.mesh_axes(axis))


def shard_index(axis: str) -> jax.Array | int:
    """Inside `per_device`: which part of a logical axis this device holds."""
    return 0 if shards(axis) == 1 else jax.lax.axis_index(RULES.mesh_axes(axis))


def _split_axes(axes) -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    names = dict.fromkeys(name for axis in axes for name in RULES.mesh_axes(axis))
    return tuple(name for name in names if mesh.shape[name] > 1)
