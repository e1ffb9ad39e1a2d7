"""Official Cosmos tokenizer tensor names <-> parameters of `lumos.tokenizers.causal_vae`, both ways.

`encoder.down.0.block.1.conv2.0.conv3d.weight` [out, in, 1, 3, 3] is
`encoder/down/0/block/1/conv2/spatial/kernel` [3, 3, in, out].
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import TokenizerConfig
from lumos.errors import UserError
from lumos.model.definition import Definition
from lumos.weights.safetensors_files import SafetensorsFiles

_ARCHIVES = ("autoencoder.jit", "encoder.jit", "decoder.jit")
# Constants that the archives hold beside weights: wavelet filters, FSQ tables.
_BUFFERS = re.compile(
    r".*\b(patcher3d|unpatcher3d|patcher|unpatcher|wavelets|_arange|_levels|_basis|implicit_codebook)\b"
)
# Resampling layers that the network builds at every level, whether it runs them or not.
_RESAMPLING = re.compile(r"(encoder\.down|decoder\.up)\.\d+\.(downsample|upsample)\.")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Return the tensors of safetensors files or TorchScript archives by their official names. Raises UserError."""
    path = Path(path)
    archives = [path] if path.suffix == ".jit" else [path / n for n in _ARCHIVES if (path / n).is_file()]
    if archives and not any(path.glob("*.safetensors")):
        whole = [archive for archive in archives if archive.name == _ARCHIVES[0]]
        tensors = {}
        for archive in whole or archives:
            tensors |= _torchscript(archive)
    else:
        with SafetensorsFiles(path) as files:
            tensors = {name: files.read(name) for name in files.names}
    return {name: tensor for name, tensor in tensors.items() if not _BUFFERS.match(name)}


def _torchscript(archive: Path) -> dict[str, np.ndarray]:
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{archive} is a TorchScript archive and needs torch: pip install 'lumos-video[convert]', or convert it to "
            "safetensors on another machine"
        ) from error
    try:
        state = torch.jit.load(str(archive), map_location="cpu").state_dict()
    except RuntimeError as error:
        raise UserError(f"{archive} cannot be read as a TorchScript archive: {str(error).splitlines()[0]}") from error
    # bfloat16 weights are widened: float32 holds them exactly.
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def fit(config: TokenizerConfig, tensors: Mapping[str, np.ndarray]) -> TokenizerConfig:
    """Return the config with the width of the weights. Raises UserError if they belong to another network."""
    name = "encoder.conv_in.0.conv3d.weight"
    if name not in tensors:
        raise UserError(f"these are not the weights of a Cosmos video tokenizer with a factorised encoder: no {name}")
    width, bands = tensors[name].shape[:2]
    if bands != 3 * config.patch_size**3:
        raise UserError(
            f"{name} takes {bands} bands: the weights are of a network with patch size {round((bands / 3) ** (1 / 3))}, not "
            f"{config.patch_size} (Cosmos-Tokenize1 shares names with Cosmos-0.1, but is another network)"
        )
    return dataclasses.replace(config, channels=int(width))


def official_name(path: tuple[str, ...]) -> str:
    """Return the official name of a parameter."""
    *parts, kind = path
    renamed = {"spatial": "0", "temporal": "1", "space": "0", "time": "1"}
    parts = [renamed.get(part, part) for part in parts]
    is_norm = parts[-1].startswith("norm")
    return ".".join([*parts, "norm" if is_norm else "conv3d", "bias" if kind == "bias" else "weight"])


def load(tensors: Mapping[str, np.ndarray], definition: Definition) -> tuple[Any, dict[str, np.ndarray]]:
    """Return (parameters, unused tensors). Raises UserError if a tensor is missing, unknown or of another shape."""
    wanted = {}

    def leaf(path, abstract):
        names = tuple(key.key for key in path)
        name = official_name(names)
        wanted[name] = abstract
        if name not in tensors:
            raise UserError(f"the checkpoint lacks {name}")
        tensor = _ours(tensors[name]) if names[-1] == "kernel" else tensors[name]
        if tensor.shape != abstract.shape:
            raise UserError(
                f"{name} has shape {list(tensors[name].shape)}; the network takes {list(abstract.shape)} from it"
            )
        return jnp.asarray(tensor, abstract.dtype)

    params = jax.tree_util.tree_map_with_path(leaf, definition.abstract)
    unused = {name: tensor for name, tensor in tensors.items() if name not in wanted}
    unknown = [name for name in unused if not _RESAMPLING.match(name)]
    if unknown:
        raise UserError(f"the checkpoint holds {len(unknown)} tensors of another network: {', '.join(unknown[:3])}")
    return params, unused


def export(params: Any, definition: Definition) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (official name, tensor) of every parameter."""
    for path, _ in jax.tree_util.tree_leaves_with_path(definition.abstract):
        names, leaf = tuple(key.key for key in path), params
        for name in names:
            leaf = leaf[name]
        tensor = np.asarray(leaf)
        yield official_name(names), _theirs(tensor, names) if names[-1] == "kernel" else tensor


def _ours(kernel: np.ndarray) -> np.ndarray:
    """[out, in, t, h, w] -> [h, w, in, out], [t, in, out] or [in, out]."""
    if kernel.ndim != 5:
        raise UserError(f"a convolution kernel has 5 axes, got {list(kernel.shape)}")
    ones = tuple(axis for axis in range(3) if kernel.shape[2 + axis] == 1)
    return np.squeeze(kernel.transpose(2, 3, 4, 1, 0), axis=ones)


def _theirs(kernel: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """Invert `_ours`."""
    time = kernel.shape[0] if kernel.ndim == 3 else 1
    rows, columns = kernel.shape[:2] if kernel.ndim == 4 else (1, 1)
    return kernel.reshape(time, rows, columns, *kernel.shape[-2:]).transpose(4, 3, 0, 1, 2)
