"""`lumos tokenize`: clips -> ArrayRecord shards of token grids, captions and ids.

The work is cut into shards of consecutive clips before anything is encoded. Processes that are started with the same command share the shards
through leases (lumos/leases.py), and may join, die and come back at any time; of the processes of one distributed run, shard k belongs to
process k mod P. A shard appears under its name only when it is complete, so a killed run continues with the shards that are missing,
and a finished one has nothing to do. One that fails because of a file system or a bucket is tried again. `plan.json` pins what is being made: another tokenizer, other clips or other captions
in the same folder are refused. What is left out of a shard is listed beside it. `manifest.json` is written when every
shard is there.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lumos import files, provenance
from lumos.config import Config
from lumos.data.manifest import fingerprint
from lumos.data.rates import common_rate
from lumos.data.records import RecordSource
from lumos.errors import UserError
from lumos.leases import Leases
from lumos.tokenizers import left_out, token_plan
from lumos.tokenizers.encode_shards import Job, changed, encode_shards, facts
from lumos.tokenizers.pretrained import Tokenizer
from lumos.tokenizers.windows import Shard, Split, plan_split

_log = logging.getLogger(__name__)

_POLL = 1.0  # seconds between looks for shards that others may leave
_MAX_TRIES = 3  # of a shard that fails, which is no fault of its clips


def tokenize(
    config: Config,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    splits: tuple[str, ...] = (),
    clips_per_shard: int = 256,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, Any]:
    """Encode the clips of `config.data` and return the manifest (or the plan, while other processes still work).

    A clip longer than its bucket becomes several examples that cover it, overlapping where they must. A clip that is too
    short for every bucket, or cannot be read, is left out, named in the log and counted in the manifest: `splits` there has
    for every split {"clips", "encoded", "skipped": {"too_short", "unreadable"}, "windows", "windows_left_out"}. Clips are
    those encoded and those skipped; one counts as encoded when one of its windows is. `fps` there is the clips' rate.
    Without `splits` they are those of training and of its evaluations, `config.data.split` and `eval_split`.

    Raises:
      UserError: a split has no clip that can be encoded, or `out` holds other tokens than these.
    """
    out = files.path(out)
    if config.data.source == "tokens":
        raise UserError(
            "config.data.source='tokens': these are tokenized already; give moving_shapes or clips, and their path"
        )
    splits = splits or tuple(dict.fromkeys((config.data.split, config.data.eval_split)))
    work = {split: plan_split(config, split, splits) for split in splits}
    of_split = {split: part.shards(out, split, clips_per_shard) for split, part in work.items()}
    shards = [shard for found in of_split.values() for shard in found]
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
        "shards": [shard.path.name for shard in shards],
    }
    if config.data.streams:
        plan["streams"] = [dataclasses.asdict(stream) for stream in config.data.streams]
    token_plan.pin(out, plan, {split: part.facts for split, part in work.items()})
    missing = {id(shard) for shard in _missing(shards, out)}
    _check_files([shard for shard in shards if id(shard) not in missing])
    mine = _work(shards[process_index::process_count], out, tokenizer, config)
    if _missing(shards, out):
        return plan
    records = RecordSource([shard.path for shard in shards])
    manifest = plan | {
        "fps": common_rate(config.data.path, [source.fps for part in work.values() for source in part.sources]),
        "splits": {split: _count(split, part, of_split[split]) for split, part in work.items()},
        "records": len(records),
        "provenance": provenance.describe(config),
    }
    if config.data.streams:
        tokens = [records[0][f"stream_{i}"].shape[1] for i in range(len(config.data.streams))]
        manifest["streams"] = [stream | {"tokens": number} for stream, number in zip(plan["streams"], tokens)]
    if mine or not (out / "manifest.json").exists():
        token_plan.write_json(out / "manifest.json", manifest)
        files.remove_tree(out / "leases")
    return read_manifest(out)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a finished token folder. Raises UserError if it is missing or unfinished."""
    folder = files.path(folder)
    path = folder / "manifest.json"
    if not path.exists():
        state = (
            "is unfinished; run `lumos tokenize` again to complete it"
            if (folder / "plan.json").exists()
            else "has no manifest.json"
        )
        raise UserError(f"{folder} {state}")
    return json.loads(files.read_text(path))


