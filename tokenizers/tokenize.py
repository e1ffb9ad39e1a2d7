"""`lumos tokenize`: clips -> ArrayRecord shards of token grids, captions and ids.

The work is cut into shards of consecutive clips before anything is encoded; shard k belongs to process k mod P. A
shard appears under its name only when it is complete, so a killed run continues with the shards that are missing,
and a finished one has nothing to do. `plan.json` pins what is being made: another tokenizer, other clips or other captions
in the same folder are refused. What is left out of a shard is listed beside it. `manifest.json` is written when every
shard is there.
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
from lumos.data.buckets import Bucket, assign_all, plan_buckets
from lumos.data.index import fingerprint
from lumos.data.rates import common_rate
from lumos.data.records import RecordSource, RecordWriter
from lumos.data.sources import Source, open_sources
from lumos.errors import UserError
from lumos.tokenizers import token_plan
from lumos.tokenizers.pretrained import Tokenizer

_log = logging.getLogger(__name__)

_MAX_FAILURES = 8  # clips: a shard of so many or more of which none can be read has a systematic fault


@dataclasses.dataclass(frozen=True)
class _Item:
    """One clip to encode: part `where` in [0, 1] of an entry of source `number`."""

    source: Source
    number: int
    index: int
    where: float
    bucket: Bucket

    @property
    def row(self) -> dict[str, Any]:
        """What the manifest says of the clip; {} where there is none."""
        facts = self.source.facts
        return facts[self.index] if len(facts) == len(self.source.sizes) else {}


_Shard = tuple[Path, list[_Item]]


@dataclasses.dataclass
class _Split:
    """The windows to encode of a split; of `num_clips` in all, `num_short` are too short for every bucket."""

    sources: list[Source]
    shards: list[_Shard]
    num_clips: int
    num_short: int

    @property
    def facts(self) -> list[dict]:
        return [fact for source in self.sources for fact in source.facts]


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

    A clip longer than its bucket becomes several examples that cover it, overlapping where they must. A clip that is too
    short for every bucket, or cannot be read, is left out, named in the log and counted in the manifest: `splits` there has
    for every split {"clips", "encoded", "skipped": {"too_short", "unreadable"}, "windows", "windows_left_out"}. Clips are
    those encoded and those skipped; one counts as encoded when one of its windows is. `fps` there is the clips' rate.

    Raises:
      UserError: a split has no clip that can be encoded, or `out` holds other tokens than these.
    """
    out = Path(out)
    if config.data.source == "tokens":
        raise UserError(
            "config.data.source='tokens': these are tokenized already; give moving_shapes or clips, and their path"
        )
    work = {split: _plan_split(config, split, splits, out, clips_per_shard) for split in splits}
    shards = [shard for part in work.values() for shard in part.shards]
    plan = {
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "config": dataclasses.asdict(tokenizer.config)},
        "codebook_size": tokenizer.codebook_size,
        "grid": tokenizer.token_shape(*config.data.buckets[0]),
        "buckets": config.data.buckets,
        "data": {
            "source": config.data.source,
            "fps": config.data.fps,
            "clips": {split: part.num_clips for split, part in work.items()},
            "fingerprint": {split: fingerprint(part.facts) for split, part in work.items()},
            "identity": _identity(shards),
        },
        "shards": [path.name for path, _ in shards],
    }
    token_plan.pin(out, plan, {split: part.facts for split, part in work.items()})
    _check_files([shard for shard in shards if shard[0].exists()])
    mine = [(path, items) for path, items in shards[process_index::process_count] if not path.exists()]
    with tqdm(total=sum(len(items) for _, items in mine), unit="clip", disable=not sys.stderr.isatty()) as bar:
        for path, items in mine:
            _write_shard(path, items, tokenizer, config, bar)
    if not all(path.exists() for path, _ in shards):
        return plan
    manifest = plan | {
        "fps": common_rate(config.data.path, [source.fps for part in work.values() for source in part.sources]),
        "splits": {split: _count(split, part) for split, part in work.items()},
        "records": len(RecordSource([path for path, _ in shards])),
        "provenance": provenance.describe(config),
    }
    if mine or not (out / "manifest.json").exists():
        token_plan.write_json(out / "manifest.json", manifest)
    return read_manifest(out)


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


