"""Lists of clips: CSV with any usual separator, TSV, JSONL and parquet.

Every row of a list comes out, with a reason where it cannot be used: rows in are rows accepted and rejected. What makes
all that follows doubtful (an open quote, a line that is not JSON, another encoding) ends the reading with the line.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lumos.data import captions, kinetics, spans, utf8
from lumos.data.columns import expected, find_columns, unique_fields
from lumos.errors import UserError, printable, short

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A clip of a list: `path` and `id` as they stand there (the id is the path by default), the captions not cleaned yet.

    span: (first, last second) where it is a part of the file. fields: what else stands in its row. folders: where the path may begin.
    """

    line: int  # of the file, from 1, where the row begins; of parquet the number of the row
    path: str
    id: str = ""
    captions: tuple[str, ...] | None = ()  # None: the row has none
    split: str = ""
    fault: str = ""  # why the row cannot be used
    span: tuple[float, float] | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    folders: tuple[str, ...] = ("",)


def read(path: Path, row_may_be: Iterable[str]) -> tuple[Iterator[Row], tuple[str, ...]]:
    """Return the rows of a list, and the names of its columns (none for JSONL, where every row has its own).

    Args:
      row_may_be: suffixes of clips. A line inside of quotes whose path has one is a row that an open quote has swallowed.

    Raises:
      UserError: here or while rows are read, with file and line.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _read_jsonl(path), ()
    return _read_parquet(path) if suffix == ".parquet" else _read_separated(path, tuple(row_may_be))


def json_lines(path: Path, hook: Any = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file with their lines; blank lines do not count. Raises UserError with the line."""
    for number, text in utf8.lines(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=hook)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON ({error}); give one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} must be an object with path and caption, got {type(row).__name__}")
        yield number, row


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, fields in json_lines(path, unique_fields):
        try:
            places, values = find_columns(tuple(fields)), list(fields.values())
        except ValueError as error:
            yield Row(number, "", fault=f"{path.name}:{number}: {error}")
            continue
        if "path" not in places:
            fault = f"{path.name}:{number}: no path; its fields are {', '.join(map(repr, fields))}; {expected()}"
            yield Row(number, "", fault=fault)
            continue
        used = {name: values[place] for name, place in places.items()}
        yield from _rows(number, f"{path.name}:{number}", used, fields)


def _read_parquet(path: Path) -> tuple[Iterator[Row], tuple[str, ...]]:
    from pyarrow import ArrowException, parquet  # here: it takes a moment

    try:
        file = parquet.ParquetFile(path)
        names = tuple(file.schema_arrow.names)
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file ({printable(str(error))})") from error
    places = _places(names, str(path))

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    fields = {name: values[names[place]] for name, place in places.items()}
                    yield from _rows(number, f"{path.name}: row {number}", fields, values)
        except (ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path}: damaged behind row {number} ({printable(str(error))})") from error

    return rows(), names


def _rows(line: int, where: str, used: dict[str, Any], fields: dict[str, Any]) -> Iterator[Row]:
    """Yield the clips of a row: one, or as many as it has times. used: the values of the columns in NAMES."""
    if not _is_list(used.get("times")):
        yield _row(line, where, used, fields)
        return
    try:
        found = spans.spans(used["times"])
        lists = {name: spans.literal(value) for name, value in fields.items() if _is_list(value)}
        lists = {name: values for name, values in lists.items() if len(values) == len(found)}
        texts = (
            spans.literal(used.get("caption")) if _is_list(used.get("caption")) else [used.get("caption")] * len(found)
        )
        if len(texts) != len(found):
            raise ValueError(f"{len(found)} times and {len(texts)} captions")
    except ValueError as error:
        yield Row(line, str(used["path"]), fault=f"{where}: {error}")
        return
    for i, (start, end) in enumerate(found):
        own = used | {"start": start, "end": end, "caption": texts[i]}
        yield _row(line, where, own, fields | {name: values[i] for name, values in lists.items()})


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or isinstance(value, str) and value.lstrip().startswith("[")


