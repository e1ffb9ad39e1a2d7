"""Files of prompts: one a line, or a column of a list."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from lumos.errors import UserError

_COLUMNS = ("prompt", "caption", "text", "prompt_en")  # the first one that is there is read
_SUFFIXES = (".txt", ".csv", ".jsonl", ".json")


def read_prompts(path: str | Path) -> list[str]:
    """Return the prompts of a file; see `read_entries`."""
    return [entry["prompt"] for entry in read_entries(path)]


def read_entries(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a file of prompts, with "prompt" and whatever else they say: .txt (one prompt a line), .csv, .jsonl, or
    .json (a list). In the last three the prompt is called "prompt", "caption", "text" or "prompt_en".

    Raises UserError: another file, no such column, a line that is no JSON object, or no prompt at all.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: a file of prompts ends in {', '.join(_SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    if suffix == ".txt":
        entries = [{"prompt": line.strip()} for line in text.splitlines() if line.strip()]
    elif suffix == ".csv":
        entries = [_entry(row, f"{path}, line {i}") for i, row in enumerate(csv.DictReader(text.splitlines()), 2)]
    elif suffix == ".jsonl":
        lines = [(f"{path}, line {i}", line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        entries = [_entry(_parsed(line, where), where) for where, line in lines]
    else:
        rows = _parsed(text, str(path))
        entries = [
            _entry(row, f"{path}, entry {i}") for i, row in enumerate(rows if isinstance(rows, list) else [rows])
        ]
    if not entries:
        raise UserError(f"{path} holds no prompt")
    return entries


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"{where}: not JSON") from None


def _entry(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object")
    found = next((row[name] for name in _COLUMNS if row.get(name) is not None), None)
    if not isinstance(found, str):
        raise UserError(f"{where}: no text under {', '.join(_COLUMNS)}")
    return {**row, "prompt": found}
