"""`lumos data cut`: long files become clips between their scene cuts, as rows with `start` and `end` of a new manifest; no file is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lumos import files, outputs
from lumos.data import lineage, lists, media, video
from lumos.data.decoder import read_clip
from lumos.data.manifest import SUFFIXES, Manifest, fingerprint, open_manifest
from lumos.data.manifest_writer import ManifestWriter
from lumos.errors import UserError

_SECONDS = 20.0  # of a file that are looked at at a time
_SIZE = {"height": 72, "width": 128}
_AT_A_TIME = 64  # files

Span = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Cut:
    manifest: Path
    files: int
    clips: int
    too_short: int
    unreadable: int
    fingerprint: str

    def __str__(self) -> str:
        text = f"{self.manifest}: {self.clips} clips of {self.files} files; left out: {self.too_short} clips that are too short"
        return f"{text}, {self.unreadable} files that cannot be read; fingerprint {self.fingerprint}"


def cut(
    source: str,
    out: str,
    *,
    cuts: str = "",
    threshold: float = 27.0,
    least: float = 1.0,
    most: float = 0.0,
    threads: int = 2,
) -> Cut:
    """Write the manifest of the clips.

    Args:
      cuts: a list (path or id of a row, start, end) of clips that are known; "" = look for cuts with scenedetect.
      threshold: of its content detector, the mean difference of two frames in hue, saturation and brightness, 0 to 255.
      least, most: seconds of a clip; longer ones are divided evenly (0 = not).

    Raises:
      UserError: nothing is left, scenedetect is not there, or the list names files that the manifest does not have.
    """
    path = outputs.check_file(out, "--out", SUFFIXES)
    manifest = open_manifest(source)
    if path == manifest.path:
        raise UserError(f"--out={out} would overwrite the manifest that is read; choose another name")
    spans_of = _imported(cuts, manifest) if cuts else _detector(manifest, threshold)
    names: set[str] = {"start", "end"}
    numbers: dict[str, bool] = {}
    for row in manifest.stored_rows():
        names |= row.keys()
        for name, value in row.items():
            numbers[name] = numbers.get(name, True) and not isinstance(value, (str, list))
    short = unreadable = 0
    with ManifestWriter(path, names, {name for name, is_number in numbers.items() if is_number}) as writer:
        for row, spans in _with_spans(manifest, spans_of, threads):
            if spans is None:
                unreadable += 1
                continue
            for first, last in spans:
                for start, end in _divided(first, last, most):
                    frames = int((end - start) * row["fps"] + 1e-3)
                    if end - start < least or frames < 1:
                        short += 1
                        continue
                    writer.write(_part(row, start, end, frames))
        if not writer.num_rows:
            raise UserError(f"{source}: no clip of at least {least:g} s was found in {len(manifest)} files")
    asked = {"cuts": Path(cuts).name} if cuts else {"detector": "content", "threshold": threshold}
    before = {"fingerprint": fingerprint(manifest.stored_rows()), "clips": len(manifest)}
    facts = {"step": "cut", **asked, "least": least, "most": most, "before": before}
    lineage.write(manifest.path, path, facts | {"clips": writer.num_rows, "fingerprint": writer.fingerprint})
    return Cut(path, len(manifest), writer.num_rows, short, unreadable, writer.fingerprint)


def _part(row: dict[str, Any], start: float, end: float, frames: int) -> dict[str, Any]:
    """Return the row of a part of a clip; times count from the first frame of the file."""
    begin = row.get("start", 0.0)
    times = {"start": round(begin + start, 4), "end": round(begin + end, 4)}
    own = {
        "id": f"{row['id']}@{times['start']:g}-{times['end']:g}",
        "duration": round(end - start, 4),
        "frames": frames,
    }
    without_actions = {
        name: value for name, value in row.items() if name != "actions"
    }  # they count frames of the whole
    return without_actions | own | times


def _divided(first: float, last: float, most: float) -> list[Span]:
    count = max(1, int(np.ceil((last - first) / most - 1e-9))) if most else 1
    edges = np.linspace(first, last, count + 1).tolist()
    return list(zip(edges, edges[1:]))


def _with_spans(
    manifest: Manifest, spans_of: Callable[[dict[str, Any]], list[Span] | None], threads: int
) -> Iterator[tuple[dict[str, Any], list[Span] | None]]:
    with ThreadPoolExecutor(max(1, threads)) as pool:
        batch: list[dict[str, Any]] = []
        for number, row in enumerate(manifest.stored_rows(), 1):
            batch.append(row)
            if len(batch) == _AT_A_TIME or number == len(manifest):
                yield from zip(batch, pool.map(spans_of, batch))
                batch = []


def _imported(cuts: str, manifest: Manifest) -> Callable[[dict[str, Any]], list[Span] | None]:
    found: dict[str, list[Span]] = {}
    with files.borrowed(cuts) as local:
        for row in lists.read(local, video.VIDEO_SUFFIXES)[0]:
            if row.fault or row.span is None:
                raise UserError(
                    f"{cuts}: {row.fault or f'line {row.line} has no end; give the columns path, start, end'}"
                )
            found.setdefault(row.path, []).append(row.span)
    known = {name for row in manifest.stored_rows() for name in (row["id"], row["path"])}
    if unknown := sorted(found.keys() - known):
        raise UserError(f"{cuts}: {unknown[0]} is neither id nor path of a clip of {manifest.path}")

    def spans_of(row: dict[str, Any]) -> list[Span]:
        spans = found.get(row["id"], found.get(row["path"], []))
        return [(first, min(last, row["duration"])) for first, last in spans if first < row["duration"]]

    return spans_of


def _detector(manifest: Manifest, threshold: float) -> Callable[[dict[str, Any]], list[Span] | None]:
    try:
        from scenedetect import ContentDetector, FrameTimecode
    except ImportError as error:
        raise UserError(
            "lumos data cut needs scenedetect; pip install 'lumos-video[scenes]', or give --cuts"
        ) from error

    def spans_of(row: dict[str, Any]) -> list[Span] | None:
        if row["frames"] == 1 or not row["fps"]:
            return []
        detector, cuts, number = ContentDetector(threshold=threshold, min_scene_len=1), [], 0
        try:
            for frame_YX3 in _frames(manifest.placed(row)):
                cuts += detector.process_frame(FrameTimecode(number, row["fps"]), frame_YX3[..., ::-1])
                number += 1
        except UserError:
            return None
        edges = [0.0, *(cut.frame_num / row["fps"] for cut in cuts), row["duration"]]
        return list(zip(edges, edges[1:]))

    return spans_of


def _frames(row: dict[str, Any]) -> Iterator[np.ndarray]:
    """Yield all frames of a clip, small."""
    at_once = max(1, int(_SECONDS * row["fps"]))
    for first in range(0, row["frames"], at_once):
        number = min(at_once, row["frames"] - first)
        start = row.get("start", 0.0) + first / row["fps"]
        yield from read_clip(media.of_row(row), start=start, num_frames=number, own_fps=row["fps"], **_SIZE)
