"""Where a command writes: looked at before its work begins, so that hours of it do not end in an error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lumos import files
from lumos.errors import UserError, printable

# Names of files may have 255 bytes; those that are written first under another name need some of them.
_NAME_BYTES = 230


def check_folder(path: str | Path, flag: str) -> Path:
    """Return the path of a folder to write into. Nothing stays behind.

    Args:
      flag: what the user calls it, such as "--out".

    Raises:
      UserError: there is a file in its place, or it cannot be made or written.
    """
    folder = _checked(path, flag)
    if files.is_remote(folder):
        files.probe(folder, flag)
        return folder
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        kind = "a file" if there.exists() else "a link to a folder that is not there"
        raise UserError(f"{flag}={printable(str(path))}: {printable(str(there))} is {kind}, not a folder")
    try:
        # What the system says of permissions is not all: quotas, root's on network folders, /proc.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{flag}={printable(str(path))}: cannot write in {printable(str(there))} ({reason})") from error
    return folder


def check_workdir(path: str | Path, flag: str) -> Path:
    """Return the path of a folder for checkpoints, as `check_folder`.

    Raises UserError also where it has characters of patterns: Orbax looks for the parts of a checkpoint by a pattern.
    """
    folder = check_folder(path, flag)
    if odd := sorted(set("*?[\\") & set(str(files.absolute(folder)))):
        raise UserError(
            f"{flag}={printable(str(path))}: checkpoints cannot be written below a folder with {' '.join(odd)} in its name; "
            "choose another"
        )
    return folder


def check_file(path: str | Path, flag: str, suffixes: Sequence[str] = ()) -> Path:
    """Return the path of a file to write, of one of these suffixes (any, if there are none). Nothing stays behind.

    Raises:
      UserError: another suffix, a folder in its place, or a folder around it that cannot be made or written.
    """
    file = _checked(path, flag)
    if suffixes and file.suffix.lower() not in suffixes:
        raise UserError(f"{flag}={printable(str(path))} must be a file name that ends in {', '.join(suffixes)}")
    if str(path).endswith("/") or file.is_dir():
        raise UserError(f"{flag}={printable(str(path))} is a folder; give the name of a file")
    check_folder(file.parent, flag)
    return file


def _checked(path: str | Path, flag: str) -> Path:
    if not str(path):
        raise UserError(f"{flag} is empty; give a path")
    files.check_scheme(os.fspath(path), flag)
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{flag}={printable(str(path))} is not UTF-8; choose another name") from error
    if "\0" in str(path):
        raise UserError(f"{flag}={printable(str(path))} holds a null character; choose another name")
    places = () if files.is_remote(path) else (Path(path), *Path(path).parents)
    if any(len(place.name.encode()) > _NAME_BYTES and not os.path.lexists(place) for place in places):
        raise UserError(
            f"{flag}: a name of more than {_NAME_BYTES} bytes in {printable(str(path))[:80]}...; shorten it"
        )
    return files.path(path)