def _plan_split(config: Config, split: str, splits: tuple[str, ...], out: Path, clips_per_shard: int) -> _Split:
    """List every window of every clip, bucket by bucket (all clips of a shard have one size where possible)."""
    buckets = plan_buckets(config.data, config.tokenizer)
    sources = [source for source, _ in open_sources(config, split)]
    found, num_short = [], 0
    for number, source in enumerate(sources):
        try:
            bucket_N = assign_all(source.name, source.sizes, buckets)
        except UserError as error:
            others = ",".join(other for other in splits if other != split)
            raise UserError(f"{error}" + (f"; --splits={others} leaves this split out" if others else "")) from error
        num_short += int(np.count_nonzero(bucket_N < 0))
        for index in np.flatnonzero(bucket_N >= 0).tolist():
            bucket, frames = buckets[bucket_N[index]], source.sizes[index][0]
            # As few windows as can cover the clip, spread evenly from its first frame to its last.
            windows = -(-frames // bucket.frames)
            for w in range(windows):
                found.append((bucket_N[index], _Item(source, number, index, w / max(windows - 1, 1), bucket)))
    found.sort(key=lambda pair: pair[0])
    items = [item for _, item in found]
    num_shards = -(-len(items) // clips_per_shard)
    names = [out / f"{split}-{k:05d}-of-{num_shards:05d}.array_record" for k in range(num_shards)]
    shards = [(name, items[k * clips_per_shard : (k + 1) * clips_per_shard]) for k, name in enumerate(names)]
    return _Split(sources, shards, sum(len(source.sizes) for source in sources), num_short)


def _identity(shards: list[_Shard]) -> str:
    digest = hashlib.sha256()
    for path, items in shards:
        digest.update(path.name.encode())
        for item in items:
            digest.update(f"{item.number} {item.index} {item.where} {item.source.sizes[item.index]}".encode())
    return digest.hexdigest()[:16]


def _check_files(shards: list[_Shard]) -> None:
    """Compare the files behind finished shards with the manifest, which their tokens are of.

    Their size tells a file that was replaced since it was indexed; one of the same size that is newer than its tokens may
    be a copy or another video, which only a warning can say.
    """
    wanted: dict[str, tuple[dict, float]] = {}
    for path, items in shards:
        left_out, written = {window for window, _ in _left_out(path)}, path.stat().st_mtime
        for item in items:
            if item.row.get("path") and _window(item) not in left_out:
                _, earliest = wanted.get(item.row["path"], (None, written))
                wanted[item.row["path"]] = (item.row, min(earliest, written))
    with ThreadPoolExecutor(32) as pool:  # they wait for the file system, not for the processor
        stats = list(pool.map(_stat, wanted))
    others = [reason for (row, _), stat in zip(wanted.values(), stats) if (reason := _changed(row, stat))]
    if others:
        raise UserError(
            f"{len(others)} of the {len(wanted)} clips that have tokens here are other files now (first {others[0]}); run `lumos data "
            "index` again, then tokenize into another --out"
        )
    newer = [row["path"] for (row, written), stat in zip(wanted.values(), stats) if stat and stat.st_mtime > written]
    if newer:
        _log.warning(
            "%d of %d clips are newer than their tokens (first %s): if they are copies, all is well; if other videos have taken "
            "their places, delete the shards", len(newer), len(wanted), newer[0],
        )  # fmt: skip


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:  # gone: its tokens stay what they are
        return None


def _changed(row: dict[str, Any], stat: os.stat_result | None) -> str:
    """Return how a file differs from what the manifest says of it; "" where it does not, as far as its size tells."""
    if stat is None or row.get("bytes") in (None, stat.st_size):
        return ""
    return f"{row['path']}: {stat.st_size} bytes, {row['bytes']} when it was indexed"


def _write_shard(path: Path, items: list[_Item], tokenizer: Tokenizer, config: Config, bar) -> None:
    size, left_out = config.data.batch_size, []
    with RecordWriter(path) as writer, ThreadPoolExecutor(max(1, config.data.num_threads)) as pool:
        batches = [items[i : i + size] for i in range(0, len(items), size)]
        for batch, loaded in zip(batches, _ahead(pool, batches)):
            left_out += [(item, result) for item, result in zip(batch, loaded) if isinstance(result, str)]
            good = [(item, *result) for item, result in zip(batch, loaded) if not isinstance(result, str)]
            bar.update(len(batch))
            if not good:
                continue
            videos = np.stack([arrays["video"] for _, arrays, _ in good])
            padded = np.concatenate([videos, np.repeat(videos[-1:], size - len(videos), axis=0)])  # one compiled shape
            for (item, _, caption), tokens in zip(good, tokenizer.encode(padded)):
                name = f"{item.source.name}/{item.index}@{item.where:.6f}"
                writer.write({"tokens": tokens.astype(np.uint32), "caption": caption, "id": name})
        failed = {(item.number, item.index) for item, _ in left_out}
        if not writer.num_records and len(failed) >= _MAX_FAILURES:
            raise UserError(f"none of the {len(failed)} clips of {path.name} can be read; the last: {left_out[-1][1]}")
        # Before the shard has its name: one that is there has its list too.
        _list_left_out(path, [(_window(item), reason) for item, reason in left_out])


def _ahead(pool: ThreadPoolExecutor, batches: list[list[_Item]]) -> Iterator[list]:
    """Load batches, one ahead of the one being encoded."""
    futures = [[pool.submit(_load, item) for item in batch] for batch in batches[:1]]
    for k in range(len(batches)):
        if k + 1 < len(batches):
            futures.append([pool.submit(_load, item) for item in batches[k + 1]])
        yield [future.result() for future in futures[k]]
        futures[k] = None


def _load(item: _Item) -> tuple[dict[str, np.ndarray], str] | str:
    """Return what the source loads, or the reason why it cannot."""
    try:
        if item.row.get("path") and (reason := _changed(item.row, _stat(item.row["path"]))):
            raise UserError(f"{reason}; run `lumos data index` again")
        return item.source.load(item.index, item.bucket, item.where)
    except UserError as error:
        _log.warning("left out: %s", error)
        return str(error)


def _window(item: _Item) -> tuple[int, int, float]:
    return item.number, item.index, item.where


def _list_path(shard: Path) -> Path:
    return shard.with_suffix(".left_out.jsonl")


def _list_left_out(shard: Path, windows: list[tuple[tuple[int, int, float], str]]) -> None:
    """Write beside a shard what is not in it, and why; nothing where all is."""
    if not windows:
        _list_path(shard).unlink(missing_ok=True)  # of a run that was killed
        return
    lines = (json.dumps({"window": window, "reason": reason}) + "\n" for window, reason in windows)
    token_plan.write_whole(_list_path(shard), lines)


def _left_out(shard: Path) -> list[tuple[tuple[int, int, float], str]]:
    """Return the windows that a finished shard lacks, and why."""
    if not _list_path(shard).exists():
        return []
    rows = map(json.loads, _list_path(shard).read_text().splitlines())
    return [(tuple(row["window"]), row["reason"]) for row in rows]


def _count(split: str, part: _Split) -> dict[str, Any]:
    """Return what has become of the clips of a split. Raises UserError when none could be read; then none is done."""
    left_out = [(window, reason) for path, _ in part.shards for window, reason in _left_out(path)]
    missing = {window for window, _ in left_out}
    windows = [_window(item) for _, items in part.shards for item in items]
    encoded = len({window[:2] for window in windows if window not in missing})
    if not encoded:
        for path, _ in part.shards:  # so that the next start tries again
            path.unlink(missing_ok=True)
            _list_path(path).unlink(missing_ok=True)
        raise UserError(f"none of the clips of split {split!r} can be read; the last: {left_out[-1][1]}")
    unreadable = part.num_clips - part.num_short - encoded
    _log.info(
        "tokenize: split %s: %d of %d clips in %d shards, %d windows; left out: %d clips too short, %d unreadable, %d windows",
        split, encoded, part.num_clips, len(part.shards), len(windows) - len(left_out), part.num_short, unreadable, len(left_out),
    )  # fmt: skip
    return {
        "clips": part.num_clips,
        "encoded": encoded,
        "skipped": {"too_short": part.num_short, "unreadable": unreadable},
        "windows": len(windows) - len(left_out),
        "windows_left_out": len(left_out),
    }
