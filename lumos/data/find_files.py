"""Clips in folders and behind patterns: linked folders are followed, what is no data is passed over and counted.

    found                                    then
    a link to a folder                       followed, unless it leads to a folder above itself or to one already read
    a file under two names (links)           used once, under its own name, else the first; the other names are rejected
    hidden and system folders, hidden files, passed over, counted by name
    downloads and files not yet complete
    a folder that cannot be read             rejected
    video or pictures of other formats       rejected
    other files                              no clips

A file or folder that exists is meant as it is, also with the characters of patterns in its name.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import glob
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from lumos import files

_SYSTEM_FOLDERS = {
    "@eadir", "#recycle", "@recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip
_UNFINISHED = (
    ".part", ".partial", ".crdownload", ".download", ".opdownload", ".tmp", ".temp", ".incomplete", ".aria2", ".ytdl",
    ".filepart", ".!ut", ".!qb", "~",
)  # fmt: skip
# Formats of video and pictures that people have; which of them are read says lumos/data/video.py.
_MEDIA = frozenset(
    """.3g2 .3gp .amv .apng .asf .avif .avi .bmp .dng .dv .f4v .flv .gif .h264 .h265 .hevc .heic .heif .insv .ivf .jfif .jp2
    .jpe .jpeg .jpg .jxl .m1v .m2t .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .nut .ogm .ogv
    .png .ppm .psd .qt .rm .rmvb .swf .tga .tif .tiff .trp .ts .vob .webm .webp .wmv .wtv .y4m""".split()
)


@dataclasses.dataclass(frozen=True)
class Found:
    path: Path  # as found: links keep their own name
    id: str  # path below the folder that was named
    fault: str = ""  # why it cannot be used


def find_files(source: str, suffixes: Collection[str], passed_over: collections.Counter[str]) -> list[Found]:
    """Return the clips of a folder (searched recursively), of a pattern, or a single one, in a fixed order.

    Args:
      suffixes: of files that can be read, in lower case.
      passed_over: counts by name what is no data.
    """
    path = Path(source)
    if path.is_dir():
        root, found = path, _walk(path, passed_over)
    elif os.path.lexists(path):
        return [Found(path, path.name)]
    else:
        # Ids are relative to the part of the pattern before its first wildcard.
        root, pattern = _split(path)
        found = _match(root, pattern, passed_over) if pattern else ()
    files = []
    for entry in found:
        suffix = entry.path.suffix.lower()
        if entry.fault or suffix in suffixes:
            files.append(entry)
        elif suffix in _MEDIA:
            files.append(
                dataclasses.replace(entry, fault=f"suffix {suffix!r} is not read; convert it, to .mp4 or .png")
            )
    # Real files before links to them.
    files.sort(key=lambda entry: (entry.is_link, entry.path.parts))
    first: dict[str, Path] = {}
    result = []
    for entry in files:
        fault, name = entry.fault, entry.path.relative_to(root).as_posix()
        if first.setdefault(entry.real, entry.path) != entry.path:
            fault = fault or f"the same file as {first[entry.real].relative_to(root)}"
        result.append(Found(entry.path, name, fault))
    return sorted(result, key=lambda found: found.path.parts)


def find_objects(source: str, suffixes: Collection[str], passed_over: collections.Counter[str]) -> list[Found]:
    """Return the clips of a folder in a bucket, or a single one, as `find_files`."""
    root, found = files.path(source), []
    for path in files.find(root, "*"):
        name = path.relative_to(root).as_posix() if path != root else path.name
        *folders, last = Path(name).parts
        labels = [label for part in folders if (label := _no_data(part, True))] + [_no_data(last, False)]
        suffix = path.suffix.lower()
        if label := next(filter(None, labels), ""):
            passed_over[label] += 1
        elif suffix in suffixes or suffix in _MEDIA:
            fault = "" if suffix in suffixes else f"suffix {suffix!r} is not read; convert it, to .mp4 or .png"
            found.append(Found(path, name, fault))
    return found


@dataclasses.dataclass(frozen=True)
class _Entry:
    path: Path
    real: str  # what the path leads to, through all links
    is_link: bool = False
    fault: str = ""


def _walk(root: Path, passed_over: collections.Counter[str]) -> Iterator[_Entry]:
    """Yield the files below a folder: first those of real folders, then those behind links, each folder once."""
    entered, folders, links = set(), collections.deque([root]), collections.deque()
    while folders or links:
        is_link = not folders
        folder = links.popleft() if is_link else folders.popleft()
        real = os.path.realpath(folder)
        leads_above = is_link and os.path.realpath(folder.parent).startswith(os.path.join(real, ""))
        if leads_above or real in entered:
            passed_over["linked folders that are read elsewhere, or above"] += 1
            continue
        entered.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield _Entry(folder, real, is_link, f"the folder cannot be read ({error.strerror})")
            continue
        for entry in entries:
            path, is_folder = folder / entry.name, entry.is_dir(follow_symlinks=False)
            is_folder = is_folder or entry.is_symlink() and os.path.isdir(path)
            if label := _no_data(entry.name, is_folder):
                passed_over[label] += 1
            elif is_folder:
                (links if entry.is_symlink() else folders).append(path)
            elif entry.is_symlink():
                yield _Entry(path, os.path.realpath(path), True)
            else:
                yield _Entry(path, os.path.join(real, entry.name))


def _no_data(name: str, is_folder: bool) -> str:
    """Return as what an entry of a folder is counted that holds no data; "" if it may."""
    unfinished = next((suffix for suffix in _UNFINISHED if name.lower().endswith(suffix)), "")
    if is_folder:
        return f"{name}/" if name.startswith(".") or name.lower() in _SYSTEM_FOLDERS or unfinished else ""
    if unfinished:
        return f"*{unfinished}"
    if name.startswith(".") and _MEDIA.intersection(Path(name.lower()).suffixes):
        return "._*" if name.startswith("._") else ".*"  # of macOS; also what a writer of lumos has not finished
    return ""


# Patterns ------------------------------------------------------------------------------------------------------------


def _split(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the part of a pattern that exists or has no wildcards, and the rest."""
    fixed = Path(path.anchor)
    parts = path.parts[1:] if path.anchor else path.parts
    for i, part in enumerate(parts):
        if glob.has_magic(part) and not os.path.lexists(fixed / part):
            return fixed, parts[i:]
        fixed = fixed / part
    return fixed, ()


def _match(root: Path, pattern: tuple[str, ...], passed_over: collections.Counter[str]) -> Iterator[_Entry]:
    """Yield the files that match a pattern below a folder; `**` is any number of folders."""
    cut = pattern.index("**") if "**" in pattern else len(pattern)
    names = sorted(glob.iglob(os.path.join(*pattern[:cut]), root_dir=root)) if cut else [""]
    for name in names:
        path = root / name
        wild = [part for part, asked in zip(Path(name).parts, pattern) if glob.has_magic(asked)]
        labels = [label for i, part in enumerate(wild, 1) if (label := _no_data(part, i < len(wild) or path.is_dir()))]
        if labels:
            passed_over[labels[0]] += 1
        elif cut == len(pattern):
            if not path.is_dir():
                real = os.path.realpath(path)
                yield _Entry(path, real, real != os.path.join(os.path.realpath(root), name))
        elif path.is_dir():
            for entry in _walk(path, passed_over):
                if entry.fault or _matches(entry.path.relative_to(path).parts, pattern[cut:]):
                    yield entry


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or bool(parts) and _matches(parts[1:], pattern)
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
