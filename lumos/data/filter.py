"""`lumos data filter`: the clips of a manifest for which a condition holds, and of those that look alike one, as a new manifest."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lumos import files, outputs
from lumos.data import lineage, look_alike, parts
from lumos.data.expressions import compile_condition, names_in
from lumos.data.manifest import FIELDS, SUFFIXES, Manifest, fingerprint, open_manifest
from lumos.data.manifest_writer import ManifestWriter
from lumos.errors import UserError

_CLIPS_OF_PART = 1024


@dataclasses.dataclass(frozen=True)
class Filtered:
    manifest: Path
    clips: int
    dropped: dict[str, int]  # by the reason
    fingerprint: str

    def __str__(self) -> str:
        dropped = ", ".join(f"{number} {reason}" for reason, number in self.dropped.items())
        return f"{self.manifest}: {self.clips} clips; left out: {dropped}; fingerprint {self.fingerprint}"


def filter_manifest(source: str, out: str, *, where: str = "", near_duplicates: int = -1, threads: int = 2) -> Filtered:
    """Write the manifest of what is kept, in its order.

    Args:
      where: condition on a row (lumos/data/expressions.py); beside its fields there are words, characters (of the caption), pixels (of a frame)
        and aspect (width / height).
      near_duplicates: of clips whose frames, four of each, have perceptual hashes that differ in at most so many of 64 bits on the average the
        first is kept; -1 = all. Hashes are made in parts (parts.py): a killed run goes on, and several processes share them.

    Raises:
      UserError: no row is left, the condition cannot be read, or names a column that no row has.
    """
    path = outputs.check_file(out, "--out", SUFFIXES)
    manifest = open_manifest(source)
    if path.exists() and not path.is_dir() and path == manifest.path:
        raise UserError(f"--out={out} would overwrite the manifest that is read; choose another name")
    holds = compile_condition(where) if where else lambda values: True
    columns, known = _columns(manifest)
    if where and (unknown := sorted(names_in(where) - known)):
        raise UserError(f"--where={where}: no row has {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    rows = lambda dropped: _where(manifest, holds, dropped)
    numbers = {name for name, is_number in columns.items() if is_number}
    asked = {"where": where} if where else {}
    before = {"fingerprint": fingerprint(manifest.stored_rows()), "clips": len(manifest)}

    def write(written: list[Path] | None) -> Filtered:
        dropped = {"by --where": 0} if where else {}
        kept = rows(dropped)
        if written is not None:
            kept = _unlike(kept, written, near_duplicates, dropped)
        with ManifestWriter(path, columns, numbers) as writer:
            for row in kept:
                writer.write(row)
            if not writer.num_rows:
                raise UserError(f"{source}: no clip is left of {len(manifest)}")
        number, digest = writer.num_rows, writer.fingerprint
        step = {"step": "filter", **asked, "before": before, "clips": number, "fingerprint": digest}
        lineage.write(manifest.path, path, step | {"dropped": dropped})
        return Filtered(path, number, dropped, digest)

    if near_duplicates < 0:
        return write(None)
    asked |= {"near_duplicates": near_duplicates}
    identity = f"{before['fingerprint']} {where} {look_alike.FRAMES}"
    with ThreadPoolExecutor(max(1, threads)) as pool:
        make = lambda chunk: _hashes(manifest, pool, chunk)
        filtered = parts.share(path, identity, lambda: _chunks(rows({"by --where": 0})), make, write)
    if filtered:
        return filtered
    last = lineage.read(path)[-1]
    return Filtered(path, last["clips"], last["dropped"], last["fingerprint"])


def values_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a condition may ask of a row."""
    caption = row["caption"]
    size = {"pixels": row["width"] * row["height"], "aspect": row["width"] / row["height"]}
    return row | size | {"words": len(caption.split()), "characters": len(caption)}


def _columns(manifest: Manifest) -> tuple[dict[str, bool], set[str]]:
    """Return the fields of the rows with whether they are numbers, and the names that conditions know."""
    found: dict[str, bool] = {}
    for row in manifest.stored_rows():
        for name, value in row.items():
            found[name] = found.get(name, True) and not isinstance(value, (str, list))
    example = dict.fromkeys(FIELDS, "") | {"width": 1, "height": 1}
    return found, set(found) | set(values_of(example))


def _where(manifest: Manifest, holds: Any, dropped: dict[str, int]) -> Iterator[dict[str, Any]]:
    for row in manifest.stored_rows():
        if holds(values_of(row)):
            yield row
        else:
            dropped["by --where"] += 1


# Clips that look alike ------------------------------------------------------------------------------------------------


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(itertools.islice(rows, _CLIPS_OF_PART)):
        yield chunk


def _hashes(manifest: Manifest, pool: ThreadPoolExecutor, rows: list[dict[str, Any]]) -> str:
    """Return the text of a part: the hashes of a clip in each line, or null."""
    found = pool.map(lambda row: look_alike.hashes_of(manifest.placed(row)), rows)
    return "".join(json.dumps(hashes) + "\n" for hashes in found)


def _unlike(
    rows: Iterator[dict[str, Any]], written: list[Path], distance: int, dropped: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """Yield the rows that are like none before; the parts have their hashes."""
    dropped |= {"that look like one before": 0, "that cannot be read": 0}
    seen = look_alike.Seen(distance)
    lines = itertools.chain.from_iterable(files.read_text(part).splitlines() for part in written)
    for row, line in zip(rows, lines, strict=True):
        if (hashes := json.loads(line)) is None:
            dropped["that cannot be read"] += 1
        elif seen.has_like(hashes):
            dropped["that look like one before"] += 1
        else:
            seen.add(hashes)
            yield row
