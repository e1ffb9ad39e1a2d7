"""The official pre-tokenised pickles -> the token folders that `lumos train` reads.

A pickle of the released code holds {"token": [ids], "label": [ids or -100], "id": n}: one text + video sequence. Pickles
can run code when they are loaded, so this reader lets none in: no class or function may be named in the file at all, and
what comes out must be lists of integers.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lumos.data.records import RecordWriter
from lumos.errors import UserError
from lumos.interop import lumos1_prompt
from lumos.sequence.vocabulary import Vocabulary

_MAX_BYTES = 1 << 30
_PER_SHARD = 256


class _Unpickler(pickle.Unpickler):
    """Knows containers, numbers and strings; refuses everything that a pickle could import or call."""

    def find_class(self, module: str, name: str):
        raise UserError(f"names {module}.{name}; only lists of integers are allowed")

    def persistent_load(self, pid: Any):
        raise UserError("holds a persistent reference; only lists of integers are allowed")


def read_pickle(path: str | Path) -> np.ndarray:
    """Return the token ids of one official pickle, int64 [L]. Raises UserError on anything but lists of integers."""
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: larger than {_MAX_BYTES} bytes")
        item = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except UserError as error:
        raise UserError(f"{path}: refused: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(f"{path}: not a readable pickle ({type(error).__name__})") from error
    if not isinstance(item, dict) or set(item) - {"token", "label", "id"} or "token" not in item:
        raise UserError(f"{path}: refused: expected a dict with token, label and id")
    tokens, labels = item["token"], item.get("label", item["token"])
    for name, values in (("token", tokens), ("label", labels)):
        if type(values) is not list or not all(type(value) is int for value in values):
            raise UserError(f"{path}: refused: {name} is not a list of integers")
    if len(labels) != len(tokens):
        raise UserError(f"{path}: {len(tokens)} tokens but {len(labels)} labels")
    if tokens and not -(2**31) <= min(tokens) <= max(tokens) < 2**31:
        raise UserError(f"{path}: an id is out of range")
    return np.array(tokens, np.int64)


def convert(
    source: str | Path, out: str | Path, vocabulary: Vocabulary, size_unit: int = 4, *, fingerprint: str | None = None
) -> dict[str, Any]:
    """Write the pickles of a folder (or of a record list, .json or .jsonl) as a token folder; return its manifest.

    Args:
      source: a folder with *.pkl in it or below, or the list that the released code writes: {"file", "len", "id"} each.
      out: folder for shards and manifest, like one written by `lumos tokenize`.
      vocabulary: of the sequences.
      size_unit: latent cells per unit of their size tokens.
      fingerprint: of the tokenizer that made the tokens, if it is known; `lumos train` then checks that it is the one used.

    Raises:
      UserError: a file is not what it should be, or sequences differ in fps or duration (one config serves them all).
    """
    out = Path(out)
    if (out / "manifest.json").exists():
        raise UserError(f"{out} already holds tokens; choose another folder")
    items = [_split(path, vocabulary, size_unit) for path in _paths(Path(source))]
    if not items:
        raise UserError(f"{source}: no .pkl files")
    heads = sorted({item["head"] for item in items})
    if len(heads) > 1:
        raise UserError(
            f"{source}: sequences of several (duration, fps) {heads}; convert each kind into its own folder"
        )
    # Sorted by size, as `lumos tokenize` writes them: the reader finds the sizes by looking at few records.
    items.sort(key=lambda item: (item["record"]["tokens"].shape, item["record"]["id"]))
    num_shards = -(-len(items) // _PER_SHARD)
    names = [f"train-{k:05d}-of-{num_shards:05d}.array_record" for k in range(num_shards)]
    for k, name in enumerate(names):
        with RecordWriter(out / name) as writer:
            for item in items[k * _PER_SHARD : (k + 1) * _PER_SHARD]:
                writer.write(item["record"])
    grids = [item["record"]["tokens"].shape for item in items]
    grid = max(set(grids), key=grids.count)
    duration, fps = heads[0]
    manifest = {
        "tokenizer": {"fingerprint": fingerprint},
        "codebook_size": vocabulary.visual_size,
        "grid": grid,
        "data": {"source": "lumos1-tokens", "fps": fps, "duration": duration, "clips": {"train": len(items)}},
        "shards": names,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _paths(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from sorted(source.rglob("*.pkl"))
        return
    if not source.is_file():
        raise UserError(f"{source}: no such file or folder")
    text = source.read_text()
    rows = json.loads(text) if source.suffix == ".json" else map(json.loads, filter(None, text.splitlines()))
    for row in rows:
        path = Path(row["file"])
        # Lists name files by where they were made; a copied folder keeps them beside the list.
        near = (path, source.parent / path, source.parent / "files" / path.name)
        yield next((candidate for candidate in near if candidate.is_file()), path)


def _split(path: Path, v: Vocabulary, size_unit: int) -> dict[str, Any]:
    """Return the record of one sequence, and its (duration, fps)."""
    ids = read_pickle(path)
    starts = np.flatnonzero(ids == v.image_start)
    try:
        if not len(starts) or starts[0] + 2 >= len(ids):
            raise UserError("no frame in it")
        rows, columns = ((ids[starts[0] + 1 : starts[0] + 3] - v.number_zero) * size_unit).tolist()
        prompt = lumos1_prompt.read(ids, None, (rows, columns), v, size_unit)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    text = prompt.text_BP[0][prompt.text_BP.shape[1] - max(int(prompt.length_B[0]), 0) :]
    tokens = prompt.given_BTHW[0].astype(np.uint32)
    record = {"tokens": tokens, "text_ids": text.astype(np.int32), "caption": "", "id": path.stem}
    return {"record": record, "head": (prompt.duration, prompt.fps)}
