"""From a folder, a glob or a list of files to a manifest: what `lumos data index` does.

A manifest (lumos/data/manifest.py) has one row for every good file: path (relative to the manifest where possible), id, caption,
split (when the list had one), duration, fps, width, height, frames, bytes. Files that cannot be used are listed with the reason in
`<manifest>.rejected.jsonl` and never stop the run. Paths keep the names that were found: a link is not resolved, for what
it leads to may have another suffix, or none. A name that is not UTF-8 comes back as the same bytes.

The work is cut into parts (parts.py). So a killed run goes on where it was, and any number of processes started with the same command share the
parts; the last one puts them together, in their order.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lumos import files, outputs
from lumos.config import DataConfig
from lumos.data import actions, containers, parts
from lumos.data.candidate import Candidate
from lumos.data.candidates import DEFAULTS, Candidates, Options, check, expand, find_candidates, stored, told
from lumos.data.columns import NAMES
from lumos.data.manifest import SUFFIXES, fingerprint, hash_of, read_manifest
from lumos.data.manifest_writer import ManifestWriter
from lumos.errors import UserError, printable

_REJECTED = ".rejected.jsonl"
_AT_A_TIME = 1024  # clips of a part that are held in memory


@dataclasses.dataclass(frozen=True)
class Summary:
    manifest: Path
    rejected_list: Path
    accepted: int
    rejected: int
    without_caption: int
    seconds: float
    fingerprint: str
    passed_over: dict[str, int] = dataclasses.field(default_factory=dict)  # what is no data: hidden files, ...
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.manifest}: {self.accepted} clips, {self.seconds:.1f} s, {self.without_caption} without caption"
        if self.note:
            text += f" ({self.note})"
        if self.rejected:
            text += f"; {self.rejected} files rejected, reasons in {self.rejected_list}"
        return f"{text}{told(self.passed_over)}; fingerprint {self.fingerprint}"


def index(
    source: str | Path, out: str | Path, data: DataConfig, options: Options = DEFAULTS, *, files_per_part: int = 4096
) -> Summary:
    """Check every clip of `source` and write the manifest `out`.

    Args:
      source: a folder (searched recursively), a glob pattern, one clip, or a .csv/.tsv/.jsonl/.parquet list with a column
        for the path and optionally caption, id, split, start, end (lumos/data/columns.py says how they may be called); its
        paths are relative to the list. Without a caption column, captions come from `<clip>.txt` or the "caption" of
        `<clip>.json` beside the clip; clips without any are kept. Tars and parquet files with the bytes of clips are searched
        (lumos/data/containers.py), and so is a LeRobot set (lumos/data/lerobot.py).
      out: a .jsonl or .arrow file, not the list itself.
      data: limits says what is accepted; num_threads files are checked at a time.

    Raises:
      UserError: nothing was found, nothing could be used, the list cannot be read, or `out` not written.
    """
    out = outputs.check_file(out, "--out", SUFFIXES)
    if out.name.endswith(_REJECTED):
        raise UserError(
            f"--out={out}: names that end in {_REJECTED} are those of the lists of rejected files; choose another"
        )
    rejected_list = outputs.check_file(out.with_suffix(_REJECTED), "--out")
    for path in (out, rejected_list):
        same = os.fspath(path) == str(source) if files.is_remote(path) else os.path.exists(source) and path.exists()
        if same and (files.is_remote(path) or os.path.samefile(path, source)):
            raise UserError(f"--out={out} would overwrite {source}; choose another name")
    passed_over: collections.Counter[str] = collections.Counter()
    candidates = find_candidates(str(source), passed_over, options)
    identity = f"{candidates.identity} {data.limits} {options} {files_per_part}"
    with ThreadPoolExecutor(max(1, data.num_threads)) as pool:
        summary = parts.share(
            out,
            identity,
            lambda: _chunks(candidates.read(), files_per_part),
            lambda chunk: "".join(_facts_of(chunk, pool, out, data, options)),
            lambda written: _merge(written, out, rejected_list),
        )
    summary = summary or _summary_of(out, rejected_list)
    return dataclasses.replace(summary, passed_over=dict(passed_over), note=_note(candidates))


def _summary_of(out: Path, rejected_list: Path) -> Summary:
    rows = read_manifest(out)
    rejected = files.read_bytes(rejected_list).count(b"\n")
    without_caption = sum(not row["caption"] for row in rows)
    return Summary(
        out,
        rejected_list,
        len(rows),
        rejected,
        without_caption,
        float(rows.column("duration").sum()),
        fingerprint(rows),
    )


def _chunks(candidates: Iterator[Candidate], size: int) -> Iterator[list[Candidate]]:
    """Yield candidates `size` at a time; a file that holds many clips ends a chunk."""
    chunk: list[Candidate] = []
    for candidate in candidates:
        chunk.append(candidate)
        if len(chunk) == size or (not candidate.line and candidate.path.suffix.lower() in containers.SUFFIXES):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _facts_of(
    chunk: list[Candidate], pool: ThreadPoolExecutor, out: Path, data: DataConfig, options: Options
) -> Iterator[str]:
    """Yield a line of JSON for every clip: its row, or the reason why it cannot be used."""
    clips = (clip for candidate in chunk for clip in expand(candidate, options.keep))
    for some in _some(clips):
        for clip, result in zip(some, pool.map(lambda clip: check(clip, data), some)):
            fact = {"file": clip.name, **({"line": clip.line} if clip.line else {})}
            if isinstance(result, dict):
                place = lambda name: stored(files.path(name), out.parent)
                result = {"path": place(clip.path), **result}
                if "actions" in result:
                    result["actions"] = actions.placed(result["actions"], place)
                fact |= {"id": clip.id, "row": result}
            else:
                fact |= {"reason": printable(result)}
            yield json.dumps(fact) + "\n"


def _some(clips: Iterator[Candidate]) -> Iterator[list[Candidate]]:
    """Yield clips in lists that do not hold much at a time."""
    some, size = [], 0
    for clip in clips:
        some.append(clip)
        size += len(clip.member.data) if clip.member and clip.member.data else 0
        if len(some) == _AT_A_TIME or size >= containers.MOST_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _merge(written: list[Path], out: Path, rejected_list: Path) -> Summary:
    """Write the manifest and the list of rejected files, in order. Of files with one id the first is accepted."""
    hashes, columns, text = [], set(), set()
    for fact in _facts(written):
        if "row" in fact:
            row = fact["row"]
            hashes.append(hash_of(row["id"]))
            columns |= row.keys()
            text |= {name for name, value in row.items() if isinstance(value, str)}
    values, counts = np.unique(np.array(hashes, np.uint64), return_counts=True)
    perhaps_again, seen = set(values[counts > 1].tolist()), set()
    accepted = rejected = without_caption = 0
    seconds, first_reason = 0.0, ""
    with ManifestWriter(out, columns, columns - text) as manifest:
        with (
            files.written(rejected_list) as partial,
            partial.open("w", encoding="utf-8", errors="backslashreplace") as others,
        ):
            for fact in _facts(written):
                row = fact.get("row")
                if row and hash_of(row["id"]) in perhaps_again:
                    if row["id"] in seen:
                        row, fact["reason"] = None, printable(f"the id {fact['id']!r} was given before")
                    else:
                        seen.add(row["id"])
                if row:
                    # A column has one type: where one row has text, all have.
                    manifest.write({name: _as_text(value) if name in text else value for name, value in row.items()})
                    seconds, without_caption = seconds + row["duration"], without_caption + (not row["caption"])
                    continue
                rejected += 1
                first_reason = first_reason or fact["reason"]
                line = {"line": fact["line"]} if "line" in fact else {}
                reason = {"path": fact["file"], **line, "reason": fact["reason"]}
                others.write(json.dumps(reason, ensure_ascii=False) + "\n")
        if not manifest.num_rows:
            raise UserError(f"none of {rejected} files can be used, e.g. {first_reason}; see {rejected_list}")
        accepted, digest = manifest.num_rows, manifest.fingerprint
    return Summary(out, rejected_list, accepted, rejected, without_caption, seconds, digest)


def _facts(written: list[Path]) -> Iterator[dict[str, Any]]:
    for part in written:
        with files.borrowed(part) as local, local.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _note(candidates: Candidates) -> str:
    """Return why no row of a list has a caption of its own; "" if one has, or the source is no list."""
    lines = 0
    for candidate in candidates.read():
        if candidate.line and not candidate.fault:
            if candidate.captions is not None:
                return ""
            lines += 1
    if not lines:
        return ""
    among = f" among the columns {', '.join(candidates.columns)}" if candidates.columns else ""
    return f"no {' or '.join(NAMES['caption'])}{among}; captions are those beside the clips"
