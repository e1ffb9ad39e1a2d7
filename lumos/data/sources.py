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
                    ... or a manifest, beside such folders               encoded when needed (encoded_clips.py)
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from absl import logging

from lumos import files
from lumos.config import Config
from lumos.data import actions, copies, encoded_clips, media
from lumos.data.buckets import Bucket, assign, check_given, count_sizes, plan_buckets
from lumos.data.decoder import read_clip
from lumos.data.manifest import SUFFIXES, Manifest, Rows, open_manifest
from lumos.data.rates import common_rate
from lumos.data.records import RecordSource
from lumos.data.timeline import frames_at
from lumos.errors import UserError, warn_once

Captions = str | list[str]
HELD_OUT = 0.05  # share of a manifest without splits that validation and test get


class Source(Protocol):
    name: str
    # int32 [N, 3]: frames, height, width of every clip, at the target frame rate; of tokens the grid.
    sizes: np.ndarray
    fps: float  # frames a second of the clips that it loads; 0 = unknown
    # What the clips are, wherever they lie: rows of a manifest (id, caption, ...), or one dict for a set made at once.
    facts: Sequence[dict]

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], Captions]:
        """Return ({"video": uint8 [F, Y, X, 3]} or {"tokens": int32 [T, H, W]}, caption or several), cut to the bucket.

        `where` in [0, 1] says which part of a longer clip: 0 its first frames, 1 its last. Tokens are always the first.
        """


def open_sources(config: Config, split: str) -> list[tuple[Source, float]]:
    """Open everything that `data.path` names; return (source, weight) pairs. Raises UserError."""
    opener = {"moving_shapes": MovingShapesSource, "clips": ClipsSource, "tokens": TokensSource}[config.data.source]
    paths = parse_paths(config.data.path)
    if not paths:
        raise UserError(f"config.data.path is empty; data source {config.data.source!r} needs a folder or manifest")
    check_given(config.data)
    sources: list[tuple[Source, float]] = []
    for path, weight in paths:
        if config.data.source == "tokens" and is_manifest(path):
            clips = ClipsSource(encoded_clips.in_pixels(config), path, split)
            sources.append((encoded_clips.EncodedClips(clips, config.tokenizer), weight))
            continue
        if config.data.source == "clips" and not is_manifest(path):
            raise UserError(
                f"config.data.path: {path} is a folder, not a manifest (.jsonl, .arrow), but config.data.source is 'clips': "
                "`lumos data index` makes manifests of clips; a run on tokens takes both folders of tokens and manifests"
            )
        sources.append((opener(config, path, split), weight))
    return sources


