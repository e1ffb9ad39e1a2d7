"""A file in a bucket, read at random like one on a disk: the blocks used last are in memory."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

from lumos import files

_BLOCK, _BLOCKS = 8 << 20, 8  # bytes that are asked for at a time, and how many of such blocks are kept


def opened(path: Path) -> BinaryIO:
    """Open a file to read, on a disk or in a bucket. Raises OSError, or UserError, also while it is read."""
    return _Blocks(path) if files.is_remote(path) else path.open("rb")


class Positioned(io.RawIOBase):
    """A file of `size` bytes to read, whose bytes from a place on `_bytes` returns."""

    def __init__(self, size: int):
        self._size, self._place = size, 0

    def _bytes(self, first: int, end: int) -> bytes:
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._size)
        data = self._bytes(self._place, end) if self._place < end else b""
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


class _Blocks(Positioned):
    def __init__(self, path: Path):
        from fsspec.caching import BlockCache

        super().__init__(files.size_and_time(path)[0])
        fetch = lambda start, end: files.read_range(path, start, end - start)
        self._cache = BlockCache(_BLOCK, fetch, self._size, maxblocks=_BLOCKS)

    def _bytes(self, first: int, end: int) -> bytes:
        return self._cache._fetch(first, end)
