"""Tensor names of the released Lumos-1 models <-> parameters of `lumos.model.transformer`, both ways, shard by shard.

`model.layers.3.self_attn.q_proj.weight` [out, in] is slice 3 of `layers/self_attn/q_proj/kernel` [layers, in, out].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np

from lumos.errors import UserError
from lumos.model.definition import Definition
from lumos.weights.safetensors_files import SafetensorsFiles

# Tensors that a checkpoint may hold and that Lumos-1 does not use: its former image tokenizer, rotary buffers.
_IGNORED = re.compile(r"model\.vqmodel\.|.*\.rotary_emb\.")


def official_name(path: tuple[str, ...]) -> tuple[str, bool]:
    """Return (official name with "{}" for the layer number, whether the tensor is transposed)."""
    names = ["model", *path] if path[0] != "lm_head" else [*path]
    if path == ("embed_tokens",):
        names.append("weight")
    if path[0] == "layers":
        names.insert(2, "{}")
    transposed = path[-1] == "kernel"
    if transposed:
        names[-1] = "weight"
    return ".".join(names), transposed


def _leaves(definition: Definition) -> Iterator[tuple[tuple[str, ...], jax.ShapeDtypeStruct]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(definition.abstract):
        yield tuple(key.key for key in path), leaf


def _tensors(path: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (official name, official shape) of the tensors that a parameter holds, in order."""
    name, transposed = official_name(path)
    one = shape[1:] if path[0] == "layers" else shape
    one = one[::-1] if transposed else one
    if path[-2:-1] in (("q_norm",), ("k_norm",)) and len(one) == 1:
        one = (1, *one)  # [model_parallel_size, head_dim]
    for i in range(shape[0] if path[0] == "layers" else 1):
        yield name.format(i), one


def load(files: SafetensorsFiles, definition: Definition, places: Any) -> tuple[Any, dict[str, str], list[str]]:
    """Read every parameter straight into its sharding.

    Args:
      files: the checkpoint.
      definition: of the transformer; its abstract parameters say the dtype to hold.
      places: a sharding per parameter. Each process reads only the slices of its own devices.

    Returns:
      The parameters, the stored dtype of each tensor used, and the names of tensors that are not used.

    Raises:
      UserError: a tensor is missing, unknown, or of another shape than config.json says.
    """
    wanted = {name: shape for path, leaf in _leaves(definition) for name, shape in _tensors(path, leaf.shape)}
    _check(files, wanted)

    def leaf(path, abstract, place):
        names = [key.key for key in path]
        tensors = [name for name, _ in _tensors(tuple(names), abstract.shape)]
        return jax.make_array_from_callback(
            abstract.shape, place, lambda index: _read(files, tensors, tuple(names), abstract, index)
        )

    params = jax.tree_util.tree_map_with_path(leaf, definition.abstract, places)
    return params, {name: files.dtype(name) for name in wanted}, sorted(set(files.names) - set(wanted))


def _read(files, tensors: list[str], path, abstract, index: tuple[slice, ...]) -> np.ndarray:
    """Return one shard of a parameter. Stacked layers are filled in one by one: no copy of the whole."""
    transposed = official_name(path)[1]

    def one(name, inner):
        if path[-2:-1] in (("q_norm",), ("k_norm",)):
            return files.read(name).reshape(abstract.shape[1:])[inner]
        return files.read(name, inner[::-1]).T if transposed else files.read(name, inner)

    inner = tuple(slice(*part.indices(size)) for part, size in zip(index, abstract.shape))
    if path[0] != "layers":
        return np.ascontiguousarray(one(tensors[0], inner)).astype(abstract.dtype, copy=False)
    layers = range(abstract.shape[0])[inner[0]]
    out = np.empty((len(layers), *(part.stop - part.start for part in inner[1:])), abstract.dtype)
    for row, layer in enumerate(layers):
        out[row] = one(tensors[layer], inner[1:])
    return out


def _check(files: SafetensorsFiles, wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if name not in set(files.names)]
    if missing:
        raise UserError(f"the checkpoint lacks {len(missing)} tensors that config.json asks for: {_some(missing)}")
    unknown = [name for name in files.names if name not in wanted and not _IGNORED.match(name)]
    if unknown:
        raise UserError(
            f"the checkpoint holds {len(unknown)} tensors that config.json does not explain: {_some(unknown)}"
        )
    for name, shape in wanted.items():
        stored = files.shape(name)
        if stored != shape and not (len(shape) == 2 and shape[0] == 1 and stored == shape[1:]):
            raise UserError(f"tensor {name} has shape {list(stored)}, config.json asks for {list(shape)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def export(
    params: Any, definition: Definition, dtypes: Mapping[str, str] | str | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (official name, tensor) of parameters, or of gradients, one at a time.

    `dtypes` is the dtype to cast to, of all tensors or of those it names; others keep that of the parameter.
    """
    flat = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, abstract in _leaves(definition):
        transposed, leaf = official_name(path)[1], flat[path]
        for i, (name, shape) in enumerate(_tensors(path, abstract.shape)):
            tensor = np.asarray(leaf[i] if path[0] == "layers" else leaf)
            tensor = (tensor.T if transposed else tensor).reshape(shape)
            wanted = dtypes if isinstance(dtypes, str) else (dtypes or {}).get(name, tensor.dtype)
            yield name, tensor.astype(wanted, copy=False)
