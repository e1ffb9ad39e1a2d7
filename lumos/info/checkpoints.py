"""One checkpoint, `<workdir>/checkpoints/<step>`; also what the workdir says of all of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lumos.errors import UserError
from lumos.info.reading import read_object, reason, size_of

ITEMS = ("params", "opt_state", "ema", "extra")
_UNFINISHED = ".orbax-checkpoint-tmp"
_META = Path("meta") / "metadata"
Shapes = dict[str, tuple[tuple[int, ...], str]]  # name of an array -> (shape, dtype)


def recognise(path: Path) -> bool:
    return path.is_dir() and (_step(path) is not None or (path / "_CHECKPOINT_METADATA").is_file())


def _step(path: Path) -> int | None:
    """Return the number of a folder `checkpoints/<step>`, a finished or an unfinished one."""
    name = path.absolute().name.partition(_UNFINISHED)[0]
    return int(name) if path.absolute().parent.name == "checkpoints" and name.isdecimal() else None


def describe(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    folder = path.absolute()
    step, meta = _step(path), read_object(folder / _META, problems)
    finished = _UNFINISHED not in folder.name
    facts = {
        "what": f"checkpoint of step {step}" if finished else f"unfinished save of step {step}",
        "step": meta.get("step", step),
        "finished": finished,
        "good": meta.get("good") if meta else None,
        "items": [item for item in ITEMS if (folder / item).is_dir()],
        "can_be_resumed": finished and step is not None and (folder / "opt_state").is_dir(),
        "bytes": size_of(folder),
        "init_from": meta.get("init_from"),
        "versions": {name: meta[name] for name in ("lumos", "jax") if name in meta},
    }
    if step is None:
        facts["what"] = "checkpoint outside of a workdir"
        problems.append("it can be used when it lies in <workdir>/checkpoints/, under the number of its step")
    elif not finished:
        problems.append("a save that is under way, or was killed: nobody reads it, and the next start removes it")
        return facts | {"problems": problems}
    return facts | arrays(folder, problems) | {"problems": problems}


def arrays(folder: Path, problems: list[str]) -> dict[str, Any]:
    """Return {"parameters": {part: {"count", "dtype", "bytes"}}, "arrays": {item: ...}} of a checkpoint."""
    from lumos.checkpoint import read_shapes

    shapes: dict[str, Shapes] = {}
    for item in ITEMS:
        if (folder / item).is_dir():
            try:
                shapes[item] = read_shapes(folder / item)
            except UserError as error:
                problems.append(f"checkpoint {folder.name}: {reason(error)}")
    if not folder.is_dir():
        problems.append(f"checkpoint {folder.name} was deleted while it was looked at: a run is going on")
    parameters = by_part(shapes["params"]) if "params" in shapes else {}
    return {"parameters": parameters, "arrays": {item: totals(found.values()) for item, found in shapes.items()}}


def by_part(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """Return the totals of every part of a tree: of its branches, or of theirs where there is but one or two."""
    for depth in (1, 2):
        parts: dict[str, list] = {}
        for name, array in shapes.items():
            parts.setdefault("/".join(name.split("/")[:depth]), []).append(array)
        if len(parts) > 2:
            break
    rows = {part: totals(found) for part, found in parts.items()}
    return rows | ({"total": totals(shapes.values())} if len(rows) > 1 else {})


def totals(arrays) -> dict[str, Any]:
    """Return how many numbers arrays (shape, dtype) hold, of which dtypes, in how many bytes."""
    count, size, dtypes = 0, 0, {}
    for shape, dtype in arrays:
        number = math.prod(shape)
        count, size = count + number, size + number * _width(dtype)
        dtypes[dtype] = dtypes.get(dtype, 0) + number
    return {"count": count, "dtype": ", ".join(sorted(dtypes, key=dtypes.get, reverse=True)), "bytes": size}


def _width(dtype: str) -> int:
    import ml_dtypes  # noqa: F401  names bfloat16
    import numpy as np

    return np.dtype(dtype).itemsize


def of_workdir(workdir: Path, problems: list[str]) -> dict[str, Any]:
    """Return what a workdir has saved: {"checkpoints": {step: ...}, "latest_step", "last_good_step", "unfinished_saves"}."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return {"checkpoints": {}, "latest_step": None, "last_good_step": None, "unfinished_saves": []}
    names = [child.name for child in folder.iterdir() if child.is_dir()]
    steps, rows = sorted(int(name) for name in names if name.isdecimal()), {}
    for step in steps:
        place = folder / str(step)
        found: list[str] = []
        meta = read_object(place / _META, found)
        items = [item for item in ITEMS if (place / item).is_dir()]
        if not meta and not found:
            found.append("no meta item")
        if "params" not in items:
            found.append("no params")
        if not place.is_dir():  # a running writer has deleted it meanwhile
            continue
        problems += [f"checkpoint {step}: {problem}" for problem in found]
        good = meta.get("good", True) if meta else None
        rows[str(step)] = {"good": good, "items": items, "bytes": size_of(place)}
    steps = [int(step) for step in rows]
    return {
        "latest_step": max(steps, default=None),
        "last_good_step": max((step for step in steps if rows[str(step)]["good"]), default=None),
        "unfinished_saves": sorted({name.partition(_UNFINISHED)[0] for name in names if _UNFINISHED in name}),
        "checkpoints": rows,
    }
