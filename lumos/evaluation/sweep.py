"""`lumos sweep`: every checkpoint, every sampler, shared by as many processes as there are, stopped and resumed at any moment.

A workdir holds `cells/<name>/` (a finished cell with its `row.json`: it is moved there as a whole), `failed/<name>.json` (its reason),
`leases/` (who works on what), `partial/` (what is being made), `log.jsonl`, `curves/` (for trackers) and the page of the report. A worker is one process with its
own devices; workers know nothing of each other but these files.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
import traceback
from pathlib import Path
from typing import Any

import jax

from lumos import config_loading, files, provenance
from lumos.checkpoint import read_config
from lumos.checkpoint_steps import resolve, saved_steps
from lumos.config import Config
from lumos.errors import UserError
from lumos.evaluation import cells as cell_names
from lumos.evaluation import curves, measures, report, rows
from lumos.evaluation.cells import Cell
from lumos.evaluation.subject import Subject
from lumos.leases import Leases, Lost
from lumos.videos.generator import Generator

_log = logging.getLogger(__name__)
_POLL = 1.0  # seconds between looks for work that others may leave
_WATCH = 20.0  # seconds between looks for new checkpoints
_PAGE = 30.0  # seconds after which the page is written again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to sweep over; see `lumos sweep --help`."""

    workdir: str
    out: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: str = "all"
    weights: str = ""
    settings: tuple[str, ...] = ()
    zipped: bool = False
    seeds: tuple[int, ...] = (0,)
    prompts: tuple[str, ...] = ()
    measure: tuple[str, ...] = ()
    shard: tuple[int, int] = (0, 1)
    best: str = ""
    watch: bool = False
    retry: bool = False


