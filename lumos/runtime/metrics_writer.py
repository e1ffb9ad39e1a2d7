"""Where numbers go: JSONL (always), TensorBoard, one plain line per log step, a progress bar on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Writes scalars of one run. On processes other than 0 it does nothing."""

    def __init__(self, workdir: str | Path, *, total_steps: int, start_step: int, name: str, active: bool = True):
        self._active, self._name = active, name
        if not active:
            return
        path = Path(workdir) / "metrics.jsonl"
        torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = open(path, "a", buffering=1)
        if torn:  # killed while writing a line: the next one must not be glued to it
            self._file.write("\n")
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), max_queue=1000, flush_secs=30)
        self._bar = tqdm(
            total=total_steps, initial=start_step, desc=name, unit="step", disable=not sys.stderr.isatty(), leave=True
        )

    def advance(self) -> None:
        if self._active:
            self._bar.update()

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Record scalars (lists become one scalar per entry) under `kind` ("train", "eval") at `step`."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            for i, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, (int, float)):
                    self._board.add_scalar(f"{kind}/{name}" + (f"/{i}" if isinstance(value, list) else ""), item, step)
        text = " ".join(f"{name}={_short(value)}" for name, value in values.items())
        if self._bar.disable:
            _log.info("%s %s step %d: %s", self._name, kind, step, text)
        else:
            self._bar.write(f"{kind} {step}: {text}", file=sys.stderr)

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._board.close()
            self._file.close()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + " ".join(_short(item) for item in value) + "]"
    return str(value)


def read(workdir: str | Path, kind: str) -> list[dict[str, Any]]:
    """Return the recorded lines of one kind, the last one per step (a resumed run repeats steps)."""
    path = Path(workdir) / "metrics.jsonl"
    lines = [_parse(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for _, line in sorted({line["step"]: line for line in lines if line.get("kind") == kind}.items())]


def _parse(line: str) -> dict[str, Any]:
    """Return a recorded line; one that a kill has cut short is empty."""
    try:
        return json.loads(line)
    except ValueError:
        return {}
