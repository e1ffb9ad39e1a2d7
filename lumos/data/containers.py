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
from typing import Any

from lumos.data import captions, parquet_bytes, utf8
from lumos.data.candidate import Candidate
from lumos.data.columns import find_columns, unique_fields
from lumos.data.media import Member
from lumos.errors import UserError

SUFFIXES = (".tar", ".parquet")
_MAX_TEXT = 1 << 20  # bytes of a .json or .txt in a tar
_SPLIT = re.compile(r"(train|validation|test)-\d+-of-\d+.*\.parquet")  # as Hugging Face names them


def is_container(path: Path, local: Path) -> bool:
    """Return whether a file holds clips; a parquet file may be a list of them, or no data."""
    if path.suffix.lower() == ".parquet":
        return bool(parquet_bytes.media_column(local))
    return path.suffix.lower() == ".tar"


def members(whole: Candidate, local: Path, suffixes: Collection[str], keep: Collection[str]) -> Iterator[Candidate]:
    """Yield the clips of a container in their order; what is damaged is one with a fault.

    Args:
      local: the file, or a copy of it.
      suffixes: of clips in a tar.
      keep: names of fields that go into the manifest too.
    """
    found = _of_tar(local, suffixes) if whole.path.suffix.lower() == ".tar" else _of_parquet(local)
    split = match[1] if (match := _SPLIT.fullmatch(whole.path.name)) else ""
    number = 0
    try:
        for name, place, texts, fields, fault in found:
            number += 1
            member = Member(str(local), name, **place)
            one = Candidate(whole.path, f"{whole.id}/{name}", texts, whole.split or split, fault, member=member)
            yield dataclasses.replace(one, more=chosen(fields, keep))
    except UserError as error:
        reason = str(error).removeprefix(f"{local}: ")
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


def _of_tar(path: Path, suffixes: Collection[str]) -> Iterator[_Found]:
    size, errors = path.stat().st_size, []
    with path.open("rb") as file:
        for _, group in itertools.groupby(_entries(path, errors), key=lambda info: _key(info.name)):
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
                if info.offset_data + info.size > size:
                    fault = f"cut short (the tar has {size} bytes, it ends at {info.offset_data + info.size})"
                yield info.name, {"offset": info.offset_data, "size": info.size}, texts, fields, fault
    if errors:
        raise UserError(f"{path}: a damaged or compressed tar ({errors[0]})") from errors[0]


def _entries(path: Path, errors: list[Exception]) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar up to what is damaged, which becomes one of the errors."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                if info.isreg() and not info.issparse():
                    yield info
                tar.members.clear()  # it would keep all
    except (tarfile.TarError, OSError, ValueError) as error:
        errors.append(error)


def _key(name: str) -> str:
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _texts(file: Any, parts: list[tarfile.TarInfo]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the captions of a clip and the fields of its .json. Raises ValueError."""
    found: dict[str, str] = {}
    for info in parts:
        suffix = os.path.splitext(info.name)[1].lower()
        if suffix in (".txt", ".caption", ".json"):
            if info.size > _MAX_TEXT:
                raise ValueError(f"{info.name} has {info.size} bytes")
            found[suffix] = utf8.decode(os.pread(file.fileno(), info.size, info.offset_data))
    fields = json.loads(found[".json"], object_pairs_hook=unique_fields) if ".json" in found else {}
    if not isinstance(fields, dict):
        raise ValueError("its .json is no object")
    text = found.get(".txt", found.get(".caption"))
    return (captions.read_values(text) if text is not None else _of_fields(fields)) or (), fields


def _of_fields(fields: dict[str, Any]) -> tuple[str, ...] | None:
    place = find_columns(tuple(fields)).get("caption")
    return None if place is None else captions.read_values(list(fields.values())[place])


def _of_parquet(path: Path) -> Iterator[_Found]:
    column = parquet_bytes.media_column(path)
    for value in parquet_bytes.values(path, column):
        name = f"{value.row}-{os.path.basename(value.name)}" if value.name else str(value.row)
        place = {"row": value.row, "column": column}
        if value.offset >= 0:
            place = {"offset": value.offset, "size": len(value.data)}
        fault, texts = "" if value.data else "the row holds nothing", ()
        try:
            texts = (
                _of_fields({name: part for name, part in value.fields.items() if isinstance(part, (str, list))}) or ()
            )
        except ValueError as error:
            fault = str(error)
        yield name, place, texts, value.fields, fault
