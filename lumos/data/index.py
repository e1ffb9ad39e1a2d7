"""From a folder, a glob or a list of files to a manifest: what `lumos data index` does.

The manifest is JSONL, one line per good file: path (relative to the manifest where possible), id, caption, split (when
the list had one), duration, fps, width, height, frames, bytes. Files that cannot be used are listed with the reason in
`<manifest>.rejected.jsonl` and never stop the run. Paths keep the names that were found: a link is not resolved, for what
it leads to may have another suffix, or none. A name that is not UTF-8 comes back as the same bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lumos import outputs
from lumos.config import DataConfig
from lumos.data import captions, decoder, lists, video
from lumos.data.columns import NAMES
from lumos.data.find_files import find_files
from lumos.errors import UserError, printable, short

_SUFFIXES = video.VIDEO_SUFFIXES + video.IMAGE_SUFFIXES
_REJECTED = ".rejected.jsonl"
_OTHER_FILES = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


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
    passed_over: dict[str, int] = dataclasses.field(default_factory=dict)  # what is no data: hidden files, ...
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.manifest}: {self.accepted} clips, {self.seconds:.1f} s, {self.without_caption} without caption"
        if self.note:
            text += f" ({self.note})"
        if self.rejected:
            text += f"; {self.rejected} files rejected, reasons in {self.rejected_list}"
        return f"{text}{_told(self.passed_over)}; fingerprint {self.fingerprint}"


@dataclasses.dataclass(frozen=True)
class _Candidate:
    path: Path
    id: str
    caption: str | None = None  # None: look for a file beside the clip
    split: str = ""
    fault: str = ""  # known before the file is looked at
    line: int = 0  # of the list


def index(source: str | Path, out: str | Path, data: DataConfig) -> Summary:
    """Check every clip of `source` and write the manifest `out`.

    Args:
      source: a folder (searched recursively), a glob pattern, one clip, or a .csv/.tsv/.jsonl/.parquet list with a column
        for the path and optionally caption, id, split (lumos/data/columns.py says how they may be called); its paths are
        relative to the list. Without a caption column, captions come from `<clip>.txt` or the "caption" of `<clip>.json`
        beside the clip; clips without any are kept.
      out: a .jsonl file, not the list itself.
      data: limits says what is accepted; num_threads files are checked at a time.

    Raises:
      UserError: nothing was found, nothing could be used, the list cannot be read, or `out` not written.
    """
    out = outputs.check_file(out, "--out", (".jsonl",))
    if out.name.endswith(_REJECTED):
        raise UserError(
            f"--out={out}: names that end in {_REJECTED} are those of the lists of rejected files; choose another"
        )
    rejected_list = outputs.check_file(out.with_suffix(_REJECTED), "--out")
    for path in (out, rejected_list):
        if path.exists() and os.path.exists(source) and os.path.samefile(path, source):
            raise UserError(f"--out={out} would overwrite {source}; choose another name")
    passed_over: collections.Counter[str] = collections.Counter()
    candidates, columns = _candidates(str(source), passed_over)
    if not candidates:
        raise UserError(f"no clips in {short(str(source))}; looked for {', '.join(_SUFFIXES)}{_told(passed_over)}")
    accepted, rejected, seen = [], [], set()
    with ThreadPoolExecutor(max(1, data.num_threads)) as pool:
        for candidate, result in zip(candidates, pool.map(lambda c: _check(c, data), candidates)):
            if isinstance(result, dict) and result["id"] in seen:
                result = f"the id {candidate.id!r} was given before"
            if isinstance(result, str):
                line = {"line": candidate.line} if candidate.line else {}
                rejected.append({"path": str(candidate.path), **line, "reason": printable(result)})
                continue
            seen.add(result["id"])
            accepted.append({"path": _stored(candidate.path, out.parent), **result})
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
        passed_over=dict(passed_over),
        note=_note(candidates, columns),
    )


def read_manifest(path: str | Path) -> list[dict]:
    """Return the rows of a manifest, paths made absolute. Raises UserError when it is missing or malformed."""
    path = Path(path)
    rows, seen, folders = [], set(), _folders(path)
    for number, row in lists.json_lines(path):
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
        row["id"], row["caption"] = _utf8(row["id"]), captions.clean(row["caption"])  # of manifests made by hand
        if row["id"] in seen:
            raise UserError(f"{path}:{number}: the id {short(row['id'])} was given before")
        if _escapes(row["path"]):
            raise UserError(f"{path}:{number}: {short(row['path'])} leads out of the folder of the manifest")
        seen.add(row["id"])
        row["path"] = str(_beside(folders, row["path"]))
        rows.append(row)
    return rows


def fingerprint(rows: list[dict]) -> str:
    """Return a short hash of what the manifest holds (ids, captions, sizes), wherever the files lie."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps({k: v for k, v in row.items() if k != "path"}, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _candidates(source: str, passed_over: collections.Counter[str]) -> tuple[list[_Candidate], tuple[str, ...]]:
    """Return the files of a source in a fixed order, and the columns of a list that has some."""
    if not source:
        raise UserError("--input is empty; give a folder, a glob, a clip, or a list of clips")
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in lists.SUFFIXES:
        if not os.path.lexists(path) and not glob.has_magic(source):
            raise UserError(f"{source}: no such file or folder")
        if path.is_file() and suffix not in _SUFFIXES:
            kinds = f"a clip ({', '.join(_SUFFIXES)}) nor a list ({', '.join(lists.SUFFIXES)})"
            raise UserError(f"{source}: suffix {suffix!r} is neither that of {kinds}")
        found = find_files(source, _SUFFIXES, passed_over)
        return [_Candidate(file.path, file.id, fault=file.fault) for file in found], ()
    rows, columns = lists.read(path, _SUFFIXES)
    folders = _folders(path)
    candidates = [_candidate(path, folders, row) for row in rows]
    if not candidates:
        raise UserError(f"{source}: no rows")
    return candidates, columns


