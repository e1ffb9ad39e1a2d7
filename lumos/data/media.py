"""Where the bytes of a clip lie: in a file of its own, or in one with many others (a tar, a parquet file).

The functions that read videos and images take a path or a `Member`; a member is opened as if it were a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lumos import files
from lumos.data import parquet_bytes
from lumos.data.remote_file import Positioned
from lumos.errors import UserError


@dataclasses.dataclass(frozen=True)
class Member:
    """Bytes of a file: those of a range, those of a row of a parquet file, or `data` that were read before.

    path: the file that it lies in. name: of the clip, for messages. size: of its bytes. row, column: where it is no range.
    """

    path: str
    name: str
    offset: int = 0
    size: int = 0
    row: int = -1
    column: str = ""
    data: bytes | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"


Media = Path | Member


def of(clip: str | os.PathLike | Member) -> Media:
    return clip if isinstance(clip, Member) else Path(clip)


def of_row(row: dict[str, Any]) -> str | Member:
    """Return the clip of a manifest's row."""
    if "offset" in row:
        return Member(row["path"], row["id"], row["offset"], row["size"])
    if "row" in row:
        return Member(row["path"], row["id"], size=row.get("size", 0), row=row["row"], column=row["column"])
    return row["path"]


def path_of(clip: str | Member) -> str:
    """Return the file that a clip is, or lies in."""
    return clip.path if isinstance(clip, Member) else clip


def open_binary(clip: Media) -> BinaryIO:
    """Open a clip to read. Raises OSError."""
    if isinstance(clip, Path):
        return clip.open("rb")
    if clip.data is not None:
        return io.BytesIO(clip.data)
    return io.BufferedReader(_Range(clip), 1 << 16)


def check(clip: Media) -> None:
    """Raise UserError if there is nothing to read."""
    if isinstance(clip, Member) and clip.data is not None:
        size = len(clip.data)
    else:
        path = Path(clip.path) if isinstance(clip, Member) else clip
        if not path.is_file():
            raise UserError(f"{clip}: no such file")
        size = path.stat().st_size
        if isinstance(clip, Member):
            if clip.offset + clip.size > size:
                raise UserError(f"{clip}: cut short (the file has {size} bytes, it ends at {clip.offset + clip.size})")
            size = clip.size
    if size == 0:
        raise UserError(f"{clip}: the file is empty")


def for_ffmpeg(clip: Media) -> str | BinaryIO:
    # Absolute, so that no file name is taken for a protocol ("concat:a|b", "12:30:00.mp4").
    return str(clip.absolute()) if isinstance(clip, Path) else open_binary(clip)


class _Range(Positioned):
    """A part of a file as a file."""

    def __init__(self, member: Member):
        super().__init__(member.size)
        self._file, self._first = open(member.path, "rb"), member.offset

    def _bytes(self, first: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - first, self._first + first)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def fetched(clip: str | os.PathLike | Member) -> Iterator[Media]:
    """Give a clip that a decoder can open: what lies in a bucket or in a parquet file is brought first. Raises UserError."""
    if not isinstance(clip, Member):
        with files.borrowed(clip) as local:
            yield local
    elif clip.data is None and (clip.row >= 0 or files.is_remote(clip.path)):
        yield dataclasses.replace(clip, data=_bytes_of(clip))
    else:
        yield clip


def _bytes_of(clip: Member) -> bytes:
    if clip.row >= 0:
        return parquet_bytes.read(clip.path, clip.row, clip.column)
    return files.read_range(clip.path, clip.offset, clip.size)


def copy(clip: str | os.PathLike | Member, local: Path) -> None:
    """Bring a clip of a bucket into a file of its own. Raises UserError."""
    if isinstance(clip, Member):
        local.write_bytes(_bytes_of(clip))
    else:
        files.get(clip, local)
