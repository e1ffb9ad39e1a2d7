"""Text files of users: UTF-8, with or without a byte order mark, and never something else read as if it were."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from lumos.errors import UserError


def decode(data: bytes, *, final: bool = True) -> str:
    """Return the text of the first bytes of a file; without `final` the last character may be cut.

    Raises ValueError with the reason if they are not UTF-8.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ValueError("it is UTF-16 or UTF-32; save it as UTF-8")
    if 4 * data.count(0) > len(data):  # western text in UTF-16 without a mark: every second byte is zero
        raise ValueError("it looks like UTF-16; save it as UTF-8")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data, final)
    except UnicodeDecodeError as error:
        raise ValueError(_reason(error)) from error


def _reason(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at place {error.start + 1}); save it as UTF-8"


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their ends, numbered from 1. Lines end in LF, CR LF or CR.

    Raises UserError, with the line, if the file is missing or not UTF-8.
    """
    for number, _, text in placed_lines(path):
        yield number, text


def placed_lines(path: Path) -> Iterator[tuple[int, tuple[int, int], str]]:
    """As `lines`, with the bytes (first, end) that each stands in."""
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    number = end = 0
    with path.open("rb") as file:
        for chunk in file:
            for raw in chunk.splitlines(keepends=True):
                number, start, end = number + 1, end, end + len(raw)
                try:
                    text = decode(raw) if number == 1 else raw.decode("utf-8")
                except ValueError as error:
                    reason = _reason(error) if isinstance(error, UnicodeDecodeError) else error
                    raise UserError(f"{path}:{number}: {reason}") from error
                yield number, (start, end), text.removeprefix("\ufeff")  # also where files were joined
