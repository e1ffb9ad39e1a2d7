"""One shard of records (.array_record)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumos.errors import UserError
from lumos.info.reading import reason, size_of


def recognise(path: Path) -> bool:
    return path.is_file() and ".array_record" in path.name and not path.name.endswith(".jsonl")


def describe(path: Path) -> dict[str, Any]:
    from lumos.data.records import RecordSource

    problems: list[str] = []
    facts: dict[str, Any] = {"what": "record shard", "records": None, "bytes": size_of(path), "fields": {}}
    if path.name.endswith(".partial"):
        return facts | {
            "what": "record shard that is being written",
            "problems": ["it can be read when it is finished"],
        }
    try:
        source = RecordSource([path])
    except UserError as error:
        return facts | {"problems": [reason(error)]}
    facts |= {"what": f"shard of {len(source):,} records", "records": len(source)}
    if len(source):
        try:
            facts["fields"] = {name: _field(value) for name, value in source[0].items()}
        except UserError as error:
            problems.append(f"{reason(error)}; other programs, such as TFDS, write records of other kinds")
    return facts | {"problems": problems}


def _field(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"dtype": "text", "shape": None, "first": value if len(value) <= 60 else value[:57] + "..."}
    return {"dtype": str(value.dtype), "shape": list(value.shape), "first": None}