def is_manifest(path: str) -> bool:
    """Return whether a path of `data.path` is a manifest of clips in pixels; else it is a folder."""
    return files.path(path).suffix.lower() in SUFFIXES


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
        files.check_scheme(name, "config.data.path")
        if weight is not None and not (
            weight.count(".") < 2 and re.fullmatch(r"[\d.]*\d[\d.]*", weight) and float(weight)
        ):
            raise UserError(f"config.data.path: weight {weight!r} of {name!r} must be a positive number")
        pairs.append((name, float(weight or 1)))
    there = [files.is_remote(name) or os.path.exists(name) for name, _ in pairs]
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
        self.sizes = np.broadcast_to(np.array([frames, height, width], np.int32), (len(self._clips), 3))
        self.fps, self.facts = FPS, [self._clips.facts]

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], Captions]:
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
        self.facts = self._rows = rows_of_split(open_manifest(path), split)
        self.sizes = sizes_N3 = self._sizes()
        self.fps = self._fps or common_rate(self.name, self._rows.column("fps")[sizes_N3[:, 0] > 1])
        frame_bytes = 3 * max(height * width for _, height, width in config.data.buckets)
        most_frames = int(config.data.cache_gb * 1e9) // frame_bytes
        self._num_kept = int(np.searchsorted(np.cumsum(sizes_N3[:, 0], dtype=np.int64), most_frames, side="right"))
        self._kept: dict[tuple[int, int, int], np.ndarray] = {}
        self._copies, self.room = copies.of_rows(self._rows, int(config.data.cache_gb * 1e9))

    def _sizes(self) -> np.ndarray:
        sizes_N3 = np.empty((len(self._rows), 3), np.int32)
        frames_N = self._rows.column("frames")
        if self._fps:
            frames_N = frames_at(frames_N, self._rows.column("duration"), self._rows.column("fps"), self._fps)
        sizes_N3[:, 0] = np.minimum(frames_N, np.iinfo(np.int32).max)
        del frames_N
        for axis, name in ((1, "height"), (2, "width")):
            sizes_N3[:, axis] = np.minimum(self._rows.column(name), np.iinfo(np.int32).max)
        return sizes_N3

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], Captions]:
        row = self._rows[index]
        clip, caption, begin = media.of_row(row), row.get("captions", row["caption"]), row.get("start", 0.0)
        first = round(where * (int(self.sizes[index][0]) - bucket.frames))
        if index >= self._num_kept:
            size = {"num_frames": bucket.frames, "height": bucket.height, "width": bucket.width}
            own_fps = row["fps"]
            start = begin + first / (self._fps or own_fps or 1.0)
            return {"video": self._read(clip, start=start, fps=self._fps, own_fps=own_fps, **size)}, caption
        key = (index, bucket.height, bucket.width)
        if key not in self._kept:
            whole = {"start": begin, "num_frames": int(self.sizes[index][0])} if "start" in row else {}
            self._kept[key] = self._read(clip, fps=self._fps, height=bucket.height, width=bucket.width, **whole)
        video_FYX3 = self._kept[key][first : first + bucket.frames]
        if len(video_FYX3) < bucket.frames:
            raise UserError(f"{clip}: only {first + len(video_FYX3)} of {self.sizes[index][0]} frames (cut short)")
        return {"video": video_FYX3}, caption

    def fetch(self, indices: Sequence[int]) -> None:
        """Bring clips of a bucket that will be read."""
        decoded = {index for index, _, _ in list(self._kept)}
        clips = (media.of_row(self._rows[index]) for index in indices if index not in decoded)
        self._copies.bring(clip for clip in clips if files.is_remote(media.path_of(clip)))

    def _read(self, clip: str | media.Member, **arguments) -> np.ndarray:
        if self._copies is None or not files.is_remote(media.path_of(clip)):
            return read_clip(clip, **arguments)
        with self._copies.lent(clip) as local:
            return read_clip(local, **arguments)

    def actions(self, index: int, bucket: Bucket, where: float, column: str = "") -> np.ndarray | None:
        """Return the actions of the frames that `load` returns, or another column that comes with them, float32 [F, A]; None where the
        manifest has none. Raises UserError."""
        row = self._rows[index]
        if "actions" not in row:
            return None
        actions_NA = actions.read(row["actions"], column)
        first = round(where * (int(self.sizes[index][0]) - bucket.frames)) + np.arange(bucket.frames)
        frame_F = np.rint(first * row["fps"] / self._fps).astype(int) if self._fps else first
        return actions_NA[np.minimum(frame_F, len(actions_NA) - 1)]


