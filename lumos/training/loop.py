"""The training loop, for every task: restore, then fetch, step, log, evaluate, sample, save.

Metrics are read one step late, so the device never waits for the host. What can go wrong has its own file: requests
(SIGTERM), health (numbers), replay (dumps), watchdog (hangs), checkpoint (what survives all of them).
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lumos import processes, provenance, sharding
from lumos.checkpoint import Checkpointer
from lumos.config import Config
from lumos.data.pipeline import make_pipeline
from lumos.data.video_writer import write_video
from lumos.errors import Preempted, UserError
from lumos.evaluation.contact_sheet import contact_sheet
from lumos.training import replay
from lumos.training.goodput import Goodput
from lumos.training.health import HealthMonitor
from lumos.training.initialize import initial_state
from lumos.training.meter import Meter
from lumos.training.metrics import MetricsWriter
from lumos.training.optimizer import make_schedule
from lumos.training.profiler import Profiler
from lumos.training.requests import SAVE, STOP, Requests
from lumos.training.step import Task, make_train_step
from lumos.training.tasks import make_task, make_task_optimizer, resolve
from lumos.training.watchdog import Watchdog

_log = logging.getLogger(__name__)

# Phase of the watchdog -> bucket of the goodput clock.
_BUCKETS = {"restore": "init", "compile": "compile", "step": "step", "save": "checkpoint", "evaluate": "eval"}
_MAX_REWINDS = 3  # in a row, without a checkpoint in between


def train(
    config: Config,
    workdir: str | Path,
    *,
    init_from: str | Path = "",
    fresh: tuple[str, ...] = (),
    watchdog: Watchdog | None = None,
    profile_at: int = 0,
) -> dict[str, Any]:
    """Train until `train.num_steps` updates are done, resuming from the latest checkpoint.

    Args:
      init_from: workdir whose newest weights (EMA where there is one) a new run starts from.
      fresh: parameters, such as "lm_head", that start anew even so: those whose shape has changed.
      watchdog: one that runs since the start of the process.
      profile_at: step from which three steps are profiled into `workdir/profile`; 0 = only on SIGUSR1.

    Returns:
      The last evaluation.

    Raises:
      UserError: config, data or workdir cannot be used, saving failed, or the numbers went bad.
      Preempted: SIGTERM came; the state is saved.
    """
    watchdog = watchdog or Watchdog()
    with watchdog:
        workdir = Path(workdir)
        watchdog.configure(config.train.deadlines, workdir)
        processes.join()
        processes.census()
        config = resolve(config)
        workdir.mkdir(parents=True, exist_ok=True)
        mesh = sharding.make_mesh(config.mesh)
        if config.data.batch_size % (sharding.num_batch_shards(mesh) * config.train.accumulation):
            raise UserError(
                f"config.data.batch_size={config.data.batch_size} must be a multiple of the batch shards of the mesh "
                f"({sharding.num_batch_shards(mesh)}) times config.train.accumulation={config.train.accumulation}"
            )
        with jax.set_mesh(mesh), Requests(mesh) as requests:
            return _Run(config, workdir, mesh, watchdog, requests, init_from, fresh, profile_at).run()


@dataclasses.dataclass
class _InFlight:
    """A dispatched step whose metrics nobody has read yet."""

    step: int  # finished updates before it
    batch_number: int
    batch: dict[str, np.ndarray]  # this process's rows
    metrics: dict[str, jax.Array]
    wish: jax.Array | int


class _Run:
    def __init__(self, config: Config, workdir: Path, mesh, watchdog, requests, init_from, fresh, profile_at):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.watchdog, self.requests, self.profile_at = watchdog, requests, profile_at
        self.goodput = Goodput(workdir / "goodput.json" if jax.process_index() == 0 else None)
        watchdog.enter("restore")
        self.task: Task = make_task(config)
        optimizer = make_task_optimizer(self.task, config)
        self.schedule = make_schedule(config.optimizer, config.train.num_steps)
        self.checkpointer = Checkpointer(
            workdir, keep=config.train.keep_checkpoints, keep_every=config.train.keep_every
        )
        self.restore = lambda step=None: initial_state(
            config, self.task.definition, optimizer, mesh, self.checkpointer, init_from, fresh, step=step
        )
        self.state, self.restored = self.restore()
        self.start = self.restored["step"]
        if self.start:
            _log.info("resuming %s from step %d", workdir, self.start)
        self.main_process = jax.process_index() == 0
        self.provenance = provenance.describe(config)
        data = self.restored.get("provenance", self.provenance)["data"]
        if data != self.provenance["data"]:
            _log.warning(
                "config.data.path, or what lies there, has changed since step %d (fingerprint %s, now %s): the run goes on with these "
                "data; if that is not meant, give the old ones", self.start, data, self.provenance["data"],
            )  # fmt: skip
        if self.main_process:
            config.save(workdir / "config.json")
            provenance.record(workdir / "runs.jsonl", self.provenance | {"start_step": self.start})
        self.train_step = make_train_step(self.task, optimizer, config, mesh)
        self.evaluate_batch = jax.jit(self.task.evaluate_batch)
        self.health, self.in_flight, self.rewinds = HealthMonitor(), deque(), 0

    def run(self) -> dict[str, Any]:
        total, results, shapes, step = self.config.train.num_steps, {}, set(), self.start
        self._pipeline(self.config.data.eval_split).close()  # what it lacks shows now, not at step 500
        self.pipeline = self._pipeline(self.config.data.split, self.restored)
        self.writer = MetricsWriter(
            self.workdir, total_steps=total, start_step=step, name=self.config.name, active=self.main_process
        )
        self.meter = Meter(self.task.flops_per_step, step)
        profiler = Profiler(self.workdir, at=self.profile_at)
        try:
            if int(self.requests.ask()) == STOP:
                raise Preempted(f"asked to stop before step {step + 1}")
            while step < total:
                profiler.step(step)
                self._enter("step", f"step {step + 1}")
                self.goodput.enter("data")
                number, rows = self.pipeline.step, next(self.pipeline)
                shape = tuple(rows[name].shape for name in sorted(rows))
                if new := shape not in shapes:
                    shapes.add(shape)
                    self._enter("compile", f"step {step + 1}")
                else:
                    self.goodput.enter("step")
                batch = sharding.put_batch(self.mesh, rows)
                self.state, metrics = self.train_step(self.state, batch)
                self.in_flight.append(_InFlight(step, number, rows, metrics, self.requests.ask()))
                self.meter.count(batch, self.pipeline.wait_ms)
                self.writer.advance()
                step += 1
                self.checkpointer.check()
                # Read the step before: the device works on this one meanwhile. A new shape is waited for, as other
                # processes may take longer to compile it.
                wish = self._settle(leave=0 if new else 1)
                work = self._due(step, wish)
                if work:
                    self._settle(leave=0)
                if self.health.hopeless:
                    step = self._go_back_or_stop()
                    continue
                for phase, do in work:
                    self._enter(phase, f"step {step}")
                    results = do(step) or results
                if work:
                    self.meter.restart(step)
                if wish == STOP:
                    self.checkpointer.wait()
                    raise Preempted(f"asked to stop: step {step} is saved, start the same command again to go on")
            self._enter("save", f"step {step}")
            self.checkpointer.wait()
            self.writer.write(total, "goodput", self.goodput.shares())
            if self.start >= total:
                self._enter("evaluate")
                results = self.evaluate(total)
                if self.config.train.num_samples and not self._samples(total).exists():
                    self.sample(total)
        finally:
            profiler.close()
            self.goodput.save()
            self.pipeline.close()
            self.writer.close()
            self.checkpointer.close()
        return results

    def _enter(self, phase: str, what: str = "") -> None:
        """Say what comes next, to the watchdog and to the goodput clock."""
        self.watchdog.enter(phase, what)
        self.goodput.enter(_BUCKETS[phase])

    def _due(self, done: int, wish: int) -> list:
        """Return what is done after this step, as (phase, function), in this order. An interval of 0 = only at the end."""
        c = self.config.train
        works = [("evaluate", self.evaluate, c.eval_every), ("save", self.save, c.checkpoint_every)]
        if c.num_samples:  # after saving: what generation fails at must not cost the steps before
            works.append(("evaluate", self.sample, c.sample_every))
        if wish == STOP:
            return [("save", self.save)]
        return [
            (phase, do)
            for phase, do, every in works
            if done == c.num_steps or (every and done % every == 0) or (wish == SAVE and do == self.save)
        ]

    def _settle(self, leave: int) -> int:
        """Read the metrics of all but the newest `leave` steps: judge, log. Return what was wished for in them."""
        wish = 0
        while len(self.in_flight) > leave:
            item = self.in_flight.popleft()
            values = {name: float(value) for name, value in jax.device_get(item.metrics).items()}
            wish = max(wish, int(item.wish))
            if item.step in getattr(self.task, "new_terms_at", ()):
                self.health.forget()
            reason = self.health.observe(item.step, item.batch_number, values["loss"], values["grad_norm"])
            if reason:
                _log.warning("step %d, batch %d: %s", item.step + 1, item.batch_number, reason)
                self.checkpointer.wait()
                replay.write_dump(
                    self.workdir,
                    self.config,
                    self.checkpointer,
                    item,
                    values,
                    reason,
                    self.provenance,
                    self.pipeline.plan,
                )
            done = item.step + 1
            if done % self.config.train.log_every == 0 or done == self.config.train.num_steps:
                extra = {"learning_rate": float(self.schedule(item.step)), "bad_steps": self.health.num_bad}
                extra["replaced_clips"] = self.pipeline.num_replaced
                self.writer.write(done, "train", values | extra | self.meter.take(done))
        return wish

    def _go_back_or_stop(self) -> int:
        """Too many bad steps: stop, or restore the last good checkpoint and leave out the data since. Return its step."""
        self._settle(leave=0)
        good, reason = self.checkpointer.last_good_step(), self.health.describe()
        if self.config.train.on_bad_steps == "stop" or good is None or self.rewinds == _MAX_REWINDS:
            raise UserError(
                f"{reason}. The last good checkpoint is {'none' if good is None else f'step {good}'}; the batches are in "
                f"{self.workdir / 'dumps'}: look with lumos replay, or set config.train.on_bad_steps=rewind to leave them out"
            )
        self.rewinds += 1
        self._enter("restore", f"step {good}")
        _log.warning("%s; back to step %d, going on with batch %d", reason, good, self.pipeline.step)
        self.checkpointer.delete_after(good)
        self.state = None  # two states may not fit
        self.state, _ = self.restore(good)
        self.health.forget()
        self.meter.restart(good)
        return good

    def save(self, step: int) -> None:
        """Start an asynchronous checkpoint."""
        self.goodput.save()
        meta = {"data_step": self.pipeline.step, "data_plan": self.pipeline.plan}
        meta |= {"config": self.config.to_dict(), "provenance": self.provenance}
        self.checkpointer.save(step, self.state, meta, good=self.health.healthy)
        self.requests.saved()
        if self.health.healthy:
            self.rewinds = 0

    def evaluate(self, step: int) -> dict[str, Any]:
        """Average `eval_batches` batches of the evaluation split, with the EMA weights where there are any."""
        sums = None
        for batch in self._batches(self.config.data.eval_split, self.config.train.eval_batches):
            part = self.evaluate_batch(self.state.eval_params, sharding.put_batch(self.mesh, batch))
            sums = part if sums is None else jax.tree.map(lambda a, b: a + b, sums, part)
        results = self.task.summarize(jax.tree.map(np.asarray, jax.device_get(sums)))
        self.writer.write(step, "eval", results)
        return results

    def sample(self, step: int) -> None:
        """Write samples of the evaluation split as MP4 and one contact sheet under `samples/`."""
        num = self.config.train.num_samples
        with self._pipeline(self.config.data.eval_split) as pipeline:
            batch, fps = next(pipeline), pipeline.video_fps
        rows = sharding.from_first_process({name: value[:num] for name, value in batch.items()})
        videos, captions = self.task.samples(self.state.eval_params, rows)
        if not self.main_process:
            return
        folder = self._samples(step)
        folder.mkdir(parents=True, exist_ok=True)
        for i, (video, caption) in enumerate(zip(videos, captions)):
            facts = provenance.of_file(self.config, self.workdir, step=step, seed=self.config.seed + i)
            write_video(folder / f"{i:02d}.mp4", video, fps, {"prompt": caption} | facts)
        contact_sheet(videos, captions).save(folder / "contact_sheet.png")

    def _samples(self, step: int) -> Path:
        return self.workdir / "samples" / f"step_{step:08d}"

    def _batches(self, split: str, num: int):
        pipeline = self._pipeline(split)
        try:
            for _, batch in zip(range(num), pipeline):
                yield batch
        finally:
            pipeline.close()

    def _pipeline(self, split: str, saved: dict[str, Any] | None = None):
        """Open a split: for training, from where a checkpoint says, or for evaluation."""
        index, count = sharding.batch_part(self.mesh)
        return make_pipeline(
            self.config,
            split,
            process_index=index,
            process_count=count,
            start_step=saved["data_step"] if saved else 0,
            saved=saved,
            train=saved is not None,
            divisor=sharding.num_batch_shards(self.mesh) * (self.config.train.accumulation if saved else 1),
        )
