"""Captions: one way to clean them, wherever they come from, and to read them from what people write."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lumos import files
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


def read_values(value: Any) -> tuple[str, ...] | None:
    """Return the captions that a field of a list or a JSON file holds, as they are; None where there is none.

    Raises ValueError for what is no text, and no list of texts.
    """
    if isinstance(value, list):
        found = tuple(_text(part) for part in value)
        return tuple(part for part in found if part) or None
    return None if value is None else (_text(value),)


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the caption must be text, got {type(value).__name__} {short(value)}")
    if value is not None and _WRITTEN_LIST.fullmatch(value.strip()):
        raise ValueError(f"the caption is a list or an object written as text, {short(value)}; give one caption a row")
    return value


def cleaned(texts: Iterable[str]) -> list[str]:
    """Return captions as `clean` makes them, each once, without those that are empty."""
    return list(dict.fromkeys(filter(None, map(clean, texts))))


def draw(texts: str | list[str], rng: np.random.Generator | None, power: float) -> str:
    """Return one of several captions, drawn with weights (words of it) ** power; without `rng` the first."""
    if isinstance(texts, str) or rng is None:
        return texts if isinstance(texts, str) else texts[0]
    weights = np.array([max(1, len(text.split())) for text in texts]) ** float(power)
    return texts[int(rng.choice(len(texts), p=weights / weights.sum()))]


def of_folder(path: Path) -> str:
    """Return the name of the folder that a clip lies in as a caption: "ApplyEyeMakeup" and "apply_eye_makeup" as words."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", path.parent.name)
    return re.sub(r"[\s_\-]+", " ", words).strip().lower()


def read_beside(path: Path) -> tuple[str, ...]:
    """Return the captions in `<clip>.txt` or under "caption" in `<clip>.json` beside a clip; none if there is neither.

    Raises UserError if such a file cannot be read.
    """
    text, fields = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if _is_there(text):
            with files.borrowed(text) as local, local.open("rb") as file:
                data = file.read(4 * _MAX_LENGTH + 3)  # a byte order mark and the longest characters
            return read_values(utf8.decode(data, final=len(data) <= 4 * _MAX_LENGTH)) or ()
        if _is_there(fields):
            data = files.read_bytes(fields)
            if len(data) > _MAX_FIELDS_BYTES:
                raise ValueError(f"more than {_MAX_FIELDS_BYTES} bytes")
            found = json.loads(utf8.decode(data), object_pairs_hook=unique_fields)
            if not isinstance(found, dict):
                raise ValueError(f'it must be an object with "caption", got {type(found).__name__}')
            place = find_columns(tuple(found)).get("caption")
            return read_values(None if place is None else list(found.values())[place]) or ()
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: its caption file cannot be read ({error})") from error
    return ()


def _is_there(path: Path) -> bool:
    if not files.is_remote(path) and path.is_symlink() and not path.exists():
        raise ValueError(f"{path.name} is a link to a file that is not there")
    return path.is_file()
