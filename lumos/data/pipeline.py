"""Batches for training and evaluation, as a pure function of (seed, step).

The state of a pipeline is one integer, the step. Every example has a place in an endless stream (a new permutation of
all clips each epoch); batch s is places [s B, (s + 1) B) of it, and process p of P reads the p-th of P equal runs of
those places. So the rows of all processes, put together in order, are the same batch for any number of processes, and
a run can stop at any step and go on elsewhere.

With several buckets a batch holds clips of one bucket. Buckets take turns in a fixed pattern, each as often as its
clips are (a clip in any bucket is seen once per epoch), and single-frame batches take `data.image_fraction` of steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import grain
import numpy as np
from absl import logging

from lumos.config import Config
from lumos.data.buckets import Bucket, assign, plan_buckets
from lumos.data.sources import Source, open_sources
from lumos.data.text import TextTokenizer, instruct
from lumos.errors import UserError

# Consecutive clips that may fail before the fault is taken for a systematic one.
_MAX_FAILURES = 8

Batch = dict[str, np.ndarray]


class Pipeline:
    """An iterator of this process's part of each batch, prepared ahead by threads.

    Attributes:
      step: the step whose batch comes next; all there is to save.
      wait_ms: how long the last batch kept its consumer waiting.
      num_batches: how many there are in all; None in training, where they never end.
      num_clips: distinct clips behind them.
    """

    def __init__(self, dataset: grain.MapDataset, reader: _Reader, *, num_clips: int, step: int, train: bool):
        self._dataset, self._reader = dataset, reader
        self.num_batches = None if train else len(dataset)
        self.num_clips = num_clips
        self.wait_ms = 0.0
        data = reader.config.data
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(data.num_threads, data.prefetch)))
        self.seek(step)

    def __iter__(self) -> Pipeline:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise
        except Exception:
            # Grain has dropped the failed batch from its queue: without this the next call would skip it.
            self.seek(self.step)
            raise
        self.wait_ms = 1000 * (time.perf_counter() - began)
        self.step += 1
        return batch

    def seek(self, step: int) -> None:
        """Make the batch of `step` the next one."""
        self._iterator.set_state({"next_index": step})
        self.step = step

    @property
    def num_replaced(self) -> int:
        """How many clips could not be read so far and were replaced by another."""
        return self._reader.num_replaced

    @property
    def num_truncated(self) -> int:
        """How many captions were longer than `sequence.text_length` so far."""
        return self._reader.text.num_truncated

    def close(self) -> None:
        """Stop the threads; batches prepared ahead are dropped."""
        self._iterator.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def make_pipeline(
    config: Config,
    split: str,
    *,
    process_index: int,
    process_count: int,
    start_step: int = 0,
    train: bool = True,
    divisor: int = 1,
) -> Pipeline:
    """Open the data of a config and return its batches from `start_step` on.

    Of every batch this is part `process_index` of `process_count`; processes that hold the same rows read the same part.
    A batch is a dict: "video" uint8 [B, F, Y, X, 3] (or "tokens" int32 [B, T, H, W]), "text" int32 [B, P] with the
    padding on the left, "text_length" int32 [B], where B is this process's share.

    Args:
      split: for example `config.data.split`, `config.data.eval_split`, `config.evaluate.split`.
      train: shuffle, repeat for ever, cut clips at random times, mix buckets and images. Otherwise: every clip once in
        a fixed order, cut at the centre; what does not fill a last batch of a bucket is left out.
      divisor: what every batch size must be a multiple of beside `process_count` (devices along the batch).

    Raises:
      UserError: the data cannot be opened or do not fit the buckets.
    """
    sources = open_sources(config, split)
    reader = _Reader(config, [source for source, _ in sources], train)
    divisor = int(np.lcm(process_count, divisor))
    build = _training_dataset if train else _evaluation_dataset
    dataset = build(reader, sources, config, divisor, slice(process_index, None, process_count))
    num_clips = sum(len(source.sizes) for source, _ in sources)
    return Pipeline(dataset, reader, num_clips=num_clips, step=start_step, train=train)


@dataclasses.dataclass
class _Group:
    """The clips of one bucket. For each source: (source, clip) index pairs, and its share of all training examples."""

    bucket: Bucket
    clips_N2: list[np.ndarray]
    shares: list[float]


def _group(sources: list[tuple[Source, float]], buckets: list[Bucket]) -> list[_Group]:
    """Assign every clip to a bucket."""
    groups = [_Group(bucket, [], []) for bucket in buckets]
    total_weight = sum(weight for _, weight in sources)
    for number, (source, weight) in enumerate(sources):
        bucket_of = {size: assign(*size, buckets) for size in set(source.sizes)}
        # -1: too short for every bucket
        assigned = np.array([-1 if bucket_of[size] is None else bucket_of[size] for size in source.sizes], np.int32)
        kept = np.count_nonzero(assigned >= 0)
        if not kept:
            shortest = min(bucket.frames for bucket in buckets)
            longest = max((size[0] for size in source.sizes), default=0)
            raise UserError(
                f"{source.name}: no clip fills a bucket: the shortest bucket has {shortest} frames, the longest clip "
                f"{longest} (see config.data.buckets and config.data.fps)"
            )
        if kept < len(assigned):
            logging.warning(
                "%s: %d of %d clips are too short for every bucket", source.name, len(assigned) - kept, len(assigned)
            )
        for index, group in enumerate(groups):
            clips = np.flatnonzero(assigned == index).astype(np.int32)
            group.clips_N2.append(np.stack([np.full_like(clips, number), clips], axis=1))
            group.shares.append(weight / total_weight * len(clips) / kept)
    return [group for group in groups if sum(group.shares)]


def _training_dataset(reader, sources, config: Config, divisor: int, process: slice) -> grain.MapDataset:
    kinds, kind_weights = [], []
    fraction = config.data.image_fraction
    for images, weight in ((False, 1 - fraction), (True, fraction)):
        if weight:
            groups = _group(sources, plan_buckets(config.data, config.tokenizer, images=images, divisor=divisor))
            turns = [sum(group.shares) / group.bucket.batch_size for group in groups]
            batches = [_batch(_stream(reader, group, config.seed, images), group.bucket, process) for group in groups]
            kinds.append(_mix(batches, turns))
            kind_weights.append(weight)
    return _mix(kinds, kind_weights)


def _stream(reader, group: _Group, seed: int, images: bool) -> grain.MapDataset:
    """Return the endless stream of a bucket's examples: every source shuffled anew each epoch, mixed by share."""
    streams, bucket = [], group.bucket
    for number, clips_N2 in enumerate(group.clips_N2):
        if len(clips_N2):
            # Each stream has a seed of its own: grain adds the epoch to it, so neighbours would repeat each other.
            parts = (seed, images, number, bucket.frames, bucket.height, bucket.width)
            stream_seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
            stream = grain.MapDataset.range(len(clips_N2)).seed(stream_seed).shuffle().repeat()
            streams.append(stream.random_map(reader.examples(clips_N2, bucket)))
    return _mix(streams, [share for share in group.shares if share])


