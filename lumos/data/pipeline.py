"""Batches for training and evaluation, as a pure function of (seed, step).

The state of a pipeline is one integer, the step. Every example has a place in an endless stream (a new permutation of
all clips each epoch); batch s is places [s B, (s + 1) B) of it, and process p of P reads the p-th of P equal runs of
those places. So the rows of all processes, put together in order, are the same batch for any number of processes, and
a run can stop at any step and go on elsewhere. What a step means is the plan (order.py); when a run goes on with
another one, the streams go on at the examples they had come to.

With several buckets a batch holds clips of one bucket. Buckets take turns in a fixed pattern, each as often as its
clips are (a clip in any bucket is seen once per epoch), and single-frame batches take `data.image_fraction` of steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import logging

from lumos.config import Config
from lumos.data import captions, order
from lumos.data.buckets import Bucket, plan_buckets
from lumos.data.rates import UNKNOWN, common_rate
from lumos.data.read_ahead import ReadAhead
from lumos.data.sources import Captions, Source, open_sources
from lumos.data.text import TextTokenizer, instruct
from lumos.errors import UserError

# Consecutive clips that may fail before the fault is taken for a systematic one.
_MAX_FAILURES = 8

Batch = dict[str, np.ndarray]


class Pipeline:
    """An iterator of this process's part of each batch, prepared ahead by threads.

    Attributes:
      step: the step whose batch comes next.
      plan: what the steps of training mean (order.py); with `step`, all there is to save. None in evaluation.
      wait_ms: how long the last batch kept its consumer waiting.
      num_batches: how many there are in all; None in training, where they never end.
      num_clips: distinct clips behind them.
    """

    def __init__(
        self,
        make: Callable[[_Examples], grain.MapDataset],
        reader: _Reader,
        *,
        step: int,
        plan: order.Plan | None,
    ):
        dataset, self._reader, self.plan = make(reader.examples), reader, plan
        self.num_batches = len(dataset) if plan is None else None
        self.num_clips = sum(len(source.sizes) for source in reader.sources)
        self.wait_ms = 0.0
        data = reader.config.data
        self._ahead = None
        if room := sum(getattr(source, "room", 0) for source in reader.sources):
            clips, first = make(_clips), plan["first"] if plan else 0
            fetch = lambda number, found: reader.sources[number].fetch(found.tolist())
            self._ahead = ReadAhead(lambda step: clips[step - first], fetch, room, step)
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
        if self._ahead:
            self._ahead.move_to(self.step)
        return batch

    def seek(self, step: int) -> None:
        """Make the batch of `step` the next one."""
        self._iterator.set_state({"next_index": step - (self.plan["first"] if self.plan else 0)})
        self.step = step
        if self._ahead:
            self._ahead.move_to(step)

    @property
    def video_fps(self) -> float:
        """Frames a second at which videos of these clips are written."""
        config = self._reader.config
        return config.generate.fps or common_rate(config.data.path, [s.fps for s in self._reader.sources]) or UNKNOWN

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
        if self._ahead:
            self._ahead.close()

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
    saved: dict[str, Any] | None = None,
    train: bool = True,
    divisor: int = 1,
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Pipeline:
    """Open the data of a config and return its batches from `start_step` on.

    Of every batch this is part `process_index` of `process_count`; processes that hold the same rows read the same part.
    A batch is a dict: "video" uint8 [B, F, Y, X, 3] (or "tokens" int32 [B, T, H, W]), "text" int32 [B, P] with the
    padding on the left, "text_length" int32 [B], where B is this process's share.

    Args:
      split: for example `config.data.split`, `config.data.eval_split`, `config.evaluate.split`.
      saved: of the run that has come to `start_step`: its "data_plan", or of older checkpoints the "config". Where the
        plan of this config is another one, the log says so and every stream goes on at its own example.
      train: shuffle, repeat for ever, cut clips at random times, mix buckets and images. Otherwise: every clip once in
        a fixed order, cut at the centre; what does not fill a last batch of a bucket is left out.
      divisor: what every batch size must be a multiple of beside `process_count` (devices along the batch).
      encode: the tokenizer of a run on tokens with clips in pixels beside them, uint8 [B, F, Y, X, 3] -> int32 [B, T, H, W].

    Raises:
      UserError: the data cannot be opened or do not fit the buckets.
    """
    sources = open_sources(config, split)
    reader = _Reader(config, [source for source, _ in sources], train, encode)
    divisor = int(np.lcm(process_count, divisor))
    process = slice(process_index, None, process_count)
    if not train:
        make = lambda examples_of: _evaluation_dataset(examples_of, sources, config, divisor, process)
        return Pipeline(make, reader, step=start_step, plan=None)
    kinds = order.group_kinds(sources, config.data, config.tokenizer, divisor)
    plan = order.make_plan(sources, config.seed, kinds)
    before = (saved or {}).get("data_plan")
    if before is None and start_step and "config" in (saved or {}):
        before = order.plan_of_config(sources, saved["config"], config.data)
    if before is not None:
        plan = order.continue_plan(plan, before, start_step)
    make = lambda examples_of: _training_dataset(examples_of, kinds, plan, process)
    return Pipeline(make, reader, step=start_step, plan=plan)


_Examples = Callable[[np.ndarray, Bucket], Callable[[int, np.random.Generator], Any]]


def _clips(clips_N2: np.ndarray, bucket: Bucket) -> Callable[[int, np.random.Generator], np.ndarray]:
    """Give, in the place of an example, which clip it is made of."""
    del bucket
    return lambda place, rng: clips_N2[place]


def _training_dataset(
    examples_of: _Examples, kinds: list[tuple[bool, float, list[order.Group]]], plan: order.Plan, process: slice
) -> grain.MapDataset:
    datasets = []
    for (images, _, groups), kind in zip(kinds, plan["kinds"]):
        batches = []
        for group, bucket in zip(groups, kind["buckets"]):
            examples = _stream(examples_of, group, plan["seed"], images, bucket["streams"])
            batches.append(_batch(examples, group.bucket, process))
        datasets.append(_mix(batches, order.turns(kind)))
    return _mix(datasets, [kind["weight"] for kind in plan["kinds"]])


def _stream(
    examples_of: _Examples, group: order.Group, seed: int, images: bool, streams: list[dict]
) -> grain.MapDataset:
    """Return the endless stream of a bucket's examples: every source shuffled anew each epoch, mixed by share."""
    parts, bucket = [], group.bucket
    for stream in streams:
        number, clips_N2 = stream["source"], group.clips_N2[stream["source"]]
        # Each stream has a seed of its own: grain adds the epoch to it, so neighbours would repeat each other.
        key = (seed, images, number, *bucket.key)
        stream_seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        part = grain.MapDataset.range(len(clips_N2)).seed(stream_seed).shuffle().repeat()
        part = part.random_map(examples_of(clips_N2, bucket))
        # Behind the random map: an example keeps its cut, whatever came before it.
        parts.append(part[stream["start"] :] if stream["start"] else part)
    return _mix(parts, [stream["share"] for stream in streams])


