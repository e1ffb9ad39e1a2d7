"""Where training clips come from: random-access sources behind one small interface.

`config.data.path` is one path, or several with weights, `first.jsonl=3,second.jsonl=1` (weight 1 when left out): then
each source gives that share of the training clips, whatever its size. `parse_paths` says which names need quotes.

    source          path                                                     a clip is
    moving_shapes   folder prepared by lumos.data.moving_shapes              the generated clip
    clips           manifest written by `lumos data index`                   decoded when needed, kept if memory allows
    tokens          folder written by `lumos tokenize`: manifest.json and    its tokens
                    shards <split>-00000-of-00004.array_record with the
                    records {tokens uint32 [T, H, W], caption, id}
                    sorted by size; {text_ids int32 [P]} if the
                    text was tokenized too
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from absl import logging

from lumos.config import Config
from lumos.data.buckets import Bucket, assign, check_given, plan_buckets
from lumos.data.decoder import read_clip
from lumos.data.index import read_manifest
from lumos.data.rates import common_rate
from lumos.data.records import RecordSource
from lumos.data.video import VideoInfo
from lumos.errors import UserError, refuse_url, warn_once

HELD_OUT = 0.05  # share of a manifest without splits that validation and test get


class Source(Protocol):
    name: str
    # Frames, height, width of every clip, at the target frame rate; of tokens the grid.
    sizes: list[tuple[int, int, int]]
    fps: float  # frames a second of the clips that it loads; 0 = unknown
    # What the clips are, wherever they lie: rows of a manifest (id, caption, ...), or one dict for a set made at once.
    facts: list[dict]

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], str]:
        """Return ({"video": uint8 [F, Y, X, 3]} or {"tokens": int32 [T, H, W]}, caption), cut to the bucket.

        `where` in [0, 1] says which part of a longer clip: 0 its first frames, 1 its last. Tokens are always the first.
        """


def open_sources(config: Config, split: str) -> list[tuple[Source, float]]:
    """Open everything that `data.path` names; return (source, weight) pairs. Raises UserError."""
    opener = {"moving_shapes": MovingShapesSource, "clips": ClipsSource, "tokens": TokensSource}[config.data.source]
    paths = parse_paths(config.data.path)
    if not paths:
        raise UserError(f"config.data.path is empty; data source {config.data.source!r} needs a folder or manifest")
    check_given(config.data)
    return [(opener(config, path, split), weight) for path, weight in paths]


_QUOTED = re.compile(r'\s*"((?:[^"]|"")+)"\s*(?:=([^,]*))?(?:,|\Z)')
_WEIGHTED = re.compile(r"(.*?)(?:=(-?[\d.]+))?", re.DOTALL)


def parse_paths(text: str) -> list[tuple[str, float]]:
    """Split `a=2,b` into [("a", 2.0), ("b", 1.0)].

    Names may hold commas and equal signs: from left to right the longest part that exists as written is one path. A name
    in double quotes (one inside of it doubled) is taken as it stands: `"a,b=2"=3,c`.

    Raises UserError on a weight that is not positive, and on a name that does not exist beside others that do.
    """
    pairs, rest = [], text
    while rest.strip(", "):
        name, weight, rest = _next_path(rest)
        if name is None:
            continue
        if not name:
            raise UserError(f"config.data.path={text!r}: the weight {weight!r} has no name before it")
        refuse_url(name, "config.data.path")
        if weight is not None and not (
            weight.count(".") < 2 and re.fullmatch(r"[\d.]*\d[\d.]*", weight) and float(weight)
        ):
            raise UserError(f"config.data.path: weight {weight!r} of {name!r} must be a positive number")
        pairs.append((name, float(weight or 1)))
    there = [os.path.exists(name) for name, _ in pairs]
    if any(there) and not all(there):
        raise UserError(
            f"config.data.path={text!r}: no file or folder {pairs[there.index(False)][0]!r}. It is read as "
            f"{', '.join(f'{name!r} with weight {weight:g}' for name, weight in pairs)}; a name that holds a comma or ends "
            "like a weight stands in double quotes"
        )
    return pairs


def _next_path(rest: str) -> tuple[str | None, str | None, str]:
    """Return the first name of a `data.path`, its weight as written, and what follows; the name is None between commas."""
    if quoted := _QUOTED.match(rest):
        weight = quoted[2] and quoted[2].strip()
        return quoted[1].replace('""', '"'), weight, rest[quoted.end() :]
    for end in reversed([match.start() for match in re.finditer(r",|\Z", rest)]):
        part = rest[:end]
        for name, weight in ((part, None), (part.strip(), None), _WEIGHTED.fullmatch(part.strip()).groups()):
            if name and os.path.exists(name):
                return name, weight, rest[end + 1 :]
    part, _, rest = rest.partition(",")
    name, weight = _WEIGHTED.fullmatch(part.strip()).groups()
    return (name if part.strip() else None), weight, rest


class MovingShapesSource:
    """The generated clips; their size is fixed when they are prepared, longer clips are cut in time."""

    def __init__(self, config: Config, path: str, split: str):
        # Imported here: TFDS takes a second to import, and only this source needs it.
        from lumos.data.moving_shapes import FPS, open_split

        self.name = f"{path} ({split})"
        self._clips = open_split(path, split)
        frames, height, width, _ = self._clips[0]["video"].shape
        for bucket in config.data.buckets:
            if tuple(bucket[1:]) != (height, width):
                raise UserError(
                    f"{self.name}: its clips are {height}x{width}, config.data.buckets asks for "
                    f"{bucket[1]}x{bucket[2]}; prepare them again or change the buckets"
                )
        self.sizes = [(frames, height, width)] * len(self._clips)
        self.fps, self.facts = FPS, [self._clips.facts]

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], str]:
        clip = self._clips[index]
        first = round(where * (len(clip["video"]) - bucket.frames))
        return {"video": clip["video"][first : first + bucket.frames]}, clip["caption"]


class ClipsSource:
    """Files of a manifest. The first ones that fit `data.cache_gb` are decoded once, whole, and kept; the others are
    decoded whenever they are needed. Which is which depends on the manifest alone, so that batches stay reproducible.
    """

    def __init__(self, config: Config, path: str, split: str):
        self.name = f"{path} ({split})"
        self._fps = config.data.fps
        self.facts = self._rows = _rows_of_split(read_manifest(path), split, path)
        names = ("frames", "duration", "fps", "width", "height")
        self._infos = [VideoInfo(*(row[name] for name in names), rotation=0, codec="") for row in self._rows]
        self.sizes = [(info.frames_at(self._fps), info.height, info.width) for info in self._infos]
        self.fps = self._fps or common_rate(self.name, [info.fps for info in self._infos if info.frames > 1])
        frame_bytes = 3 * max(height * width for _, height, width in config.data.buckets)
        clip_bytes = np.cumsum([frames * frame_bytes for frames, _, _ in self.sizes])
        self._num_kept = int(np.searchsorted(clip_bytes, config.data.cache_gb * 1e9, side="right"))
        self._kept: dict[tuple[int, int, int], np.ndarray] = {}

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], str]:
        path, caption = self._rows[index]["path"], self._rows[index]["caption"]
        first = round(where * (self.sizes[index][0] - bucket.frames))
        if index >= self._num_kept:
            size = {"num_frames": bucket.frames, "height": bucket.height, "width": bucket.width}
            own_fps = self._infos[index].fps
            start = first / (self._fps or own_fps or 1.0)
            return {"video": read_clip(path, start=start, fps=self._fps, own_fps=own_fps, **size)}, caption
        key = (index, bucket.height, bucket.width)
        if key not in self._kept:
            self._kept[key] = read_clip(path, fps=self._fps, height=bucket.height, width=bucket.width)
        video_FYX3 = self._kept[key][first : first + bucket.frames]
        if len(video_FYX3) < bucket.frames:
            raise UserError(f"{path}: only {first + len(video_FYX3)} of {self.sizes[index][0]} frames (cut short)")
        return {"video": video_FYX3}, caption


class TokensSource:
    """Clips that were tokenized before. A shorter bucket takes the first latent frames, and never others.

    The first latent frame of a clip stands for one frame of pixels, each other one for `temporal_compression` of them, coded
    given those before: a cut further back would pass such a frame off as a first one. Clips that reach beyond their bucket
    lose their end, with a warning; tokenize them again with shorter `data.buckets` to use it.
    """

    def __init__(self, config: Config, path: str, split: str):
        self.name = f"{path} ({split})"
        folder = Path(path)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no readable manifest.json; finish `lumos tokenize` first") from error
        vocabulary = config.model.visual_vocab or config.codebook_size
        codebook = manifest.get("codebook_size") or vocabulary
        if codebook > vocabulary:  # a larger vocabulary has room for other tokenizers
            raise UserError(f"{path}: tokens of a codebook of {codebook}, but the config's has {vocabulary} entries")
        shards = sorted(folder.glob(f"{split}-*-of-*.array_record"))
        if not shards:
            found = sorted({shard.name.split("-")[0] for shard in folder.glob("*-*-of-*.array_record")})
            raise UserError(f"{path}: no shards of split {split!r}; there are: {', '.join(found) or 'none'}")
        promised = shards[0].stem.rsplit("-", 1)[-1]
        if promised != f"{len(shards):05d}":
            raise UserError(
                f"{path}: {len(shards)} of {promised} shards of split {split!r}; finish `lumos tokenize` first"
            )
        self._records, self._codebook = RecordSource(shards), codebook
        self.sizes = list(self._shapes())
        self.fps = manifest_fps(manifest)
        self.facts = [manifest]
        self._warn_of_cuts(plan_buckets(config.data, config.tokenizer))

    def _warn_of_cuts(self, buckets: list[Bucket]) -> None:
        cut = {}
        for size, number in collections.Counter(self.sizes).items():
            choice = assign(*size, buckets)
            if choice is not None and size[0] > buckets[choice].frames:
                cut[size[0], buckets[choice].frames] = cut.get((size[0], buckets[choice].frames), 0) + number
        for (frames, used), number in sorted(cut.items()):
            warn_once(
                f"{self.name}: of {number} clips of {frames} latent frames only the first {used} are used, for tokens can be cut at "
                "their end alone; run `lumos tokenize` again with shorter config.data.buckets to use all"
            )

    def _shapes(self) -> Iterator[tuple[int, int, int]]:
        """Yield the shape of every record, reading two of each shard: tokens are written sorted by size."""
        start = 0
        for length in filter(None, self._records.lengths):
            places = range(start, start + length)
            first, last = (self._shape_of(place) for place in (places[0], places[-1]))
            if first and first == last:
                yield from itertools.repeat(first, length)
            else:  # the border between two sizes, or damage, which shows when it is read in training
                known = [shape for shape in map(self._shape_of, places) if shape]
                if not known:
                    raise UserError(f"{self.name}: no record of {length} can be read")
                yield from (self._shape_of(place) or known[0] for place in places)
            start += length

    def _shape_of(self, index: int) -> tuple[int, int, int] | None:
        try:
            return self._read(index)["tokens"].shape
        except UserError as error:
            logging.warning("%s", error)
            return None

    def _read(self, index: int) -> dict:
        record = self._records[index]
        tokens = record.get("tokens")
        if not isinstance(tokens, np.ndarray) or tokens.ndim != 3 or not isinstance(record.get("caption"), str):
            raise UserError(f"{self.name}: record {index} holds no tokens [T, H, W] with a caption")
        if tokens.dtype.kind not in "iu" or tokens.size == 0 or tokens.max() >= self._codebook or tokens.min() < 0:
            raise UserError(f"{self.name}: record {index} holds tokens outside of the codebook of {self._codebook}")
        return record

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], str]:
        del where
        record = self._read(index)
        tokens_THW = record["tokens"][: bucket.latent_THW[0]]
        if tokens_THW.shape != bucket.latent_THW:
            raise UserError(f"{self.name}: tokens {tokens_THW.shape} do not fill the bucket's {bucket.latent_THW}")
        arrays = {"tokens": tokens_THW.astype(np.int32)}
        if "text_ids" in record:  # the text was tokenized with the video
            arrays["text_ids"] = record["text_ids"]
        return arrays, record["caption"]


def manifest_fps(manifest: dict) -> float:
    """Return the frames a second of the clips of a token folder; 0 = unknown. Older manifests say what was asked for."""
    return float(manifest.get("fps") or manifest.get("data", {}).get("fps") or 0)


def _rows_of_split(rows: list[dict], split: str, path: str) -> list[dict]:
    """Pick a split: by its column, else 5 % of the clips (chosen by a hash of the id) are held out from training."""
    if any("split" in row for row in rows):
        chosen = [row for row in rows if row.get("split") == split]
        if not chosen:
            names = sorted({row.get("split", "") for row in rows})
            raise UserError(f"{path}: no clip of split {split!r}; its splits are: {', '.join(names)}")
        return chosen
    chosen = [row for row in rows if _held_out(row["id"]) == (split != "train")]
    if not chosen:
        logging.warning("%s: too few clips to hold any out; split %r takes all %d clips", path, split, len(rows))
        return rows
    return chosen


def _held_out(clip_id: str) -> bool:
    return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:4]) < HELD_OUT * 2**32