class Worker:
    """One process of a sweep."""

    def __init__(self, sweep: Sweep):
        read_config(sweep.workdir)
        self.sweep, self.out = sweep, Path(sweep.out)
        self.config = config_loading.load(str(files.path(sweep.workdir) / "config.json"), sweep.overrides)
        if self.config.task != "transformer":
            raise UserError(
                f"{sweep.workdir} holds a run with task {self.config.task!r}; a sweep generates with a transformer run"
            )
        self.settings = cell_names.parse_settings(list(sweep.settings), zipped=sweep.zipped)
        self.prompts = cell_names.prompt_sets(list(sweep.prompts))
        for setting in self.settings:  # what is wrong is said before hours of work
            measures.chosen(self._config(setting).evaluate, sweep.measure)
        self._generator: Generator | None = None

    def cells(self) -> list[Cell]:
        """Return the cells of the checkpoints that there are, in the order of this worker."""
        s = self.sweep
        steps = saved_steps(s.workdir) if s.watch else resolve(s.workdir, s.step)
        common = [s.weights, sorted(s.measure), sorted((name, str(value)) for name, value in s.overrides.items())]
        found = cell_names.expand(
            Path(s.workdir).resolve().name, steps, self.settings, list(s.seeds), self.prompts, common
        )
        return cell_names.own_first(found, s.shard)

    def run(self) -> Path:
        """Evaluate all cells that nobody else does, wait for those that others work on, and write the page."""
        for name in ("cells", "failed", "partial"):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        leases = Leases(self.out / "leases")
        if self.sweep.retry:
            for path in (self.out / "failed").glob("*.json"):
                path.unlink(missing_ok=True)
        while True:
            found, worked, shown = self.cells(), False, time.monotonic()
            for cell in found:
                if not self.is_over(cell) and self._try(cell, leases):
                    worked = True
                    if time.monotonic() - shown > _PAGE:
                        self._publish(found, leases)
                        shown = time.monotonic()
            left = [cell for cell in found if not self.is_over(cell)]
            if worked or not left:
                page = self._publish(found, leases)
            if not left and not (self.sweep.watch and not self._is_trained(found)):
                return page
            if not worked:
                time.sleep(_POLL if left else _WATCH)

    def is_done(self, cell: Cell) -> bool:
        return (self.out / "cells" / cell.name).is_dir()

    def is_over(self, cell: Cell) -> bool:
        return self.is_done(cell) or self._failure(cell).exists()

    def _publish(self, found: list[Cell], leases: Leases) -> Path:
        """Write what trackers get, and the page, of what is there; return the page."""
        curves.write(self.out, [cell for cell in found if self.is_done(cell)], leases, self.config)
        failed = [json.loads(path.read_text()) for path in sorted((self.out / "failed").glob("*.json"))]
        title = f"{self.config.name}: sweep of {Path(self.sweep.workdir).resolve().name}"
        return report.write(self.out, [self.out / "cells"], failed=failed, title=title, best=self.sweep.best)

    def _try(self, cell: Cell, leases: Leases) -> bool:
        """Evaluate a cell if nobody does; return whether it was."""
        with leases.hold(cell.name) as lease:
            if lease is None or self.is_over(cell):  # it may have been finished before the lease was had
                return False
            start, partial = time.time(), self.out / "partial" / f"{cell.name}.{os.getpid()}"
            self._remove_left(cell)
            partial.mkdir()
            self._note("begin", cell)
            try:
                self._evaluate(cell, partial)
                lease.check()
                partial.rename(self.out / "cells" / cell.name)
            except Lost:
                shutil.rmtree(partial, ignore_errors=True)
                return True
            except Exception as error:  # the sweep goes on
                _log.warning("%s failed: %s", cell.name, error)
                reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                shutil.rmtree(partial, ignore_errors=True)
                record = {"cell": self._fields(cell), "reason": reason, "traceback": traceback.format_exc()}
                _write(self._failure(cell), json.dumps(record, indent=1))
                self._note("failed", cell, seconds=time.time() - start)
                return True
            self._note("done", cell, seconds=time.time() - start)
            _log.info("%s: done in %.1f s", cell.name, time.time() - start)
            return True

    def _evaluate(self, cell: Cell, folder: Path) -> None:
        if self._generator is None:
            self._generator = Generator.load(self.sweep.workdir, self.sweep.overrides, cell.step, self.sweep.weights)
        if self._generator.step != cell.step:
            self._generator.read_weights(self.sweep.workdir, cell.step, self.sweep.weights)
        generator = self._generator.with_settings(self._config(cell.settings))
        tokenizer_config = config_loading.parse(read_config(generator.config.tokenizer_workdir))
        subject = Subject(generator, tokenizer_config, cell.seed, tuple(self.prompts.get(cell.prompts, ())))
        metrics, clips = {}, []
        for name, measure in measures.chosen(generator.config.evaluate, self.sweep.measure).items():
            found, more = measure(subject)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            clips += more
        facts = provenance.of_file(generator.config, self.sweep.workdir, seed=cell.seed, step=cell.step)
        row = rows.Row(self._fields(cell), metrics, is_default=self._is_default(generator.config))
        rows.write(folder, row, clips, generator.config.generate.fps, facts)

    def _fields(self, cell: Cell) -> dict[str, Any]:
        return cell.to_dict() | {"weights": self.sweep.weights or "ema"}

    def _config(self, setting: tuple[tuple[str, str], ...]) -> Config:
        return config_loading.override(self.config, dict(setting))

    def _is_default(self, config: Config) -> bool:
        return (config.generate, config.evaluate) == (self.config.generate, self.config.evaluate)

    def _is_trained(self, found: list[Cell]) -> bool:
        """Return whether the run that is watched has come to its end."""
        return any(cell.step >= self.config.train.num_steps for cell in found)

    def _failure(self, cell: Cell) -> Path:
        return self.out / "failed" / f"{cell.name}.json"

    def _remove_left(self, cell: Cell) -> None:
        """Remove what killed workers have left of a cell, whose lease this one holds."""
        for path in (self.out / "partial").glob(f"{cell.name}.*"):
            shutil.rmtree(path, ignore_errors=True)

    def _note(self, event: str, cell: Cell, **more: Any) -> None:
        """Append a line to the log: one write, so that lines of several workers do not mix."""
        line = {"time": time.time(), "event": event, "cell": cell.name, "pid": os.getpid(), **more}
        with open(self.out / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def dry_run(worker: Worker) -> str:
    """Return the cells that are left, and what they will take."""
    found = worker.cells()
    left = [cell for cell in found if not worker.is_over(cell)]
    lines = [
        f"{'done' if worker.is_done(cell) else 'failed' if worker.is_over(cell) else 'to do':6} {cell.name}"
        for cell in found
    ]
    return "\n".join([*lines, f"{len(found)} cells, {len(left)} to do; {_estimate(worker, left)}"])


def _estimate(worker: Worker, left: list[Cell]) -> str:
    log = worker.out / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    seconds = [line["seconds"] for line in lines if line["event"] == "done"]
    if seconds:
        mean = sum(seconds) / len(seconds)
        return f"about {_hours(mean * len(left))} of one worker, as {len(seconds)} done cells took {mean:.1f} s each"
    from lumos.evaluation.cost import flops_of_clip, measured_rate

    rate, work = measured_rate(worker.config.model.dtype), 0.0
    for cell in left:
        config = worker._config(cell.settings)
        num = len(worker.prompts.get(cell.prompts, ())) or config.evaluate.num_prompts
        work += num * flops_of_clip(config)
    devices = jax.local_device_count()
    return (
        f"at least {_hours(work / rate / devices)} of one worker: {work:.2g} FLOPs of matmuls at {rate:.2g} FLOP/s, measured here, on "
        f"{devices} devices; compiling, reading and writing come on top"
    )


def _hours(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.1f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)
