"""From a folder, a glob or a list of files to a manifest: what `lumos data index` does.

The manifest is JSONL, one line per good file: path (relative to the manifest where possible), id, caption, split (when
the list had one), duration, fps, width, height, frames, bytes. Files that cannot be used are listed with the reason in
`<manifest>.rejected.jsonl` and never stop the run.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lumos.config import DataConfig
from lumos.data import decoder, video
from lumos.errors import UserError, short

_LISTS = (".csv", ".jsonl", ".parquet")
_MAX_CAPTION = 10_000  # characters; what is behind them is left out
_MAX_FIELDS_BYTES = 1 << 20  # of a .json file beside a clip
_SUFFIXES = video.VIDEO_SUFFIXES + video.IMAGE_SUFFIXES


_FIELDS = {
    "path": (str,), "id": (str,), "caption": (str,), "duration": (float, int), "fps": (float, int), "width": (int,),
    "height": (int,), "frames": (int,),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Summary:
    manifest: Path
    rejected_list: Path
    accepted: int
    rejected: int
    without_caption: int
    seconds: float
    fingerprint: str

    def __str__(self) -> str:
        text = f"{self.manifest}: {self.accepted} clips, {self.seconds:.1f} s, {self.without_caption} without caption"
        if self.rejected:
            text += f"; {self.rejected} files rejected, reasons in {self.rejected_list}"
        return f"{text}; fingerprint {self.fingerprint}"


@dataclasses.dataclass(frozen=True)
class _Candidate:
    path: Path
    id: str
    caption: str | None  # None: look for a file beside the clip
    split: str = ""
    escapes: bool = False  # the list's path leads out of its folder


def index(source: str | Path, out: str | Path, data: DataConfig) -> Summary:
    """Check every clip of `source` and write the manifest `out`.

    Args:
      source: a folder (searched recursively), a glob pattern, one clip, or a .csv/.jsonl/.parquet list with the columns
        path and optionally caption, id, split; its paths are relative to the list. Without a caption column, captions
        come from `<clip>.txt` or the "caption" of `<clip>.json` beside the clip; clips without any are kept.
      data: limits says what is accepted; num_threads files are checked at a time.

    Raises:
      UserError: nothing was found, nothing could be used, or the list cannot be read.
    """
    out = Path(out)
    candidates = list(_candidates(str(source)))
    if not candidates:
        raise UserError(f"no clips in {str(source)!r}; looked for {', '.join(_SUFFIXES)}")
    accepted, rejected, seen = [], [], set()
    with ThreadPoolExecutor(max(1, data.num_threads)) as pool:
        for candidate, result in zip(candidates, pool.map(lambda c: _check(c, data), candidates)):
            if isinstance(result, dict) and candidate.id in seen:
                result = f"the id {candidate.id!r} was given before"
            if isinstance(result, str):
                rejected.append({"path": str(candidate.path), "reason": result})
                continue
            seen.add(candidate.id)
            accepted.append({"path": _relative(candidate.path, out.parent), **result})
    rejected_list = out.with_suffix(".rejected.jsonl")
    _write_jsonl(rejected_list, rejected)
    if not accepted:
        raise UserError(f"none of {len(rejected)} files can be used, e.g. {rejected[0]['reason']}; see {rejected_list}")
    _write_jsonl(out, accepted)
    return Summary(
        manifest=out,
        rejected_list=rejected_list,
        accepted=len(accepted),
        rejected=len(rejected),
        without_caption=sum(not row["caption"] for row in accepted),
        seconds=sum(row["duration"] for row in accepted),
        fingerprint=fingerprint(accepted),
    )


def read_manifest(path: str | Path) -> list[dict]:
    """Return the rows of a manifest, paths made absolute. Raises UserError when it is missing or malformed."""
    path = Path(path)
    rows, seen = list(_read_jsonl(path)), set()
    for number, row in enumerate(rows, 1):
        if missing := _FIELDS.keys() - row.keys():
            raise UserError(f"{path}:{number} lacks {', '.join(sorted(missing))}; write it with `lumos data index`")
        for name, kinds in _FIELDS.items():
            value = row[name]
            if type(value) not in kinds or (kinds != (str,) and not 0 <= value < 1e12):
                raise UserError(f"{path}:{number}: {name} must not be {short(value)}; write it with `lumos data index`")
        if min(row["frames"], row["width"], row["height"]) < 1:
            raise UserError(
                f"{path}:{number}: a clip of {row['frames']} frames of {row['width']}x{row['height']} pixels"
            )
        if row["id"] in seen:
            raise UserError(f"{path}:{number}: the id {short(row['id'])} was given before")
        if _escapes(row["path"]):
            raise UserError(f"{path}:{number}: {short(row['path'])} leads out of the folder of the manifest")
        seen.add(row["id"])
        row["path"] = str(path.parent / row["path"])
    return rows


def _escapes(path: str) -> bool:
    """Return whether a relative path leads out of its folder. Absolute paths are meant as they are."""
    return not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == os.pardir


def fingerprint(rows: list[dict]) -> str:
    """Return a short hash of what the manifest holds (ids, captions, sizes), wherever the files lie."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps({k: v for k, v in row.items() if k != "path"}, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _candidates(source: str) -> Iterator[_Candidate]:
    """Yield the files of a source in a fixed order."""
    path = Path(source)
    if path.suffix.lower() in _LISTS and not glob.has_magic(source):
        for number, row in enumerate(_read_list(path), 1):
            if not row.get("path"):
                raise UserError(f"{path}: row {number} has no path; columns are path, caption and optionally id, split")
            caption = row.get("caption") if "caption" in row else None
            name = str(row["path"])
            yield _Candidate(
                path.parent / name,
                str(row.get("id") or Path(name).as_posix()),
                None if caption is None else str(caption),
                str(row.get("split") or ""),
                _escapes(name),
            )
        return
    if path.is_dir():
        root, found = path, path.rglob("*")
    elif path.is_file():
        root, found = path.parent, [path]
    else:
        # Ids are relative to the part of the pattern before its first wildcard.
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        root, found = Path(*fixed), map(Path, glob.iglob(source, recursive=True))
    files = sorted(file for file in found if file.suffix.lower() in _SUFFIXES and file.is_file())
    for file in files:
        yield _Candidate(file, file.relative_to(root).as_posix(), None)