class TokensSource:
    """Clips that were tokenized before. A shorter bucket takes the first latent frames, or with `data.windows` any others.

    The first latent frame of a clip stands for one frame of pixels, each other one for `temporal_compression` of them, coded
    given those before: a cut further back passes such a frame off as a first one, unless the model is told which it is
    (`model.first_frame`). Without windows clips that reach beyond their bucket lose their end, with a warning.
    """

    def __init__(self, config: Config, path: str, split: str):
        self.name = f"{path} ({split})"
        folder = files.path(path)
        try:
            manifest = json.loads(files.read_text(folder / "manifest.json"))
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
        self._records, self._codebook = RecordSource(shards, int(config.data.cache_gb * 1e9)), codebook
        # Latent actions that are learnt beside the transformer are no part of the tokens.
        self._streams = () if config.actions.weight else config.sequence.streams
        self.room = self._records.remote.room if self._records.remote else 0
        self.fetch = self._records.fetch
        self.sizes = self._shapes()
        self.fps = manifest_fps(manifest)
        self.facts = [manifest]
        self._windows = config.data.windows
        if not self._windows:
            self._warn_of_cuts(plan_buckets(config.data, config.tokenizer))

    def _warn_of_cuts(self, buckets: list[Bucket]) -> None:
        cut = {}
        for size, number in count_sizes(self.sizes).items():
            choice = assign(*size, buckets)
            if choice is not None and size[0] > buckets[choice].frames:
                cut[size[0], buckets[choice].frames] = cut.get((size[0], buckets[choice].frames), 0) + number
        for (frames, used), number in sorted(cut.items()):
            warn_once(
                f"{self.name}: of {number} clips of {frames} latent frames only the first {used} are used, for tokens can be cut at "
                "their end alone; set config.data.windows and config.model.first_frame to use all, or run `lumos tokenize` again with shorter config.data.buckets"
            )

    def _shapes(self) -> np.ndarray:
        """Return the shape of every record, int32 [N, 3], reading two of each shard: tokens are written sorted by size."""
        sizes_N3, start = np.empty((len(self._records), 3), np.int32), 0
        ends_S = np.cumsum(self._records.lengths)
        self._records.fetch(
            [place for end, n in zip(ends_S.tolist(), self._records.lengths) if n for place in {end - n, end - 1}]
        )
        for length in filter(None, self._records.lengths):
            places = range(start, start + length)
            first, last = (self._shape_of(place) for place in (places[0], places[-1]))
            if first and first == last:
                sizes_N3[start : start + length] = first
            else:  # the border between two sizes, or damage, which shows when it is read in training
                shapes = [self._shape_of(place) for place in places]
                known = next(filter(None, shapes), None)
                if known is None:
                    raise UserError(f"{self.name}: no record of {length} can be read")
                sizes_N3[start : start + length] = [shape or known for shape in shapes]
            start += length
        return sizes_N3

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

    def load(self, index: int, bucket: Bucket, where: float) -> tuple[dict[str, np.ndarray], Captions]:
        record, num_frames = self._read(index), bucket.latent_THW[0]
        start = 0
        if where < self._windows and num_frames > 1:  # images are first frames
            # Below the share, `where` is uniform in [0, share).
            start = int(where / self._windows * max(len(record["tokens"]) - num_frames + 1, 1))
        tokens_THW = record["tokens"][start : start + num_frames]
        if tokens_THW.shape != bucket.latent_THW:
            raise UserError(f"{self.name}: tokens {tokens_THW.shape} do not fill the bucket's {bucket.latent_THW}")
        arrays = {"tokens": tokens_THW.astype(np.int32)} | self._streams_of(index, record, start, len(tokens_THW))
        if self._windows:
            arrays["start"] = np.int32(start)
        if "text_ids" in record:  # the text was tokenized with the video
            arrays["text_ids"] = record["text_ids"]
        return arrays, json.loads(record["captions"]) if "captions" in record else record["caption"]

    def _streams_of(self, index: int, record: dict, start: int, num_frames: int) -> dict[str, np.ndarray]:
        """Return the codes of the frames from `start` on of each stream beside the video, int32 [T, tokens]."""
        streams = {}
        for i, (size, num) in enumerate(self._streams):
            name, codes_TN = f"stream_{i}", record.get(f"stream_{i}")
            if not isinstance(codes_TN, np.ndarray) or codes_TN.dtype.kind not in "iu" or codes_TN.shape[1:] != (num,):
                raise UserError(
                    f"{self.name}: record {index} holds no {name} [T, {num}] of integers, which config.sequence.streams asks for"
                )
            if len(codes_TN) < start + num_frames or codes_TN.min() < 0 or codes_TN.max() >= size:
                raise UserError(
                    f"{self.name}: {name} of record {index} has {len(codes_TN)} frames with codes up to {codes_TN.max()}; needed are {start + num_frames}, "
                    f"below {size}"
                )
            streams[name] = codes_TN[start : start + num_frames].astype(np.int32)
        return streams


def manifest_fps(manifest: dict) -> float:
    """Return the frames a second of the clips of a token folder; 0 = unknown. Older manifests say what was asked for."""
    return float(manifest.get("fps") or manifest.get("data", {}).get("fps") or 0)


def rows_of_split(manifest: Manifest, split: str) -> Rows:
    """Pick a split: by its column, else 5 % of the clips (chosen by a hash of the id) are held out from training."""
    if (found := manifest.splits()) is not None:
        codes_N, names = found
        chosen_N = np.flatnonzero(codes_N == (names.index(split) if split in names else -2))
        if not len(chosen_N):
            names = sorted({*names, *([""] if (codes_N < 0).any() else [])})
            raise UserError(f"{manifest.path}: no clip of split {split!r}; its splits are: {', '.join(names)}")
    else:
        # Of the first four bytes of the hash. The views and whole numbers copy nothing.
        high = 1 if sys.byteorder == "little" else 0
        held_out_N = manifest.column("hash").view(np.uint32)[high::2] < np.uint32(math.ceil(HELD_OUT * 2**32))
        chosen_N = np.flatnonzero(held_out_N == (split != "train"))
        if not len(chosen_N):
            number = len(manifest)
            logging.warning(
                "%s: too few clips to hold any out; split %r takes all %d clips", manifest.path, split, number
            )
    return Rows(manifest, chosen_N.astype(np.int32) if 0 < len(chosen_N) < len(manifest) else None)
