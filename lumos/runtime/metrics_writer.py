"""Where numbers go: JSONL (always), trackers, one plain line per log step, a progress bar on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lumos import files
from lumos.growing_files import Appended
from lumos.runtime.trackers import About, Background, check_installed, run_id

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Writes scalars and samples of one run. On processes other than 0 it does nothing.

    Args:
      config: all fields of the run's config, as a dict; `train.trackers` names where else its metrics go.
      facts: where the run comes from (`lumos.provenance`).

    Raises UserError where a tracker is not installed.
    """

    def __init__(
        self,
        workdir: str | Path,
        config: dict[str, Any],
        facts: dict[str, Any],
        *,
        start_step: int,
        active: bool = True,
    ):
        train, self._name = config["train"], config["name"]
        check_installed(train["trackers"])
        self._active = active
        if not active:
            return
        workdir = files.path(workdir)
        self._file = Appended(workdir / "metrics.jsonl")
        about = About(workdir, run_id(workdir), self._name, config, facts)
        self._trackers = [Background(name, about) for name in train["trackers"]]
        self._bar = tqdm(
            total=train["num_steps"],
            initial=start_step,
            desc=self._name,
            unit="step",
            disable=not sys.stderr.isatty(),
            leave=True,
        )

    def advance(self) -> None:
        if self._active:
            self._bar.update()

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Record scalars (lists become one scalar per entry) under `kind` ("train", "eval") at `step`."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **values}))
        scalars = dict(_scalars(kind, values))
        for tracker in self._trackers:
            tracker.call("scalars", step, scalars)
        text = " ".join(f"{name}={_short(value)}" for name, value in values.items())
        if self._bar.disable:
            _log.info("%s %s step %d: %s", self._name, kind, step, text)
        else:
            self._bar.write(f"{kind} {step}: {text}", file=sys.stderr)

    def samples(self, step: int, folder: Path) -> None:
        """Show the samples of a step, in a folder with videos and a contact sheet."""
        if self._active and not files.is_remote(folder):
            for tracker in self._trackers:
                tracker.call("samples", step, folder)

    def flush(self) -> None:
        """Bring what was recorded to where a later start finds it."""
        if self._active:
            self._file.flush()

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._file.close()
            for tracker in self._trackers:
                tracker.close()


def _scalars(kind: str, values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (name, number) as trackers show them: kind/name, of lists kind/name/place."""
    for name, value in values.items():
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, (int, float)):
                yield f"{kind}/{name}" + (f"/{i}" if isinstance(value, list) else ""), item


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + " ".join(_short(item) for item in value) + "]"
    return str(value)


def read(workdir: str | Path, kind: str) -> list[dict[str, Any]]:
    """Return the recorded lines of one kind, the last one per step (a resumed run repeats steps)."""
    path = files.path(workdir) / "metrics.jsonl"
    lines = [_parse(line) for line in files.read_text(path).splitlines()] if path.exists() else []
    return [line for _, line in sorted({line["step"]: line for line in lines if line.get("kind") == kind}.items())]


def _parse(line: str) -> dict[str, Any]:
    """Return a recorded line; one that a kill has cut short is empty."""
    try:
        return json.loads(line)
    except ValueError:
        return {}
