"""`lumos data check`: looks at every record of a token folder, and draws some of them decoded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from lumos import files
from lumos.data.contact_sheet import contact_sheet
from lumos.data.records import RecordSource
from lumos.errors import UserError, printable
from lumos.tokenizers import left_out
from lumos.tokenizers.tokenize import read_manifest

_NAMED = 20  # problems that are listed; all are counted


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found. problems: the first ones, a line each; num_problems: all."""

    folder: str
    records: int
    shards: int
    codes_used: float  # share of the codebook
    problems: tuple[str, ...]
    num_problems: int
    sheet: Path | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.records} records in {self.shards} shards, {self.codes_used:.1%} of the codes are used"
        ]
        lines += [f"problem: {problem}" for problem in self.problems]
        if self.num_problems > len(self.problems):
            lines.append(f"{self.num_problems - len(self.problems)} more problems")
        return "\n".join([*lines, *([f"decoded clips: {self.sheet}"] if self.sheet else [])])


def check(folder: str, *, tokenizer: Any = None, sheet: str = "", samples: int = 8, seed: int = 0) -> Report:
    """Read every record and compare it with the manifest; with a tokenizer decode some and draw them into the picture `sheet`.

    Raises UserError where the folder is unfinished, or the tokenizer is another one than made it.
    """
    manifest, out = read_manifest(folder), files.path(folder)
    fingerprint = manifest["tokenizer"].get("fingerprint")
    if tokenizer is not None and fingerprint not in (None, tokenizer.fingerprint):
        raise UserError(
            f"{folder} was made by tokenizer {fingerprint}, this one is {tokenizer.fingerprint}; give the right --workdir"
        )
    shards = files.find(out, "*.array_record")
    problems = _differences(manifest, shards)
    source, seen, used = RecordSource(shards), set(), np.zeros(int(manifest["codebook_size"]), bool)
    if len(source) != manifest.get("records", len(source)):
        problems.append(f"{len(source)} records are there, manifest.json says {manifest['records']}")
    for index in range(len(source)):
        if index % 512 == 0:
            source.fetch(range(index, min(index + 512, len(source))))
        try:
            problem = _problem(source[index], used, seen)
        except UserError as error:
            problem = str(error)
        if problem:
            problems.append(f"record {index}: {problem}")
    picture = None
    if tokenizer is not None and sheet:
        picture = _draw(source, tokenizer, Path(sheet), samples, seed)
    listed = tuple(printable(problem) for problem in problems[:_NAMED])
    return Report(str(folder), len(source), len(shards), float(used.mean()), listed, len(problems), picture)


def _differences(manifest: dict[str, Any], shards: list[Path]) -> list[str]:
    there, promised = {shard.name for shard in shards}, set(manifest.get("shards", []))
    problems = [f"{name} is not there" for name in sorted(promised - there)]
    problems += (
        [f"{name} is none of the shards of manifest.json" for name in sorted(there - promised)] if promised else []
    )
    lacking = sum(len(left_out.read(shard)) for shard in shards)
    told = sum(split.get("windows_left_out", 0) for split in manifest.get("splits", {}).values())
    if lacking != told:
        problems.append(f"{lacking} windows are listed as left out, manifest.json says {told}")
    return problems


def _problem(record: dict[str, Any], used: np.ndarray, seen: set[str]) -> str:
    """Return what is wrong with a record, "" if nothing is."""
    tokens, clip_id = record.get("tokens"), record.get("id")
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 3 or tokens.size == 0 or tokens.dtype.kind not in "iu":
        return "it holds no tokens [T, H, W]"
    if int(tokens.max()) >= len(used) or int(tokens.min()) < 0:
        return f"code {int(tokens.max())} is outside of the codebook of {len(used)}"
    used[tokens.reshape(-1)] = True
    if not isinstance(record.get("caption"), str):
        return "it holds no caption"
    if not isinstance(clip_id, str) or clip_id in seen:
        return f"the id {clip_id!r} was there before" if isinstance(clip_id, str) else "it holds no id"
    seen.add(clip_id)
    if "captions" in record and record["caption"] not in json.loads(record["captions"]):
        return "its caption is none of its captions"
    return ""


def _draw(source: RecordSource, tokenizer: Any, path: Path, samples: int, seed: int) -> Path:
    chosen = sorted(np.random.default_rng(seed).permutation(len(source))[:samples].tolist())
    records = [source[index] for index in chosen]
    videos = [tokenizer.decode(record["tokens"][None].astype(np.int32))[0] for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = max(video.shape[1] for video in videos), max(video.shape[2] for video in videos)
    padded = [np.pad(v, ((0, 0), (0, height - v.shape[1]), (0, width - v.shape[2]), (0, 0))) for v in videos]
    contact_sheet(padded, [f"{record['id']}: {record['caption']}" for record in records]).save(path)
    return path