def _evaluation_dataset(reader, sources, config: Config, divisor: int, process: slice) -> grain.MapDataset:
    groups = _group(sources, plan_buckets(config.data, config.tokenizer, divisor=divisor))
    lists = [(_interleaved(group.clips_N2), group.bucket) for group in groups]
    full = [(clips_N2, bucket) for clips_N2, bucket in lists if len(clips_N2) >= bucket.batch_size]
    if not full:  # too few for a batch
        clips_N2, bucket = max(lists, key=lambda pair: len(pair[0]))
        size = len(clips_N2) // divisor * divisor or divisor
        if size > len(clips_N2):
            logging.warning("only %d clips to evaluate: repeated, one for each of %d devices", len(clips_N2), divisor)
        full = [(np.resize(clips_N2, (size, 2)), dataclasses.replace(bucket, batch_size=size))]
    batches = []
    for clips_N2, bucket in full:
        whole = len(clips_N2) // bucket.batch_size * bucket.batch_size
        examples = grain.MapDataset.range(whole).random_map(reader.examples(clips_N2, bucket), seed=0)
        batches.append(_batch(examples, bucket, process))
    if len(batches) == 1:
        return batches[0]
    # Whoever reads only the first batches sees all buckets.
    numbered = [np.stack([np.full(len(part), i), np.arange(len(part))], axis=1) for i, part in enumerate(batches)]
    return grain.MapDataset.source(_interleaved(numbered)).map(lambda place: batches[place[0]][int(place[1])])


def _interleaved(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenate along the first axis so that every part is spread evenly over the whole."""
    places = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in parts])
    return np.concatenate(parts)[np.argsort(places, kind="stable")]


def _batch(examples: grain.MapDataset, bucket: Bucket, process: slice) -> grain.MapDataset:
    """Batch by the share of one process: the p-th of every P such runs is what process p reads."""
    return examples.batch(bucket.batch_size // process.step, drop_remainder=True)[process]


def _mix(datasets: list[grain.MapDataset], weights: list[float]) -> grain.MapDataset:
    return grain.MapDataset.mix(datasets, weights) if len(datasets) > 1 else datasets[0]


class _Reader:
    """Turn places in a list of clips into examples."""

    def __init__(self, config: Config, sources: list[Source], train: bool):
        self.config, self._sources, self._train = config, sources, train
        self.text = TextTokenizer(config.text.model)
        self.num_replaced = 0
        self._reported: set[tuple[int, int]] = set()

    def examples(self, clips_N2: np.ndarray, bucket: Bucket) -> Callable[[int, np.random.Generator], Batch]:
        """Return the function (place, rng) -> example for a list of (source, clip) indices and their bucket."""

        def example(place: int, rng: np.random.Generator) -> Batch:
            where = rng.random() if self._train else 0.5
            arrays, caption = self._load(clips_N2, place, bucket, where)
            text_ids, slots = arrays.pop("text_ids", None), self.config.sequence.text_length
            if text_ids is None:
                text_P, length = self.text.encode(instruct(self.config, caption, bucket.latent_THW), slots)
            else:
                text_P, length = self.text.place(text_ids, slots)
            return {**arrays, "text": text_P, "text_length": np.int32(length)}

        return example

    def _load(self, clips_N2: np.ndarray, place: int, bucket: Bucket, where: float) -> tuple[Batch, str]:
        """Load a clip; one that cannot be read gives way to the next, so that a bad file never ends a run."""
        for attempt in range(_MAX_FAILURES):
            source, clip = clips_N2[(place + attempt) % len(clips_N2)].tolist()
            try:
                return self._sources[source].load(clip, bucket, where)
            except UserError as error:
                self.num_replaced += 1
                last = error
                if (source, clip) not in self._reported:
                    self._reported.add((source, clip))
                    logging.warning("skipped: %s", error)
        raise UserError(f"{_MAX_FAILURES} clips in a row cannot be read; the last: {last}")
