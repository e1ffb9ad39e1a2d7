"""Files that hold many clips: tars (WebDataset, video2dataset, img2dataset), and parquet files with the bytes of the clips.

A clip is a byte range of its file where its bytes stand there as they are, so it is read at random like any other. In a tar, members that
follow each other and differ in what is behind the first dot of their names belong together: a clip with its text.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lumos import files
from lumos.data import captions, parquet_bytes, utf8
from lumos.data.candidate import Candidate
from lumos.data.columns import find_columns, unique_fields
from lumos.data.media import Member
from lumos.data.remote_file import opened
from lumos.errors import UserError

SUFFIXES = (".tar", ".parquet")
MOST_BYTES = 1 << 28  # of a clip that is read with the tar that it is in; a longer one is asked for by itself
_MAX_TEXT = 1 << 20  # bytes of a .json or .txt in a tar
_SPLIT = re.compile(r"(train|validation|test)-\d+-of-\d+.*\.parquet")  # as Hugging Face names them


def is_container(path: Path) -> bool:
    """Return whether a file holds clips; a parquet file may be a list of them, or no data."""
    if path.suffix.lower() == ".parquet":
        return bool(parquet_bytes.media_column(path))
    return path.suffix.lower() == ".tar"


def members(whole: Candidate, suffixes: Collection[str], keep: Collection[str]) -> Iterator[Candidate]:
    """Yield the clips of a container in their order; what is damaged is one with a fault.

    One in a bucket is read once from its beginning to its end: its clips bring their bytes, so that they can be looked at.

    Args:
      suffixes: of clips in a tar.
      keep: names of fields that go into the manifest too.
    """
    path, size = files.absolute(whole.path), files.size_and_time(whole.path)[0]
    found = _of_tar(path, size, suffixes) if path.suffix.lower() == ".tar" else _of_parquet(path)
    split = match[1] if (match := _SPLIT.fullmatch(whole.path.name)) else ""
    number = 0
    try:
        for name, place, texts, fields, fault in found:
            number += 1
            member = Member(str(path), name, **place)
            one = Candidate(whole.path, f"{whole.id}/{name}", texts, whole.split or split, fault, member=member)
            yield dataclasses.replace(one, more=chosen(fields, keep), bytes=size)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        yield dataclasses.replace(whole, fault=f"{reason} (behind {number} clips)" if number else reason)


def chosen(fields: dict[str, Any], keep: Collection[str]) -> dict[str, Any]:
    """Return those of the fields that are kept, numbers as such; the names as a column has them."""
    found = {name.strip().lower().replace(" ", "_").replace("-", "_"): value for name, value in fields.items()}
    return {name: _number_or_text(found[name]) for name in keep if found.get(name) not in (None, "")}


def _number_or_text(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value if isinstance(value, str) else json.dumps(value, default=str)


_Found = tuple[str, dict[str, Any], tuple[str, ...] | None, dict[str, Any], str]  # name, place, captions, fields, fault


def _of_tar(path: Path, size: int, suffixes: Collection[str]) -> Iterator[_Found]:
    errors, remote = [], files.is_remote(path)
    with opened(path) as file:
        for _, group in itertools.groupby(_entries(file, errors), key=lambda info: _key(info.name)):
            parts = list(group)
            clips = [info for info in parts if os.path.splitext(info.name)[1].lower() in suffixes]
            if not clips:
                continue
            fault, texts, fields = "", (), {}
            try:
                texts, fields = _texts(file, parts)
            except (ValueError, RecursionError) as error:
                fault = f"its text cannot be read ({error})"
            for info in clips:
                place: dict[str, Any] = {"offset": info.offset_data, "size": info.size}
                if info.offset_data + info.size > size:
                    fault = f"cut short (the tar has {size} bytes, it ends at {info.offset_data + info.size})"
                elif remote and info.size <= MOST_BYTES:
                    place["data"] = _read(file, info)
                yield info.name, place, texts, fields, fault
    if errors:
        raise UserError(f"{path}: a damaged or compressed tar ({errors[0]})") from errors[0]


def _entries(file: BinaryIO, errors: list[Exception]) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar up to what is damaged, which becomes one of the errors. Between them others may read elsewhere."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                if info.isreg() and not info.issparse():
                    yield info
                tar.members.clear()  # it would keep all
    except (tarfile.TarError, OSError, ValueError) as error:
        errors.append(error)


def _read(file: BinaryIO, info: tarfile.TarInfo) -> bytes:
    file.seek(info.offset_data)
    return file.read(info.size)


def _key(name: str) -> str:
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _texts(file: BinaryIO, parts: list[tarfile.TarInfo]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the captions of a clip and the fields of its .json. Raises ValueError."""
    found: dict[str, str] = {}
    for info in parts:
        suffix = os.path.splitext(info.name)[1].lower()
        if suffix in (".txt", ".caption", ".json"):
            if info.size > _MAX_TEXT:
                raise ValueError(f"{info.name} has {info.size} bytes")
            found[suffix] = utf8.decode(_read(file, info))
    fields = json.loads(found[".json"], object_pairs_hook=unique_fields) if ".json" in found else {}
    if not isinstance(fields, dict):
        raise ValueError("its .json is no object")
    text = found.get(".txt", found.get(".caption"))
    return (captions.read_values(text) if text is not None else _of_fields(fields)) or (), fields


def _of_fields(fields: dict[str, Any]) -> tuple[str, ...] | None:
    place = find_columns(tuple(fields)).get("caption")
    return None if place is None else captions.read_values(list(fields.values())[place])


def _of_parquet(path: Path) -> Iterator[_Found]:
    column, remote = parquet_bytes.media_column(path), files.is_remote(path)
    for value in parquet_bytes.values(path, column):
        name = f"{value.row}-{os.path.basename(value.name)}" if value.name else str(value.row)
        place = {"row": value.row, "column": column} if value.offset < 0 else {"offset": value.offset}
        place |= {"size": len(value.data or b"")} | ({"data": value.data} if remote else {})
        fault, texts = "" if value.data else "the row holds nothing", ()
        try:
            texts = (
                _of_fields({name: part for name, part in value.fields.items() if isinstance(part, (str, list))}) or ()
            )
        except ValueError as error:
            fault = str(error)
        yield name, place, texts, value.fields, fault
