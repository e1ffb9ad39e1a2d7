"""What trackers get of a sweep: the numbers of each cell at the step of its checkpoint, one run of the tracker for each setting.

A worker writes what is done and not yet marked as written, under a lease. One that is killed in between leaves a cell without its mark,
whose numbers come once more: the same at the same step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from lumos import provenance
from lumos.config import Config
from lumos.evaluation import rows
from lumos.evaluation.cells import Cell
from lumos.leases import Leases
from lumos.runtime.metrics_writer import MetricsWriter


def write(out: Path, done: Iterable[Cell], leases: Leases, config: Config) -> None:
    """Write the numbers of the cells that are not written yet into `out`/curves/<settings>/ and to `config.train.trackers`."""
    new = [cell for cell in done if not _mark(out, cell).exists()]
    for curve, members in groupby(sorted(new, key=lambda cell: (cell.curve, cell.step)), key=lambda cell: cell.curve):
        with leases.hold(f"curve-{curve}") as lease:
            members = [cell for cell in members if not _mark(out, cell).exists()]
            if lease is None or not members:  # another worker does it
                continue
            folder = out / "curves" / curve
            folder.mkdir(parents=True, exist_ok=True)
            about = config.to_dict() | {"name": f"{config.name} {curve}"}
            writer = MetricsWriter(folder, about, provenance.describe(config), start_step=members[0].step)
            try:
                for cell in members:
                    content = json.loads((out / "cells" / cell.name / rows.NAME).read_text())
                    values = {key: metric["value"] for key, metric in content["metrics"].items()}
                    scalars = {key: value for key, value in values.items() if isinstance(value, float)}
                    writer.write(cell.step, "sweep", scalars)
            finally:
                writer.close()
            for cell in members:
                _mark(out, cell).touch()


def _mark(out: Path, cell: Cell) -> Path:
    return out / "curves" / cell.curve / f"step_{cell.step:08d}.written"
