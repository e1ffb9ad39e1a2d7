"""What `lumos data index` looks at: the clips of a folder, a pattern, a list or a set, and whether each of them can be used."""

from __future__ import annotations

import collections
import dataclasses
import glob
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from lumos import files
from lumos.config import DataConfig
from lumos.data import actions, captions, containers, decoder, lerobot, lists, video
from lumos.data.candidate import Candidate
from lumos.data.find_files import find_files, find_objects
from lumos.data.manifest import FIELDS, beside, escapes, folders, utf8_id
from lumos.errors import UserError, printable, short

SUFFIXES = video.VIDEO_SUFFIXES + video.IMAGE_SUFFIXES
_OTHER_FILES = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Which captions clips of folders have ("beside" them, or the name of their "folder"), and which fields are kept."""

    captions: str = "beside"
    keep: tuple[str, ...] = ()

    def __post_init__(self):
        if self.captions not in ("beside", "folder"):
            raise UserError(f"--captions={self.captions} must be beside or folder")
        if taken := sorted({*FIELDS, "bytes", "split", "offset", "size", "hash"} & set(self.keep)):
            raise UserError(f"--keep={','.join(self.keep)}: {taken[0]!r} is a field of every manifest; leave it out")


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The files of a source, in a fixed order: `read()` begins anew."""

    read: Callable[[], Iterator[Candidate]]
    columns: tuple[str, ...]  # of a list that has some
    identity: str  # other files, or another list, have another one


def find_candidates(source: str, passed_over: collections.Counter[str], options: Options) -> Candidates:
    """Return the files of a source. Raises UserError where there is none, also while they are read; counts what is no data."""
    if not source:
        raise UserError("--input is empty; give a folder, a glob, a clip, or a list of clips")
    path = files.path(source)
    suffix = path.suffix.lower()
    if lerobot.recognise(path):
        found = lerobot.read(path)
        return Candidates(lambda: iter(found), (), lerobot.identity(path))
    if path.is_dir() or suffix not in lists.SUFFIXES or _is_container(path):
        if not files.is_remote(path) and not os.path.lexists(path) and not glob.has_magic(source):
            raise UserError(f"{source}: no such file or folder")
        looked_for = SUFFIXES + containers.SUFFIXES
        if path.is_file() and suffix not in looked_for:
            kinds = f"a clip ({', '.join(SUFFIXES)}), a tar, nor a list ({', '.join(lists.SUFFIXES)})"
            raise UserError(f"{source}: suffix {suffix!r} is neither that of {kinds}")
        found = (find_objects if files.is_remote(path) else find_files)(source, looked_for, passed_over)
        found = [file for file in found if file.path.suffix.lower() != ".parquet" or _is_container(file.path)]
        if not found:
            raise UserError(f"no clips in {short(source)}; looked for {', '.join(SUFFIXES)}{told(passed_over)}")
        digest = hashlib.sha256()
        for file in found:
            digest.update(os.fsencode(file.path) + b"\0")
        return Candidates(
            lambda: (Candidate(file.path, file.id, _of_folder(file.path, options), fault=file.fault) for file in found),
            (),
            digest.hexdigest(),
        )
    local, places = files.kept(path), folders(path)
    _, columns = lists.read(local, SUFFIXES)  # is it one?

    def read() -> Iterator[Candidate]:
        layout: list[int] = []
        rows = (
            _candidate(path, places, _placed(places, row, layout), options.keep)
            for row in lists.read(local, SUFFIXES)[0]
        )
        first = next(rows, None)
        if first is None:
            raise UserError(f"{source}: no rows")
        yield first
        yield from rows

    facts = local.stat()
    return Candidates(read, columns, f"{facts.st_size} {facts.st_mtime_ns}")


def _of_folder(path: Path, options: Options) -> tuple[str, ...] | None:
    return (captions.of_folder(path),) if options.captions == "folder" else None


def _is_container(path: Path) -> bool:
    if path.suffix.lower() not in containers.SUFFIXES or not path.is_file():
        return False
    try:
        return containers.is_container(path)
    except UserError:  # it is told where it is read
        return False


def _placed(places: tuple[Path, ...], row: lists.Row, layout: list[int]) -> lists.Row:
    """Return a row with the folder that its clip lies in. layout: which of `row.folders` it was for the first clip that is there."""
    if len(row.folders) == 1 or row.fault:
        return row
    for i in layout or range(len(row.folders)):
        name = f"{row.folders[i]}/{row.path}".lstrip("/")
        if layout or beside(places, name).is_file():
            layout[:] = [i]
            return dataclasses.replace(row, path=name)
    return row


def _candidate(path: Path, places: tuple[Path, ...], row: lists.Row, keep: tuple[str, ...]) -> Candidate:
    file = beside(places, row.path) if row.path else path
    if row.path != row.path.strip() and not os.path.lexists(file):
        return _candidate(path, places, dataclasses.replace(row, path=row.path.strip(), id=row.id.strip()), keep)
    fault = row.fault
    if not fault and escapes(row.path):
        fault = "the path leads out of the folder of the list; give an absolute path if that is meant"
    if not fault and file.suffix.lower() not in SUFFIXES:  # a list of names without suffixes
        file = next((named for end in SUFFIXES if (named := file.with_name(file.name + end)).is_file()), file)
    more = containers.chosen(row.fields, keep)
    text = next((str(value) for name, value in row.fields.items() if name.strip().lower() == "actions"), "")
    if actions.is_reference(text):
        more["actions"] = actions.placed(text, lambda name: str(beside(places, name)))
    return Candidate(file, row.id, row.captions, row.split, fault, row.line, row.span, more=more)


