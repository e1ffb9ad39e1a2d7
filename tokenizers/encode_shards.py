"""Windows of clips in, shards of tokens out: decoding, encoding and writing overlap, also from one shard to the next.

Clips of the next batches are decoded while one is encoded, and a shard is written while the next one is encoded: the accelerator waits for
nothing but clips that decode more slowly than it encodes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from lumos import files
from lumos.config import Config
from lumos.data.records import RecordWriter
from lumos.data.sources import Captions
from lumos.errors import UserError
from lumos.leases import Lease, Lost
from lumos.sequence import streams
from lumos.tokenizers import left_out
from lumos.tokenizers.windows import Shard, Window

_log = logging.getLogger(__name__)

_MAX_FAILURES = 8  # clips: a shard of so many or more of which none can be read has a systematic fault
_AHEAD = 4  # batches that are decoded before they are encoded

Loaded = tuple[dict[str, np.ndarray], Captions] | str  # what a source loads, or why it cannot


@dataclasses.dataclass
class Job:
    """A shard that this process works on, under a lease that `stack` gives back."""

    shard: Shard
    lease: Lease
    stack: contextlib.ExitStack
    writer: RecordWriter | None = None
    left_out: list[tuple[Window, str]] = dataclasses.field(default_factory=list)
    error: BaseException | None = None

    def write(self, good: list[tuple[Window, dict[str, np.ndarray], Captions]], tokens: np.ndarray) -> None:
        if self.writer is None:
            self.writer = RecordWriter(self.shard.path, own=f".{self.lease.generation}")
        for (item, arrays, captions), tokens_THW in zip(good, tokens):
            name = f"{item.source.name}/{item.index}@{item.where:.6f}"
            record = {"tokens": tokens_THW.astype(np.uint32), "caption": captions, "id": name}
            if not isinstance(captions, str):
                record |= {"caption": captions[0], "captions": json.dumps(captions)}
            self.writer.write(record | {name: x for name, x in arrays.items() if name != "video"})

    def finish(self) -> None:
        """Give the shard its name; nothing where it failed."""
        with self.stack:
            try:
                if self.error:
                    raise self.error
                self.write([], np.empty(0))
                failed = {(item.number, item.index) for item, _ in self.left_out}
                if not self.writer.num_records and len(failed) >= _MAX_FAILURES:
                    reason = f"none of the {len(failed)} clips of {self.shard.path.name} can be read"
                    raise UserError(f"{reason}; the last: {self.left_out[-1][1]}")
                self.lease.check()
                # Before the shard has its name: one that is there has its list too.
                left_out.write(self.shard.path, [(item.key, reason) for item, reason in self.left_out])
                self.writer.close()
            except BaseException as error:
                self.error = error
                if self.writer:
                    self.writer.discard()


@dataclasses.dataclass
class Spent:
    """Seconds of the thread that encodes: in the tokenizer, and waiting for clips."""

    encoding: float = 0.0
    waiting: float = 0.0
    first: float = 0.0  # of the waiting, that for the first batch


def encode_shards(
    jobs: Iterator[Job], tokenizer: Any, config: Config, progress: Callable[[int], Any], spent: Spent | None = None
) -> dict[str, BaseException]:
    """Write the shards of the jobs; return why those failed that did. A shard that another process has taken over is no failure."""
    failures, begun = {}, []
    spent = spent or Spent()
    with (
        ThreadPoolExecutor(max(1, config.data.num_threads)) as loaders,
        ThreadPoolExecutor(1) as stackers,
        ThreadPoolExecutor(1) as writers,
    ):
        try:
            for job, batch, last, loaded in _ahead(jobs, config, loaders, stackers, begun):
                began = time.perf_counter()
                good, videos = loaded.result()
                waited = time.perf_counter() - began
                spent.waiting += waited
                spent.first = spent.first or waited
                job.left_out += [(item, result) for item, result in zip(batch, good) if isinstance(result, str)]
                found = [(item, *result) for item, result in zip(batch, good) if not isinstance(result, str)]
                if found and job.error is None:
                    began = time.perf_counter()
                    tokens = tokenizer.encode(videos)
                    spent.encoding += time.perf_counter() - began
                    writers.submit(_keeping_errors, job, found, tokens)
                progress(len(batch))
                if last:
                    writers.submit(job.finish)
        except BaseException as error:
            for job in begun:
                job.error = job.error or error
            raise
        finally:
            for job in begun:  # those that were left in the middle
                writers.submit(job.finish if job.error else _nothing)
    for job in begun:
        if job.error and not isinstance(job.error, Lost):
            failures[job.shard.path.name] = job.error
    return failures


def _nothing() -> None:
    pass


def _keeping_errors(job: Job, found: list, tokens: np.ndarray) -> None:
    try:
        if job.error is None:
            job.write(found, tokens)
    except BaseException as error:
        job.error = error


def _ahead(
    jobs: Iterator[Job], config: Config, loaders: ThreadPoolExecutor, stackers: ThreadPoolExecutor, begun: list[Job]
) -> Iterator[tuple[Job, list[Window], bool, Future]]:
    """Yield (job, windows of a batch, whether it is the last of the shard, what was loaded), loading those that come next."""
    waiting: collections.deque = collections.deque()
    size, stride = config.data.batch_size, config.tokenizer.temporal_compression
    for job in jobs:
        begun.append(job)
        windows = job.shard.windows
        for start in range(0, len(windows), size):
            batch = windows[start : start + size]
            futures = [loaders.submit(_load, item, config.data.streams, stride) for item in batch]
            waiting.append((job, batch, start + size >= len(windows), stackers.submit(_stacked, futures, size)))
            if len(waiting) > _AHEAD:
                yield waiting.popleft()
    yield from waiting


def _stacked(futures: list[Future], size: int) -> tuple[list[Loaded], np.ndarray | None]:
    """Return what was loaded, and the videos [size, F, Y, X, 3] (of one compiled shape), the last one repeated."""
    loaded = [future.result() for future in futures]
    videos = [result[0]["video"] for result in loaded if not isinstance(result, str)]
    return loaded, np.stack(videos + videos[-1:] * (size - len(videos))) if videos else None


def _load(item: Window, of_frames: tuple[streams.StreamConfig, ...], stride: int) -> Loaded:
    try:
        if item.row.get("path") and (reason := changed(item.row, facts(item.row["path"]))):
            raise UserError(f"{reason}; run `lumos data index` again")
        arrays, captions = item.source.load(item.index, item.bucket, item.where)
        if item.row.get("actions"):
            arrays["actions"] = item.source.actions(item.index, item.bucket, item.where)
        if of_frames:
            if not item.row.get("actions"):
                raise UserError(
                    f"{item.row.get('id', item.source.name)}: the manifest has no actions, which config.data.streams asks for"
                )
            place = item.index, item.bucket, item.where
            columns = {stream.name: item.source.actions(*place, stream.name) for stream in of_frames}
            arrays |= streams.of_clip(of_frames, columns, stride)
        return arrays, captions
    except UserError as error:
        _log.warning("left out: %s", error)
        return str(error)


def facts(path: str) -> tuple[int, float] | None:
    """Return bytes and time of a file; None where it is gone: its tokens stay what they are."""
    try:
        return files.size_and_time(files.path(path))
    except OSError:
        return None


def changed(row: dict[str, Any], facts: tuple[int, float] | None) -> str:
    """Return how a file differs from what the manifest says of it; "" where it does not, as far as its size tells."""
    if facts is None or row.get("bytes") in (None, facts[0]):
        return ""
    return f"{row['path']}: {facts[0]} bytes, {row['bytes']} when it was indexed"