def _check(candidate: _Candidate, data: DataConfig) -> dict | str:
    """Return the manifest row of a file, or the reason why it cannot be used."""
    path = candidate.path
    if candidate.escapes:
        return "the path leads out of the folder of the list; give an absolute path if that is meant"
    if path.suffix.lower() not in _SUFFIXES:
        return f"suffix {path.suffix!r} is none of {', '.join(_SUFFIXES)}"
    pixels, seconds, gigabytes = data.limits
    try:
        if path.is_file() and path.stat().st_size > gigabytes * 1e9:
            return f"{path.stat().st_size / 1e9:.1f} GB is more than {gigabytes:g} (data.limits)"
        info = decoder.probe(path, pixels)
        caption = _caption_beside(path) if candidate.caption is None else candidate.caption
    except (UserError, OSError, ValueError) as error:  # ValueError: a null character in the path
        return str(error).removeprefix(f"{path}: ")
    if info.duration > seconds:
        return f"{info.duration:.1f} s is more than {seconds:g} (data.limits)"
    row = {
        "id": candidate.id,
        "caption": _clean(caption),
        "duration": round(info.duration, 4),
        "fps": round(info.fps, 4),
        "width": info.width,
        "height": info.height,
        "frames": info.frames,
        "bytes": path.stat().st_size,
    }
    return {**row, "split": candidate.split} if candidate.split else row


def _clean(caption: str) -> str:
    """Return the caption on one line, without control characters and halves of surrogate pairs, not longer than a page."""
    printable = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in caption[:_MAX_CAPTION])
    return " ".join(printable.split())


def _caption_beside(path: Path) -> str:
    text, fields = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if text.is_file():
            with text.open(encoding="utf-8") as file:
                return file.read(_MAX_CAPTION)
        if fields.is_file():
            if fields.stat().st_size > _MAX_FIELDS_BYTES:
                raise ValueError(f"more than {_MAX_FIELDS_BYTES} bytes")
            return str(json.loads(fields.read_text(encoding="utf-8")).get("caption") or "")
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"{path}: its caption file cannot be read ({error})") from error
    return ""


def _read_list(path: Path) -> Iterator[dict]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() == ".csv":
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from csv.DictReader(file)
        except (csv.Error, ValueError) as error:
            raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    elif path.suffix.lower() == ".jsonl":
        yield from _read_jsonl(path)
    else:
        try:
            from pyarrow import ArrowInvalid, parquet
        except ImportError as error:
            raise UserError(f"{path}: parquet needs pyarrow; pip install pyarrow, or give CSV or JSONL") from error
        try:
            yield from parquet.read_table(path).to_pylist()
        except ArrowInvalid as error:
            raise UserError(f"{path}: not a parquet file ({error})") from error


def _read_jsonl(path: Path) -> Iterator[dict]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} must be an object with path and caption, got {type(row).__name__}")
            yield row


def _relative(path: Path, folder: Path) -> str:
    """Return the path relative to the manifest's folder if it lies below it: such a data set can be moved."""
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)