def _candidate(path: Path, folders: tuple[Path, ...], row: lists.Row) -> _Candidate:
    file = _beside(folders, row.path) if row.path else path
    if row.path != row.path.strip() and not os.path.lexists(file):
        return _candidate(path, folders, dataclasses.replace(row, path=row.path.strip(), id=row.id.strip()))
    fault = row.fault
    if not fault and _escapes(row.path):
        fault = "the path leads out of the folder of the list; give an absolute path if that is meant"
    return _Candidate(file, row.id, row.caption, row.split, fault, row.line)


def _check(candidate: _Candidate, data: DataConfig) -> dict | str:
    """Return the manifest row of a file, or the reason why it cannot be used."""
    path = candidate.path.absolute()
    if candidate.fault:
        return candidate.fault
    if path.suffix.lower() not in _SUFFIXES:
        return f"suffix {path.suffix!r} is none of {', '.join(_SUFFIXES)}"
    pixels, seconds, gigabytes = data.limits
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # reading a pipe would wait for ever
            return f"{_OTHER_FILES.get(stat.S_IFMT(facts.st_mode), 'a device')}, not a file"
        if facts.st_size > gigabytes * 1e9:
            return f"{facts.st_size / 1e9:.1f} GB is more than {gigabytes:g} (data.limits)"
        info = decoder.probe(path, pixels)
        caption = captions.read_beside(path) if candidate.caption is None else candidate.caption
    except FileNotFoundError:
        return f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else "no such file"
    except (UserError, OSError, ValueError) as error:  # ValueError: a null character in the path
        return getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
    if info.duration > seconds:
        return f"{info.duration:.1f} s is more than {seconds:g} (data.limits)"
    row = {
        "id": _utf8(candidate.id),
        "caption": captions.clean(caption),
        "duration": round(info.duration, 4),
        "fps": round(info.fps, 4),
        "width": info.width,
        "height": info.height,
        "frames": info.frames,
        "bytes": facts.st_size,
    }
    return {**row, "split": _utf8(candidate.split)} if candidate.split else row


def _note(candidates: list[_Candidate], columns: tuple[str, ...]) -> str:
    """Return why no row of a list has a caption of its own; "" if one has, or the source is no list."""
    rows = [candidate for candidate in candidates if candidate.line and not candidate.fault]
    if not rows or any(row.caption is not None for row in rows):
        return ""
    among = f" among the columns {', '.join(columns)}" if columns else ""
    return f"no {' or '.join(NAMES['caption'])}{among}; captions are those beside the clips"


def _told(passed_over: dict[str, int]) -> str:
    """Return the part of a message that says what is no data, the most frequent first."""
    counts = collections.Counter(passed_over).most_common(6)
    more = sum(passed_over.values()) - sum(number for _, number in counts)
    parts = [f"{number} {printable(name)}" for name, number in counts] + [f"{more} others"] * bool(more)
    return f"; passed over: {', '.join(parts)}" if parts else ""


def _utf8(text: str) -> str:
    """Return the text with a backslash escape for what is not UTF-8: ids go into records, hashes and reports."""
    return text.encode("utf-8", "backslashreplace").decode()


# Paths ---------------------------------------------------------------------------------------------------------------


def _escapes(path: str) -> bool:
    """Return whether a relative path leads out of its folder. Absolute paths are meant as they are."""
    return not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == os.pardir


def _folders(file: Path) -> tuple[Path, ...]:
    """Return where the relative paths of a list or manifest start. One that is a link may have its clips beside either end."""
    here = file.absolute().parent
    return (here, file.resolve().parent) if file.is_symlink() else (here,)


def _beside(folders: tuple[Path, ...], name: str) -> Path:
    """Return the path of what a list or manifest names: the first that exists."""
    paths = [folder / name for folder in folders]
    return paths[0] if len(paths) == 1 else next(filter(os.path.lexists, paths), paths[0])


def _stored(path: Path, folder: Path) -> str:
    """Return the path relative to the manifest's folder if it lies below it (such a data set can be moved), else absolute.

    It keeps the name of the file, and those of linked folders unless `..` stands in it or only their targets lie below.
    """
    path, folder = path.absolute(), folder.absolute()
    if os.pardir in folder.parts:
        folder = folder.resolve()
    if os.pardir not in path.parts and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    resolved = path.parent.resolve() / path.name
    if resolved.is_relative_to(folder.resolve()):
        return resolved.relative_to(folder.resolve()).as_posix()
    return str(resolved if os.pardir in path.parts else path)


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Bytes of a name that are not UTF-8 become \udcXX, which is how JSON writes them: they come back as they were.
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
