"""`lumos tokenize`: clips -> ArrayRecord shards of token grids, captions and ids.

The work is cut into shards of consecutive clips before anything is encoded; shard k belongs to process k mod P. A
shard appears under its name only when it is complete, so a killed run continues with the shards that are missing,
and a finished one has nothing to do. `plan.json` pins what is being made: another tokenizer or other data in the same
folder is refused. `manifest.json` is written when every shard is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lumos import provenance
from lumos.config import Config
from lumos.data.buckets import Bucket, assign, plan_buckets
from lumos.data.records import RecordSource, RecordWriter
from lumos.data.sources import Source, open_sources
from lumos.errors import UserError
from lumos.tokenizers.pretrained import Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Item:
    """One clip to encode: part `where` in [0, 1] of a source's entry."""

    source: Source
    index: int
    where: float
    bucket: Bucket


def tokenize(
    config: Config,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    splits: tuple[str, ...] = ("train", "validation"),
    clips_per_shard: int = 256,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, Any]:
    """Encode the clips of `config.data` and return the manifest (or the plan, while other processes still work).

    A clip longer than its bucket becomes several examples that cover it. A clip that cannot be read is left out,
    counted and named in the log.
    """
    out = Path(out)
    shards: list[tuple[Path, list[_Item]]] = []
    counts = {}
    for split in splits:
        items = list(_items(config, split))
        num_shards = max(1, -(-len(items) // clips_per_shard))
        counts[split] = len(items)
        for k in range(num_shards):
            name = f"{split}-{k:05d}-of-{num_shards:05d}.array_record"
            shards.append((out / name, items[k * clips_per_shard : (k + 1) * clips_per_shard]))
    plan = {
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "config": dataclasses.asdict(tokenizer.config)},
        "codebook_size": tokenizer.codebook_size,
        "grid": tokenizer.latent_shape(*config.data.buckets[0]),
        "buckets": config.data.buckets,
        "data": {"source": config.data.source, "fps": config.data.fps, "clips": counts, "identity": _identity(shards)},
        "shards": [path.name for path, _ in shards],
    }
    _check_plan(out, plan)
    mine = [(path, items) for path, items in shards[process_index::process_count] if not path.exists()]
    with tqdm(total=sum(len(items) for _, items in mine), unit="clip", disable=not sys.stderr.isatty()) as bar:
        for path, items in mine:
            _write_shard(path, items, tokenizer, config, bar)
    if all(path.exists() for path, _ in shards):
        num = len(RecordSource([path for path, _ in shards]))
        _write_json(out / "manifest.json", plan | {"records": num, "provenance": provenance.describe(config)})
        left_out = sum(counts.values()) - num
        _log.info("tokenize: %d clips in %d shards in %s, %d left out", num, len(shards), out, left_out)
    return plan


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a finished token folder. Raises UserError if it is missing or unfinished."""
    path = Path(folder) / "manifest.json"
    if not path.exists():
        state = (
            "is unfinished; run `lumos tokenize` again to complete it"
            if (Path(folder) / "plan.json").exists()
            else "has no manifest.json"
        )
        raise UserError(f"{folder} {state}")
    return json.loads(path.read_text())


def _items(config: Config, split: str) -> Iterator[_Item]:
    """List every window of every clip, bucket by bucket (all clips of a shard have one size where possible)."""
    buckets = plan_buckets(config.data, config.tokenizer)
    found = []
    for source, _ in open_sources(config, split):
        for index, size in enumerate(source.sizes):
            choice = assign(*size, buckets)
            if choice is None:
                continue
            windows = max(1, size[0] // buckets[choice].frames)
            for w in range(windows):
                where = w / (windows - 1) if windows > 1 else 0.5
                found.append((choice, _Item(source, index, where, buckets[choice])))
    found.sort(key=lambda pair: pair[0])
    yield from (item for _, item in found)


def _identity(shards: list[tuple[Path, list[_Item]]]) -> str:
    digest = hashlib.sha256()
    for path, items in shards:
        digest.update(path.name.encode())
        for item in items:
            digest.update(f"{item.source.name} {item.index} {item.where} {item.source.sizes[item.index]}".encode())
    return digest.hexdigest()[:16]


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "plan.json"
    wanted = json.loads(json.dumps(plan))
    if not path.exists():
        _write_json(path, plan)
        return
    found = json.loads(path.read_text())
    if found != wanted:
        different = [key for key in wanted if found.get(key) != wanted[key]]
        raise UserError(
            f"{out} holds other tokens (different {', '.join(different)}); choose another --out or delete it"
        )


def _write_shard(path: Path, items: list[_Item], tokenizer: Tokenizer, config: Config, bar) -> None:
    size = config.data.batch_size
    with RecordWriter(path) as writer, ThreadPoolExecutor(config.data.num_threads) as pool:
        batches = [items[i : i + size] for i in range(0, len(items), size)]
        for batch, loaded in zip(batches, _ahead(pool, batches)):
            good = [(item, *result) for item, result in zip(batch, loaded) if result is not None]
            if not good:
                continue
            videos = np.stack([arrays["video"] for _, arrays, _ in good])
            padded = np.concatenate([videos, np.repeat(videos[-1:], size - len(videos), axis=0)])  # one compiled shape
            for (item, _, caption), tokens in zip(good, tokenizer.encode(padded)):
                name = f"{item.source.name}/{item.index}@{item.where:.4f}"
                writer.write({"tokens": tokens.astype(np.uint32), "caption": caption, "id": name})
            bar.update(len(batch))


def _ahead(pool: ThreadPoolExecutor, batches: list[list[_Item]]) -> Iterator[list]:
    """Load batches, one ahead of the one being encoded."""
    futures = [[pool.submit(_load, item) for item in batch] for batch in batches[:1]]
    for k in range(len(batches)):
        if k + 1 < len(batches):
            futures.append([pool.submit(_load, item) for item in batches[k + 1]])
        yield [future.result() for future in futures[k]]
        futures[k] = None


def _load(item: _Item):
    try:
        return item.source.load(item.index, item.bucket, item.where)
    except UserError as error:
        _log.warning("left out: %s", error)
        return None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)
