"""`lumos data filter`: the clips of a manifest for which a condition holds, and of those that look alike one, as a new manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lumos import outputs
from lumos.data import lineage, media
from lumos.data.decoder import read_clip
from lumos.data.expressions import compile_condition, names_in
from lumos.data.manifest import FIELDS, SUFFIXES, Manifest, fingerprint, open_manifest
from lumos.data.manifest_writer import ManifestWriter
from lumos.errors import UserError

_AT_A_TIME = 1024  # clips whose frames are looked at together
_SIDE = 64  # pixels of a frame that is hashed
_BITS = 64


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
      near_duplicates: of clips whose middle frames have perceptual hashes that differ in at most so many of 64 bits the first is kept; -1 = all.

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
    dropped = {"by --where": 0} if where else {}
    kept = _where(manifest, holds, dropped)
    if near_duplicates >= 0:
        kept = _unlike(manifest, kept, near_duplicates, threads, dropped)
    numbers = {name for name, is_number in columns.items() if is_number}
    with ManifestWriter(path, columns, numbers) as writer:
        for row in kept:
            writer.write(row)
        if not writer.num_rows:
            raise UserError(f"{source}: no clip is left of {len(manifest)}")
    number, digest = writer.num_rows, writer.fingerprint
    asked = {"where": where} if where else {}
    asked |= {"near_duplicates": near_duplicates} if near_duplicates >= 0 else {}
    before = {"fingerprint": fingerprint(manifest.stored_rows()), "clips": len(manifest)}
    lineage.write(
        manifest.path, path, {"step": "filter", **asked, "before": before, "clips": number, "fingerprint": digest}
    )
    return Filtered(path, number, dropped, digest)


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


def _unlike(
    manifest: Manifest, rows: Iterator[dict[str, Any]], distance: int, threads: int, dropped: dict[str, int]
) -> Iterator[dict[str, Any]]:
    dropped |= {"that look like one before": 0, "that cannot be read": 0}
    seen = _Hashes(distance)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        batch: list[dict[str, Any]] = []
        for row in _ending(rows):
            if row is not None:
                batch.append(row)
            if batch and (row is None or len(batch) == _AT_A_TIME):
                hashes = pool.map(lambda one: hash_of_middle(manifest.placed(one)), batch)
                for one, found in zip(batch, hashes):
                    if found is None:
                        dropped["that cannot be read"] += 1
                    elif seen.has_like(found):
                        dropped["that look like one before"] += 1
                    else:
                        seen.add(found)
                        yield one
                batch = []


def _ending(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any] | None]:
    yield from rows
    yield None


def hash_of_middle(row: dict[str, Any]) -> int | None:
    """Return the perceptual hash (64 bits) of a clip's middle frame; None where it cannot be read."""
    try:
        import imagehash
    except ImportError as error:
        raise UserError("--near_duplicates needs imagehash; pip install 'lumos-video[filter]'") from error
    from PIL import Image

    start = row.get("start", 0.0) + (row["frames"] // 2) / (row["fps"] or 1.0)
    try:
        frame = read_clip(media.of_row(row), start=start, num_frames=1, own_fps=row["fps"], height=_SIDE, width=_SIDE)[
            0
        ]
    except UserError:
        return None
    bits = np.asarray(imagehash.phash(Image.fromarray(frame)).hash).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes())


class _Hashes:
    """Finds whether a hash within a distance was there. Of so many bits that differ, at least one of `distance + 1` parts has none."""

    def __init__(self, distance: int):
        self._distance, edges = distance, np.linspace(0, _BITS, min(distance, _BITS - 1) + 2).astype(int).tolist()
        self._parts = [(start, (1 << (end - start)) - 1) for start, end in zip(edges, edges[1:])]
        self._found: list[dict[int, list[int]]] = [{} for _ in self._parts]

    def add(self, value: int) -> None:
        for found, (start, mask) in zip(self._found, self._parts):
            found.setdefault(value >> start & mask, []).append(value)

    def has_like(self, value: int) -> bool:
        return any(
            (value ^ other).bit_count() <= self._distance
            for found, (start, mask) in zip(self._found, self._parts)
            for other in found.get(value >> start & mask, ())
        )
