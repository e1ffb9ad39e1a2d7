"""A release: a folder with everything that a trained model needs, which can be moved, uploaded and downloaded.

    config.json         the run's config; the paths in it are relative to the folder
    model.safetensors   the weights, or model-00001-of-0000N.safetensors with an index
    text.model          the text model, or text.json; none where it is the one that ships with lumos
    tokenizer/          the tokenizer of a transformer, a release of its own
    README.md           the model card
    release.json        what it is, where it comes from, and its files with their sizes

A transformer's tensors have the names of the released Lumos-1 models, and so linear weights are [out, in]; those of a tokenizer
have the names of its modules, and lie as they do in lumos (channels last).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lumos.errors import UserError
from lumos.model.definition import Definition
from lumos.weights import transformer_names
from lumos.weights.safetensors_files import SafetensorsFiles

NAME = "release.json"
TOKENIZER = "tokenizer"  # its folder in the release of a transformer
FORMAT = 1


def is_release(folder: str | Path) -> bool:
    return (Path(folder) / NAME).is_file()


def read_facts(folder: str | Path) -> dict[str, Any]:
    """Return release.json. Raises UserError where it is damaged, or of a later version of lumos."""
    path = Path(folder) / NAME
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read; download it again") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise UserError(f"{path} is not the list of a release; download it again")
    if facts.get("format") != FORMAT:
        raise UserError(f"{path} has format {facts.get('format')!r}, this lumos reads {FORMAT}; install a newer one")
    return facts


def missing(folder: str | Path) -> list[str]:
    """Return a few words for every file of a release that is not there, or not all of it."""
    found = []
    for name, size in read_facts(folder)["files"].items():
        path = Path(folder) / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} of {size} bytes")
    return found


def check(folder: str | Path) -> dict[str, Any]:
    """Return release.json. Raises UserError, naming the first file, where a release is not complete."""
    if problems := missing(folder):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{folder} is not complete: {problems[0]}{more}; download or export it again")
    return read_facts(folder)


def read(folder: str | Path, definition: Definition, places: Any) -> Any:
    """Return the weights of a release, each read straight into its sharding, in the dtype of the definition.

    Raises UserError: a file is missing or cut, or the tensors do not fit config.json.
    """
    facts = check(folder)
    with SafetensorsFiles(folder) as tensors:
        if facts["task"] == "transformer":
            return transformer_names.load(tensors, definition, places)[0]
        return _read_tokenizer(tensors, definition, places)


def tensors_of(task: str, definition: Definition, params: Any, dtype: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, tensor) of the weights of a release, one at a time."""
    if task == "transformer":
        yield from transformer_names.export(params, definition, dtype or None)
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield _dotted(path), np.asarray(leaf).astype(dtype or leaf.dtype, copy=False)


def _read_tokenizer(tensors: SafetensorsFiles, definition: Definition, places: Any) -> Any:
    wanted = {_dotted(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(definition.abstract)}
    problems = [f"tensor {name} is missing" for name in wanted if name not in tensors.names]
    problems += [f"tensor {name} is unknown" for name in tensors.names if name not in wanted]
    problems += [
        f"tensor {name} is {tensors.shape(name)}, config.json wants {shape}"
        for name, shape in wanted.items()
        if not problems and tensors.shape(name) != shape
    ]
    if problems:
        raise UserError(f"the tokenizer of the release does not fit its config.json: {problems[0]}")
    return jax.tree_util.tree_map_with_path(
        lambda path, x, place: jax.device_put(tensors.read(_dotted(path)).astype(x.dtype, copy=False), place),
        definition.abstract,
        places,
    )


def _dotted(path) -> str:
    return ".".join(str(key.key) for key in path)
