"""Clips of a bucket on the local disk, up to a number of bytes: those that were used last.

A file, a member of a tar and a value of a parquet file each become a file of their own. What a run reads next is known before, so that it is
brought many clips at a time (`bring`); a clip that was not is brought when it is read.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lumos import files
from lumos.data import media
from lumos.data.media import Member
from lumos.errors import UserError

_AT_A_TIME = 16  # clips that are asked for side by side
_SOME_ROWS = 64  # that tell whether clips are in a bucket, and how large they are

Clip = str | Member  # a file, or what lies in one


@dataclasses.dataclass
class _Copy:
    path: Path
    size: int = -1  # bytes; -1: not there yet
    users: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class Copies:
    """Attributes: used_bytes: those of all copies; more than `max_bytes` only while that many are read."""

    def __init__(self, max_bytes: int):
        self.used_bytes, self._max_bytes, self._number = 0, max_bytes, 0
        self._folder = tempfile.TemporaryDirectory(prefix="lumos-clips-")  # deleted with this object
        self._copies: collections.OrderedDict[Clip, _Copy] = collections.OrderedDict()  # the one used last is the last
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_AT_A_TIME)

    def __contains__(self, clip: Clip) -> bool:
        return clip in self._copies and self._copies[clip].size >= 0

    def __len__(self) -> int:
        return len(self._copies)

    @contextlib.contextmanager
    def lent(self, clip: Clip) -> Iterator[Path]:
        """Give the copy of a clip, which stays as long as it is read. Errors name the clip. Raises UserError."""
        copy = self._taken(clip)
        try:
            with copy.lock:  # of several who want it one brings it
                if copy.size < 0:
                    media.copy(clip, copy.path)
                    copy.size = copy.path.stat().st_size
                    with self._lock:
                        self.used_bytes += copy.size
            yield copy.path
        except UserError as error:
            raise UserError(str(error).replace(str(copy.path), str(clip))) from error
        finally:
            self._given_back(clip, copy)

    def bring(self, clips: Iterable[Clip]) -> None:
        """Bring clips that will be read. What cannot be brought is told when it is read."""
        list(self._pool.map(self._bring, dict.fromkeys(clips)))

    def _bring(self, clip: Clip) -> None:
        with contextlib.suppress(UserError, OSError), self.lent(clip):
            pass

    def _taken(self, clip: Clip) -> _Copy:
        with self._lock:
            if (copy := self._copies.get(clip)) is None:
                self._number += 1
                name = f"{self._number}{os.path.splitext(clip.name if isinstance(clip, Member) else clip)[1][:16]}"
                copy = self._copies[clip] = _Copy(Path(self._folder.name) / name)
            self._copies.move_to_end(clip)
            copy.users += 1
            return copy

    def _given_back(self, clip: Clip, copy: _Copy) -> None:
        """End the use of a copy; those used longest ago make room, and one that could not be brought goes."""
        with self._lock:
            copy.users -= 1
            gone = [clip] if copy.size < 0 and not copy.users else []
            for other, its in self._copies.items():
                if self.used_bytes <= self._max_bytes:
                    break
                if not its.users and its.size >= 0:
                    self.used_bytes -= its.size
                    gone.append(other)
            for other in gone:
                self._copies.pop(other).path.unlink(missing_ok=True)


def of_rows(rows: Sequence[dict[str, Any]], max_bytes: int) -> tuple[Copies | None, int]:
    """Return the copies of the clips of a manifest, and how many may be brought before they are read; (None, 0) where none is in a bucket."""
    some = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(len(rows), _SOME_ROWS))]
    remote = [row for row in some if files.is_remote(row["path"])]
    sizes = [size for row in remote if (size := row.get("size") or row.get("bytes"))]
    return (Copies(max_bytes) if remote else None), int(max_bytes / 2 / np.mean(sizes)) if sizes else 0