def expand(candidate: Candidate, keep: tuple[str, ...]) -> Iterator[Candidate]:
    """Yield the clips of a container; another candidate is one."""
    if candidate.fault or candidate.line or candidate.path.suffix.lower() not in containers.SUFFIXES:
        yield candidate
        return
    try:
        yield from containers.members(candidate, SUFFIXES, keep)
    except OSError as error:
        yield dataclasses.replace(candidate, fault=error.strerror or str(error))


def _size(path: Path) -> int | str:
    """Return the bytes of a file, or what it is instead."""
    if files.is_remote(path):
        return files.size_and_time(path)[0]
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):  # reading a pipe would wait for ever
        return f"{_OTHER_FILES.get(stat.S_IFMT(facts.st_mode), 'a device')}, not a file"
    return facts.st_size


def check(candidate: Candidate, data: DataConfig) -> dict | str:
    """Return the manifest row of a file, or the reason why it cannot be used."""
    path = files.absolute(candidate.path)
    if candidate.fault:
        return candidate.fault
    if path.suffix.lower() not in SUFFIXES and not candidate.member:
        return f"suffix {path.suffix!r} is none of {', '.join(SUFFIXES)}"
    pixels, seconds, gigabytes = data.limits
    try:
        size = candidate.bytes or _size(path)
        if isinstance(size, str):
            return size
        if size > gigabytes * 1e9:
            return f"{size / 1e9:.1f} GB is more than {gigabytes:g} (data.limits)"
        info = decoder.probe(candidate.member or path, pixels)
        texts = captions.read_beside(path) if candidate.captions is None else candidate.captions
    except FileNotFoundError:
        return f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else "no such file"
    except (UserError, OSError, ValueError) as error:  # ValueError: a null character in the path
        return getattr(error, "strerror", None) or str(error).removeprefix(f"{candidate.member or path}: ")
    if candidate.span:
        info = _cut(info, *candidate.span)
        if isinstance(info, str):
            return info
    if info.duration > seconds:
        return f"{info.duration:.1f} s is more than {seconds:g} (data.limits)"
    row = {
        "id": utf8_id(candidate.id),
        "caption": texts[0] if (texts := captions.cleaned(texts)) else "",
        "duration": round(info.duration, 4),
        "fps": round(info.fps, 4),
        "width": info.width,
        "height": info.height,
        "frames": info.frames,
        "bytes": size,
    }
    row |= {"split": utf8_id(candidate.split)} if candidate.split else {}
    row |= {"captions": texts} if len(texts) > 1 else {}
    row |= (
        {"start": round(candidate.span[0], 4), "end": round(candidate.span[0] + info.duration, 4)}
        if candidate.span
        else {}
    )
    if (member := candidate.member) is not None:
        row |= (
            {"offset": member.offset, "size": member.size}
            if member.row < 0
            else {"row": member.row, "column": member.column, "size": member.size}
        )
    more = candidate.more
    if "actions" in more:
        more = more | {"actions": actions.completed(more["actions"], info.frames)}
    return row | more


def _cut(info: video.VideoInfo, first: float, last: float) -> video.VideoInfo | str:
    """Return the facts of a part of a video, or why there is none."""
    last = min(last, info.duration)
    frames = int((last - first) * info.fps + 1e-3)
    if frames < 1:
        return f"it has {info.duration:.2f} s, so nothing from {first:g} s on"
    return dataclasses.replace(info, frames=frames, duration=last - first)


def stored(path: Path, folder: Path) -> str:
    """Return the path relative to the manifest's folder if it lies below it (such a data set can be moved), else absolute.

    It keeps the name of the file, and those of linked folders unless `..` stands in it or only their targets lie below.
    """
    if files.is_remote(path) or files.is_remote(folder):
        inside = files.is_remote(path) and files.is_remote(folder) and path.is_relative_to(folder)
        return path.relative_to(folder).as_posix() if inside else os.fspath(files.absolute(path))
    path, folder = path.absolute(), folder.absolute()
    if os.pardir in folder.parts:
        folder = folder.resolve()
    if os.pardir not in path.parts and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    resolved = path.parent.resolve() / path.name
    if resolved.is_relative_to(folder.resolve()):
        return resolved.relative_to(folder.resolve()).as_posix()
    return str(resolved if os.pardir in path.parts else path)


def told(passed_over: dict[str, int]) -> str:
    """Return the part of a message that says what is no data, the most frequent first."""
    counts = collections.Counter(passed_over).most_common(6)
    more = sum(passed_over.values()) - sum(number for _, number in counts)
    parts = [f"{number} {printable(name)}" for name, number in counts] + [f"{more} others"] * bool(more)
    return f"; passed over: {', '.join(parts)}" if parts else ""