def _evaluation_dataset(
    examples_of: _Examples, sources, config: Config, divisor: int, process: slice
) -> grain.MapDataset:
    elsewhere = config.data.image_fraction > 0
    buckets = plan_buckets(config.data, config.tokenizer, divisor=divisor)
    groups = order.group(sources, buckets, images_elsewhere=elsewhere)
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
        examples = grain.MapDataset.range(whole).random_map(examples_of(clips_N2, bucket), seed=0)
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

    def __init__(
        self,
        config: Config,
        sources: list[Source],
        train: bool,
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.config, self.sources, self._train, self._encode = config, sources, train, encode
        self.text = TextTokenizer(config.text.model)
        self.num_replaced = 0
        self._reported: set[tuple[int, int]] = set()

    def examples(self, clips_N2: np.ndarray, bucket: Bucket) -> Callable[[int, np.random.Generator], Batch]:
        """Return the function (place, rng) -> example for a list of (source, clip) indices and their bucket."""

        def example(place: int, rng: np.random.Generator) -> Batch:
            where = rng.random() if self._train else 0.5
            arrays, found = self._load(clips_N2, place, bucket, where)
            if (
                "video" in arrays and self.config.data.source == "tokens"
            ):  # of encoded_clips.py, which begin with a first frame
                tokens_THW = self._encode(arrays.pop("video")[None])[0]
                arrays |= {"tokens": tokens_THW} | ({"start": np.int32(0)} if self.config.data.windows else {})
            caption = captions.draw(found, rng if self._train else None, self.config.data.caption_length_power)
            text_ids, slots = arrays.pop("text_ids", None), self.config.sequence.text_length
            if text_ids is None:
                text_P, length = self.text.encode(instruct(self.config, caption, bucket.latent_THW), slots)
            else:
                text_P, length = self.text.place(text_ids, slots)
            return {**arrays, "text": text_P, "text_length": np.int32(length)}

        return example

    def _load(self, clips_N2: np.ndarray, place: int, bucket: Bucket, where: float) -> tuple[Batch, Captions]:
        """Load a clip; one that cannot be read gives way to the next, so that a bad file never ends a run."""
        for attempt in range(_MAX_FAILURES):
            source, clip = clips_N2[(place + attempt) % len(clips_N2)].tolist()
            try:
                return self.sources[source].load(clip, bucket, where)
            except UserError as error:
                self.num_replaced += 1
                last = error
                if (source, clip) not in self._reported:
                    self._reported.add((source, clip))
                    logging.warning("skipped: %s", error)
        raise UserError(f"{_MAX_FAILURES} clips in a row cannot be read; the last: {last}")