def _row(line: int, where: str, used: dict[str, Any], more: dict[str, Any]) -> Row:
    """Return a clip of these values of the columns in NAMES; `where` begins its fault."""
    fields, name = used, used["path"]
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not name or not isinstance(name, str) or not name.strip():
        empty = name is None or isinstance(name, str)
        return Row(line, "", fault=f"{where}: {'no path' if empty else f'the path must be text, got {short(name)}'}")
    if fields.get("folder"):
        name = f"{fields['folder']}/{name}"
    texts = {}
    for field in ("id", "split"):
        value = fields.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
            return Row(line, name, fault=f"{where}: the {field} must be text, got {short(value)}")
        texts[field] = "" if value is None else str(value)
    try:
        found, places = captions.read_values(fields.get("caption")), ("",)
        if "cut_start" in fields:
            name = kinetics.file_name(name, fields)
            places = kinetics.folders(str(fields.get("caption") or ""), texts["split"])
            texts["split"] = kinetics.split_of(texts["split"])
        span = spans.span(fields.get("start"), fields["end"]) if fields.get("end") not in (None, "") else None
    except ValueError as error:
        return Row(line, name, fault=f"{where}: {error}")
    clip_id = texts["id"] or Path(name).as_posix()
    if span and "times" in fields or span and not texts["id"]:
        clip_id += f"@{span[0]:g}-{span[1]:g}"
    return Row(line, name, clip_id, found, texts["split"], span=span, fields=more, folders=places)


def _places(names: tuple[str, ...], where: str, hint: str = "") -> dict[str, int]:
    try:
        places = find_columns(names)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if "path" not in places:
        raise UserError(f"{where}: no column for the path among {', '.join(map(repr, names))}; {expected()}{hint}")
    return places


# Separated by commas, semicolons, tabs, bars -------------------------------------------------------------------------


class _Lines:
    """The lines that a csv.reader asks for; `row` keeps those since it was last emptied, `first` is the number of its first."""

    def __init__(self, numbered: Iterator[tuple[int, str]]):
        self._numbered, self.row, self.first = numbered, [], 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._numbered)
        if not self.row:
            self.first = number
        self.row.append(line)
        return line


def _read_separated(path: Path, row_may_be: tuple[str, ...]) -> tuple[Iterator[Row], tuple[str, ...]]:
    numbered = utf8.lines(path)
    header = next(((number, line) for number, line in numbered if line.strip()), None)
    separators = list(_SEPARATORS)
    if header and (told := re.fullmatch(r'"?sep=(.)"?', header[1].rstrip("\r\n"), re.IGNORECASE)):  # Excel's
        separators = [told[1]]
        header = next(((number, line) for number, line in numbered if line.strip()), None)
    elif path.suffix.lower() == ".tsv":
        separators.sort(key=lambda separator: separator != "\t")
    if header is None:
        raise UserError(f"{path}: no rows; the first line names the columns; {expected()}")
    separator, names = _header(*header, separators, path)
    return _separated_rows(path, _Lines(numbered), separator, names, row_may_be), names


