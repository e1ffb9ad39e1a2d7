"""Reading slices from, and writing, a folder of safetensors files: one file, several, or a sharded index."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lumos.errors import UserError

INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


class SafetensorsFiles:
    """The tensors of a folder (or of one file) by name, read slice by slice. Use as a context manager.

    Attributes:
      names: every tensor name.

    Raises:
      UserError: nothing to read, a file of the index is missing or damaged, or a name occurs twice.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        files = [path] if path.is_file() else _files(path)
        self._stack, self._where = contextlib.ExitStack(), {}
        for file in files:
            try:
                opened = self._stack.enter_context(safe_open(str(file), "np"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} cannot be read as safetensors: {' '.join(str(error).split())}") from error
            for name in opened.keys():
                if name in self._where:
                    raise UserError(f"{path}: tensor {name} is in more than one file")
                self._where[name] = opened
        self.names = sorted(self._where)

    def __enter__(self) -> SafetensorsFiles:
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the stored dtype. Raises UserError if it is not a floating-point one."""
        stored = self._where[name].get_slice(name).get_dtype()
        if stored not in _DTYPES:
            raise UserError(f"tensor {name} is stored as {stored}; weights must be one of {', '.join(_DTYPES)}")
        return _DTYPES[stored]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Return a slice of a tensor; only its bytes are read."""
        return self._where[name].get_slice(name)[index] if index else self._where[name].get_tensor(name)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(f"{index} names files that are not there: {', '.join(missing)}; download them too")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file")
    return files


def write(folder: str | Path, tensors: Iterable[tuple[str, np.ndarray]], *, max_bytes: int = 5_000_000_000) -> None:
    """Write tensors to `model.safetensors`, or to several files of at most `max_bytes` and an index."""
    folder, shard, size, where, total = Path(folder), {}, 0, {}, 0
    folder.mkdir(parents=True, exist_ok=True)
    stale = [*folder.glob("*.safetensors"), *folder.glob(INDEX)]
    if stale:
        raise UserError(f"{folder} already holds weights ({stale[0].name}); choose an empty folder")
    parts: list[Path] = []

    def flush():
        part = folder / f"part-{len(parts)}.partial"
        save_file(shard, str(part), metadata={"format": "pt"})
        part.chmod(0o644)  # it makes files that nobody else can read
        where.update(dict.fromkeys(shard, len(parts)))
        parts.append(part)
        shard.clear()

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            flush()
            size = 0
        shard[name] = np.ascontiguousarray(tensor)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(parts) == 1:
        parts[0].rename(folder / "model.safetensors")
        return
    names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for part, name in zip(parts, names):
        part.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {tensor: names[i] for tensor, i in where.items()}}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
