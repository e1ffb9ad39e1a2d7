"""Captions: one way to clean them, wherever they come from, and to read them from what people write."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from lumos.data import utf8
from lumos.data.columns import find_columns, unique_fields
from lumos.errors import UserError, short

_MAX_LENGTH = 10_000  # characters; what is behind them is left out
_MAX_FIELDS_BYTES = 1 << 20  # of a .json file beside a clip
# ["a dog", "a cat"], ['a dog' 'a cat'] or {'en': 'a dog'}: what pandas and others write for a list or an object.
_WRITTEN_LIST = re.compile(r"\[[\[(\s]*(['\"].*['\"][\])\s,]*)?\]|\{\s*(['\"].*:.*)?\}", re.DOTALL)


def clean(text: str) -> str:
    """Return a caption on one line: blanks of every kind become one, control characters and halves of surrogate pairs too.

    A text longer than a page loses its end. What was cleaned once stays as it is. Indexing, training and generation
    all use this function, so that a prompt gives the tokens that the same caption gave.
    """
    return " ".join(without_controls(text[:_MAX_LENGTH]).split())


def without_controls(text: str) -> str:
    """Return the text with a blank for each control character and half of a surrogate pair, line ends kept."""
    if text.isprintable():  # nearly always; a tenth of the time
        return text
    return "".join(" " if c != "\n" and unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def read_value(value: Any) -> str | None:
    """Return the caption that a field of a list or a JSON file holds, as it is; None where there is none.

    A list of one caption is that caption. Raises ValueError for what is not one text.
    """
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    if isinstance(value, list):
        raise ValueError(f"a list of {len(value)} captions; give each a row and an id of its own")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the caption must be text, got {type(value).__name__} {short(value)}")
    if value is not None and _WRITTEN_LIST.fullmatch(value.strip()):
        raise ValueError(f"the caption is a list or an object written as text, {short(value)}; give one caption a row")
    return value


def read_beside(path: Path) -> str:
    """Return the caption in `<clip>.txt` or under "caption" in `<clip>.json` beside a clip; "" if there is none.

    Raises UserError if such a file cannot be read.
    """
    text, fields = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if _is_there(text):
            with text.open("rb") as file:
                data = file.read(4 * _MAX_LENGTH + 3)  # a byte order mark and the longest characters
            return read_value(utf8.decode(data, final=len(data) <= 4 * _MAX_LENGTH)) or ""
        if _is_there(fields):
            if fields.stat().st_size > _MAX_FIELDS_BYTES:
                raise ValueError(f"more than {_MAX_FIELDS_BYTES} bytes")
            found = json.loads(utf8.decode(fields.read_bytes()), object_pairs_hook=unique_fields)
            if not isinstance(found, dict):
                raise ValueError(f'it must be an object with "caption", got {type(found).__name__}')
            place = find_columns(tuple(found)).get("caption")
            return read_value(None if place is None else list(found.values())[place]) or ""
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: its caption file cannot be read ({error})") from error
    return ""


def _is_there(path: Path) -> bool:
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path.name} is a link to a file that is not there")
    return path.is_file()