def _header(number: int, line: str, separators: list[str], path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the separator under which a header has a path, best with a caption and most columns, and its columns."""
    readings = []
    for separator in separators:
        try:
            names = tuple(next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)))
        except (csv.Error, TypeError, ValueError):  # TypeError, ValueError: no separator
            continue
        try:
            places = find_columns(names)
        except ValueError:
            places = {}  # two columns of a kind, of which _places complains
        readings.append((("path" in places, "caption" in places, len(names)), separator, names))
    if not readings:
        raise UserError(f"{path}:{number}: the first line, {short(line)}, does not name columns; {expected()}")
    _, separator, names = max(readings, key=lambda reading: reading[0])
    _places(names, f"{path}:{number}", f", with one of {', '.join(_SEPARATORS.values())} between them")
    return separator, names


def _separated_rows(
    path: Path, lines: _Lines, separator: str, names: tuple[str, ...], row_may_be: tuple[str, ...]
) -> Iterator[Row]:
    places = find_columns(names)
    width = max(i for i, name in enumerate(names) if name.strip()) + 1  # spreadsheets add columns without a name
    for fields in _fields(path, lines, separator):
        where = f"{path.name}:{lines.first}"
        if isinstance(fields, str):
            yield Row(lines.first, "", fault=f"{where}: {fields}")
            continue
        if swallowed := _swallowed(fields, separator, places["path"], row_may_be):
            number = next((n for n, line in enumerate(lines.row, lines.first) if swallowed in line), lines.first)
            opened = _open_quote(lines.row[: number - lines.first + 1], lines.first, separator)
            raise UserError(
                f"{path}:{opened}: a quote that opens here takes in {short(swallowed)} (line {number}), which looks like a "
                "row; close the quote"
            )
        if any(field.strip() for field in fields[width:]) and places.get("caption") == width - 1 == len(names) - 1:
            fields = _unquoted(lines.row, separator, width) or fields
        if len(fields) < width or any(field.strip() for field in fields[width:]):
            fault = f"{where}: fields: {len(fields)}, columns: {width}"
            if len(fields) > width:
                fault += f"; a field that holds a {_SEPARATORS.get(separator, separator)} needs quotes around it"
            yield Row(lines.first, fields[places["path"]] if places["path"] < len(fields) else "", fault=fault)
            continue
        used = {name: fields[place] for name, place in places.items()}
        yield from _rows(lines.first, where, used, dict(zip(names, fields)))


def _swallowed(fields: list[str], separator: str, path_column: int, row_may_be: tuple[str, ...]) -> str:
    """Return a line inside of quotes whose path, seen as a row, is that of a clip; "" if there is none.

    That is what becomes of rows behind a quote that was forgotten, up to the next quote.
    """
    for column, field in enumerate(fields):
        inside = re.split(r"\r\n|[\r\n]", field)
        for i, line in enumerate(inside if len(inside) > 1 else ()):
            place, parts = path_column - column * (i == 0), line.split(separator)
            # The last line ends at the closing quote, and with it perhaps the path.
            whole = len(parts) - (i == len(inside) - 1)
            if len(parts) > 1 and 0 <= place < whole and parts[place].strip(' "').lower().endswith(row_may_be):
                return line
    return ""


def _unquoted(lines: list[str], separator: str, width: int) -> list[str] | None:
    """Return the fields of a row in which nothing is quoted, surplus separators in the last one: it has no other sense."""
    line = lines[0].rstrip("\r\n")
    if len(lines) > 1 or any(field.lstrip(" ").startswith('"') for field in line.split(separator)):
        return None
    return [field.lstrip(" ") for field in line.split(separator, width - 1)]


def _fields(path: Path, lines: _Lines, separator: str) -> Iterator[list[str] | str]:
    """Yield the fields of every row that is not blank, or why a line cannot be split; `lines` says where the row stands.

    Raises UserError if a quote takes in lines behind its own.
    """
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        lines.row = []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if len(lines.row) == 1 and "end of data" not in str(error):  # the next row is where it should be
                yield f"{error}; quotes stand around a whole field, and those inside of it are doubled"
                continue
            opened = _open_quote(lines.row, lines.first, separator)
            last = lines.first + len(lines.row) - 1
            raise UserError(
                f"{path}:{opened}: the quote that opens here is not closed as it should be ({error}, line {last}); quotes "
                "stand around a whole field, and those inside of it are doubled"
            ) from error
        if any(field.strip() for field in fields):
            yield fields


def _open_quote(lines: list[str], first: int, separator: str) -> int:
    """Return the line where the quote opened in which reading these lines as a row got stuck, or that closes last."""
    opened, state = first, "start"
    for number, line in enumerate(lines, first):
        for char in line:
            if state == "quoted":
                state = "closed" if char == '"' else "quoted"
            elif char == '"' and state in ("start", "closed"):  # closed: a doubled quote
                opened = number if state == "start" else opened
                state = "quoted"
            elif char == separator or char in "\r\n":
                state = "start"
            elif state == "closed":
                return opened
            elif char != " ":
                state = "plain"
    return opened
