"""Where a run can be watched: TensorBoard, Weights & Biases, MLflow, Trackio. `TRACKERS` has them by name.

Each runs in a thread of its own, so that training never waits for a server. One that fails costs one warning, and the run goes on
without it; `metrics.jsonl` has everything in any case. The run keeps its id in `workdir/run_id`, so that a start later on continues
the run of the tracker. Where the servers are, the trackers' own variables say (WANDB_MODE, MLFLOW_TRACKING_URI, ...).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import queue
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lumos import files
from lumos.errors import UserError

_log = logging.getLogger(__name__)
_WAITING = 10_000  # records that wait for a slow tracker before newer ones are left out
_PATIENCE = 60.0  # seconds that the end of a run waits for what is under way
_PROJECT = "lumos"  # where the tracker's own variable names none


@dataclasses.dataclass(frozen=True)
class About:
    """What a tracker is told of a run. id: stable over restarts. facts: of `lumos.provenance`."""

    workdir: Path
    id: str
    name: str
    config: dict[str, Any]
    facts: dict[str, Any]


class TensorBoard:
    """Scalars and contact sheets in `workdir/tensorboard`; in a bucket they are uploaded when the run ends or pauses."""

    package = "tensorboardX"

    def __init__(self, about: About):
        from tensorboardX import SummaryWriter

        self._folder = about.workdir / "tensorboard"
        self._spool = tempfile.TemporaryDirectory() if files.is_remote(about.workdir) else None
        place = self._spool.name if self._spool else str(self._folder)
        own = f".{uuid.uuid4().hex[:8]}"  # two starts in one second would write one file
        self._board = SummaryWriter(place, max_queue=1000, flush_secs=30, filename_suffix=own)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def samples(self, step: int, folder: Path) -> None:
        import numpy as np
        from PIL import Image

        picture = np.asarray(Image.open(folder / "contact_sheet.png").convert("RGB"))
        self._board.add_image("samples/contact_sheet", picture, step, dataformats="HWC")

    def close(self) -> None:
        self._board.close()
        if self._spool:
            files.put_tree(Path(self._spool.name), self._folder)
            self._spool.cleanup()


class Wandb:
    """Weights & Biases. Steps are a value of their own, for a run that goes back would be refused earlier steps."""

    package = "wandb"

    def __init__(self, about: About):
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(init_timeout=60, console="off", silent=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), id=about.id, name=about.name, resume="allow", settings=settings,
            config=about.config | {"provenance": about.facts}, allow_val_change=True, dir=_local_folder(about, "wandb"),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def samples(self, step: int, folder: Path) -> None:
        videos = [self._wandb.Video(str(path), format="mp4") for path in sorted(folder.glob("*.mp4"))]
        sheet = self._wandb.Image(str(folder / "contact_sheet.png"))
        self._run.log({"step": step, "samples/videos": videos, "samples/contact_sheet": sheet})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow. It gives runs ids of its own, so ours is a tag, by which the run is found again."""

    package = "mlflow"

    def __init__(self, about: About):
        # By default a server that is gone is asked for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        local = Path(_local_folder(about, "mlflow")).absolute()
        server = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._client = MlflowClient(server or f"sqlite:///{local}/mlflow.db")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found, artifacts = (
            self._client.get_experiment_by_name(name),
            None if server else (local / "mlartifacts").as_uri(),
        )
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifacts)
        runs = self._client.search_runs([experiment], f"tags.lumos_run = '{about.id}'", max_results=1)
        self._run = (
            runs[0] if runs else self._client.create_run(experiment, run_name=about.name, tags={"lumos_run": about.id})
        )
        self._id = self._run.info.run_id
        if runs:
            self._client.update_run(self._id, status="RUNNING")
        self._client.log_dict(self._id, about.config, "config.json")
        self._client.log_dict(self._id, about.facts, "provenance.json")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in values.items()])

    def samples(self, step: int, folder: Path) -> None:
        self._client.log_artifacts(self._id, str(folder), f"samples/{folder.name}")

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """Trackio: a database on this machine (TRACKIO_DIR), looked at with `trackio show`. A run's name is its id."""

    package = "trackio"

    def __init__(self, about: About):
        import trackio

        self._trackio = trackio
        config = about.config | {"provenance": about.facts}
        name = f"{about.name}-{about.id}"
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT), name=name, config=config, resume="allow", embed=False
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._trackio.log(values, step=step)

    def samples(self, step: int, folder: Path) -> None:
        videos = {f"samples/{path.stem}": self._trackio.Video(str(path)) for path in sorted(folder.glob("*.mp4"))}
        sheet = self._trackio.Image(str(folder / "contact_sheet.png"))
        self._trackio.log(videos | {"samples/contact_sheet": sheet}, step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Callable[[About], Any]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


def check_installed(names: tuple[str, ...]) -> None:
    """Raise UserError where the package of a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(TRACKERS[name].package) is None:
            raise UserError(f"config.train.trackers: {name} is not installed; pip install 'lumos-video[{name}]'")


class Background:
    """One tracker in a thread of its own. Nothing that it does raises or blocks."""

    def __init__(self, name: str, about: About):
        self._name, self._about, self._failed = name, about, False
        self._queue: queue.Queue[tuple[str, tuple] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of the tracker when those before have ended."""
        if self._failed:
            return
        try:
            self._queue.put_nowait((method, arguments))
        except queue.Full:
            self._fail(f"{_WAITING} records wait for it")

    def close(self) -> None:
        """Wait until everything is there, but not for ever."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._fail(f"it did not end within {_PATIENCE:g} s")

    def _run(self) -> None:
        try:
            tracker = TRACKERS[self._name](self._about)
            while (item := self._queue.get()) is not None:
                method, arguments = item
                getattr(tracker, method)(*arguments)
            tracker.close()
        except Exception as error:  # whatever their libraries raise
            self._fail(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _fail(self, reason: str) -> None:
        if not self._failed:
            _log.warning("tracker %s: %s; the run goes on without it", self._name, reason)
        self._failed = True


def run_id(workdir: Path) -> str:
    """Return the id of a run, which its first start gives it."""
    path = workdir / "run_id"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex[:12] + "\n")
    return files.read_text(path).strip()


def _local_folder(about: About, name: str) -> str:
    """Return a folder of this machine for the files of a tracker."""
    if files.is_remote(about.workdir):
        return tempfile.mkdtemp(prefix=f"lumos-{name}-")
    return str(about.workdir)  # they make a folder of their own in it