def _identity(shards: list[Shard]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(shard.path.name.encode())
        for window in shard.windows:
            size = tuple(window.source.sizes[window.index].tolist())
            digest.update(f"{window.number} {window.index} {window.where} {size}".encode())
    return digest.hexdigest()[:16]


def _check_files(shards: list[Shard]) -> None:
    """Compare the files behind finished shards with the manifest, which their tokens are of.

    Their size tells a file that was replaced since it was indexed; one of the same size that is newer than its tokens may
    be a copy or another video, which only a warning can say.
    """
    checked = {}  # for each split and source which clips are done: a clip may have windows in several shards
    others, newer = [], []
    with ThreadPoolExecutor(32) as pool:  # they wait for the file system, not for the processor
        for written, shard in sorted(
            ((files.size_and_time(shard.path)[1], shard) for shard in shards), key=lambda pair: pair[0]
        ):
            lacks, rows = {key for key, _ in left_out.read(shard.path)}, []
            for window in shard.windows:
                key = id(shard.split), window.number
                done_N = checked.setdefault(key, np.zeros(len(window.source.sizes), bool))
                if not done_N[window.index] and window.row.get("path") and window.key not in lacks:
                    done_N[window.index] = True
                    rows.append(window.row)
            for row, found in zip(rows, pool.map(facts, [row["path"] for row in rows])):
                others += [reason] if (reason := changed(row, found)) else []
                newer += [row["path"]] if found and found[1] > written else []
    number = sum(np.count_nonzero(done_N) for done_N in checked.values())
    if others:
        raise UserError(
            f"{len(others)} of the {number} clips that have tokens here are other files now (first {others[0]}); run `lumos data "
            "index` again, then tokenize into another --out"
        )
    if newer:
        _log.warning(
            "%d of %d clips are newer than their tokens (first %s): if they are copies, all is well; if other videos have taken "
            "their places, delete the shards", len(newer), number, newer[0],
        )  # fmt: skip


def _work(shards: list[Shard], out: Path, tokenizer: Tokenizer, config: Config) -> list[Shard]:
    """Write the shards that are missing, as far as no other process does, until all are there; return those written here."""
    tries: collections.Counter[str] = collections.Counter()
    left, written = _missing(shards, out), []
    if not left:
        return []
    leases = Leases(out / "leases")
    with tqdm(total=sum(len(shard.places) for shard in left), unit="clip", disable=not sys.stderr.isatty()) as bar:
        while left:
            begun: list[Shard] = []
            failures = encode_shards(_jobs(left, leases, begun), tokenizer, config, bar.update)
            for name, error in failures.items():
                tries[name] += 1
                if isinstance(error, UserError) or not _may_pass(error) or tries[name] == _MAX_TRIES:
                    raise error
                _log.warning("%s failed and is tried again: %s", name, error)
            written += begun
            left = _missing(left, out)
            if left and not begun:  # others work on them, and may die
                time.sleep(_POLL)
    return written


def _missing(shards: list[Shard], out: Path) -> list[Shard]:
    there = {path.name for path in files.find(out, "*.array_record")}
    return [shard for shard in shards if shard.path.name not in there]


def _jobs(shards: list[Shard], leases: Leases, begun: list[Shard]) -> Iterator[Job]:
    """Yield the shards that no other process works on, each when it is asked for."""
    for shard in shards:
        stack = contextlib.ExitStack()
        try:
            lease = stack.enter_context(leases.hold(shard.path.stem))
        except FileNotFoundError:  # another process has finished all
            return
        if lease is None or shard.path.exists():  # it may have been finished before the lease was had
            stack.close()
            continue
        for generation in range(lease.generation if not files.is_remote(shard.path) else 0):  # of processes that died
            shard.path.with_name(f"{shard.path.name}.{generation}.partial").unlink(missing_ok=True)
        begun.append(shard)
        yield Job(shard, lease, stack)


def _may_pass(error: BaseException) -> bool:
    return files.is_of_a_bucket(error) or (isinstance(error, OSError) and error.errno != errno.ENOSPC)


def _count(split: str, part: Split, shards: list[Shard]) -> dict[str, Any]:
    """Return what has become of the clips of a split. Raises UserError when none could be read; then none is done."""
    missing, last = set(), ""
    for shard in shards:
        if lacks := dict(left_out.read(shard.path)):
            missing |= {place for place, window in zip(shard.places, shard.windows) if window.key in lacks}
            last = list(lacks.values())[-1]
    encoded = part.num_encoded(missing)
    if not encoded:
        for shard in shards:  # so that the next start tries again
            shard.path.unlink(missing_ok=True)
            left_out.path_of(shard.path).unlink(missing_ok=True)
        raise UserError(f"none of the clips of split {split!r} can be read; the last: {last}")
    unreadable, windows = part.num_clips - part.num_short - encoded, len(part) - len(missing)
    _log.info(
        "tokenize: split %s: %d of %d clips in %d shards, %d windows; left out: %d clips too short, %d unreadable, %d windows",
        split, encoded, part.num_clips, len(shards), windows, part.num_short, unreadable, len(missing),
    )  # fmt: skip
    return {
        "clips": part.num_clips,
        "encoded": encoded,
        "skipped": {"too_short": part.num_short, "unreadable": unreadable},
        "windows": windows,
        "windows_left_out": len(missing),
    }
