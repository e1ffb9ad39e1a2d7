"""Where in a shard each record stands, so that one of a bucket is fetched by its byte range, and what these bytes say.

A shard is a Riegeli file (https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md): chunks, each with a header of 40
bytes that says how long it is, and at the start of every 64 KB block 24 bytes for finding the chunks again after damage. One record is one
chunk here; behind them stand a chunk that lists them and one that says where that is. Beside a shard stands `<shard>.places`: the first byte of
every record and of what follows them (uint64), and the CRC-32 of the bytes of every record (uint32).
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

SUFFIX = ".places"
_BLOCK, _BLOCK_HEADER, _HEADER = 1 << 16, 24, struct.Struct("<5Q")
_USABLE = _BLOCK - _BLOCK_HEADER


class Places(NamedTuple):
    begin_N1: np.ndarray  # uint64 [N + 1]
    crc_N: np.ndarray  # uint32 [N]

    def __len__(self) -> int:
        return len(self.crc_N)

    def range(self, record: int) -> tuple[int, int]:
        return int(self.begin_N1[record]), int(self.begin_N1[record + 1])

    def to_bytes(self) -> bytes:
        return self.begin_N1.astype("<u8").tobytes() + self.crc_N.astype("<u4").tobytes()


def of_bytes(data: bytes) -> Places:
    """Return what `to_bytes` wrote."""
    number = (len(data) - 8) // 12
    return Places(np.frombuffer(data, "<u8", number + 1), np.frombuffer(data, "<u4", number, 8 * (number + 1)))


def of_file(path: Path) -> Places:
    """Return the places of a shard on a local disk."""
    size, place, found = path.stat().st_size, 0, []
    with path.open("rb") as file:
        while place < size:
            kind, records, end = _chunk(file.fileno(), place)
            if kind == b"r":
                found.append(place)
            place = max(end, place + records)
        begin_N1 = np.array(found[:-1], np.uint64)  # the last two are no records
        pairs = zip(found, found[1:-1])
        crc_N = [zlib.crc32(os.pread(file.fileno(), end - begin, begin)) for begin, end in pairs]
    return Places(begin_N1, np.array(crc_N, np.uint32))


def _chunk(file: int, place: int) -> tuple[bytes, int, int]:
    """Return the type of the chunk that begins at a place, the number of its records, and its end."""
    header = _without_block_headers(os.pread(file, _HEADER.size + _BLOCK_HEADER, place), place)[: _HEADER.size]
    _, length, _, kind, _ = _HEADER.unpack(header)
    length += _HEADER.size
    blocks = (length + (place + _USABLE - 1) % _BLOCK) // _USABLE
    return bytes([kind & 255]), kind >> 8, place + length + blocks * _BLOCK_HEADER


def _without_block_headers(data: bytes, place: int) -> bytes:
    parts, at = [], 0
    while at < len(data):
        if (place + at) % _BLOCK == 0:
            at += _BLOCK_HEADER
        end = at + _BLOCK - (place + at) % _BLOCK
        parts.append(data[at:end])
        at = end
    return b"".join(parts)


def record_of(data: bytes, place: int) -> bytes:
    """Return the record whose bytes in the shard, from `place` on, are these. Raises ValueError where they are no such record."""
    chunk = _without_block_headers(data, place)
    _, length, _, kind, size = _HEADER.unpack_from(chunk)
    body = chunk[_HEADER.size : _HEADER.size + length]
    if kind != ord("r") | 1 << 8 or body[:1] not in (b"z", b"\0"):
        raise ValueError("not a record as `lumos tokenize` writes it")
    sizes, start = _varint(body, 1)
    values = body[start + sizes :]
    if body[:1] == b"\0":
        return values
    _, start = _varint(values, 0)
    return pyarrow.decompress(values[start:], size, codec="zstd", asbytes=True)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
