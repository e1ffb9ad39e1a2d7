"""The training loop, for every objective: restore, then fetch, step, log, evaluate, sample, save.

Metrics are read one step late, so the device never waits for the host. What can go wrong has its own file: bad_steps
(numbers), and under runtime stop_requests (SIGTERM) and watchdog (hangs); checkpoint has what survives all of them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lumos import files, provenance, sharding
from lumos.checkpoint import Checkpointer
from lumos.config import Config
from lumos.errors import Preempted
from lumos.runtime import processes
from lumos.runtime.goodput import Goodput
from lumos.runtime.metrics_writer import MetricsWriter
from lumos.runtime.one_run import one_run
from lumos.runtime.profiler import Profiler
from lumos.runtime.speed import SpeedMeter
from lumos.runtime.stop_requests import SAVE, STOP, Requests
from lumos.runtime.watchdog import Watchdog
from lumos.training.bad_steps import BadSteps
from lumos.training.batches import check_batch_size, open_split
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.held_out import HeldOut
from lumos.training.initialize import initial_state
from lumos.training.match_data import match_data
from lumos.training.optimizer import make_schedule
from lumos.training.step import make_train_step

_log = logging.getLogger(__name__)

# Phase of the watchdog -> bucket of the goodput clock.
_BUCKETS = {"restore": "init", "compile": "compile", "step": "step", "save": "checkpoint", "evaluate": "eval"}


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
        workdir = files.path(workdir)
        watchdog.configure(config.train.deadlines, workdir)
        processes.join()
        processes.census()
        config = match_data(config)
        workdir.mkdir(parents=True, exist_ok=True)
        mesh = sharding.make_mesh(config.mesh)
        check_batch_size(config, mesh)
        with one_run(workdir), jax.set_mesh(mesh), Requests(mesh) as requests:
            return _Run(config, workdir, mesh, watchdog, requests, init_from, fresh, profile_at).run()


@dataclasses.dataclass
class _InFlight:
    """A dispatched step whose metrics nobody has read yet."""

    step: int  # finished updates before it
    batch_number: int
    batch: dict[str, np.ndarray]  # this process's rows
    metrics: dict[str, jax.Array]
    request: jax.Array | int


class _Run:
    def __init__(self, config: Config, workdir: Path, mesh, watchdog, requests, init_from, fresh, profile_at):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.watchdog, self.requests, self.profile_at = watchdog, requests, profile_at
        self.goodput = Goodput(workdir / "goodput.json" if jax.process_index() == 0 else None)
        watchdog.enter("restore")
        self.checkpointer = Checkpointer(
            workdir, keep=config.train.keep_checkpoints, keep_every=config.train.keep_every
        )
        self.objective = make_objective(config, self.checkpointer.read_facts())
        self.held_out = HeldOut(config, workdir, mesh, self.objective)
        self.held_out.open().close()  # what data lack shows now: before anything compiles, and not at step 500
        optimizer = make_objective_optimizer(self.objective, config)
        self.schedule = make_schedule(config.optimizer, config.train.num_steps)
        self.restore = lambda step=None: initial_state(
            config, self.objective, optimizer, mesh, self.checkpointer, init_from, fresh, step=step
        )
        self.state, self.restored = self.restore()
        self.start = self.restored["step"]
        if self.start:
            _log.info("resuming %s from step %d", workdir, self.start)
        self.main_process = jax.process_index() == 0
        if self.main_process:
            config.save(workdir / "config.json")
        self.provenance = provenance.begin(config, workdir, self.restored)
        self.train_step = make_train_step(self.objective, optimizer, config, mesh)
        self.bad_steps = BadSteps(config, workdir, self.checkpointer, self.objective.new_terms_at, self.provenance)
        self.health = self.bad_steps.health
        self.in_flight: deque[_InFlight] = deque()

    def run(self) -> dict[str, Any]:
        total, results, shapes, step = self.config.train.num_steps, {}, set(), self.start
        self.pipeline = open_split(self.config, self.mesh, self.config.data.split, self.restored)
        self.writer = MetricsWriter(
            self.workdir, self.config.to_dict(), self.provenance, start_step=step, active=self.main_process
        )
        self.speed = SpeedMeter(self.objective.flops_per_step, step)
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
                self.speed.count(batch, self.pipeline.wait_ms)
                self.writer.advance()
                step += 1
                self.checkpointer.check()
                # Read the step before: the device works on this one meanwhile. A new shape is waited for, as other
                # processes may take longer to compile it.
                request = self._settle(leave=0 if new else 1)
                work = self._due(step, request)
                if work:
                    self._settle(leave=0)
                if self.health.hopeless:
                    step = self._go_back()
                    continue
                for phase, do in work:
                    self._enter(phase, f"step {step}")
                    results = do(step) or results
                if work:
                    self.speed.restart(step)
                if request == STOP:
                    self.checkpointer.wait()
                    raise Preempted(f"asked to stop: step {step} is saved, start the same command again to go on")
            self._enter("save", f"step {step}")
            self.checkpointer.wait()
            self.writer.write(total, "goodput", self.goodput.shares())
            if self.start >= total:
                self._enter("evaluate")
                results = self.evaluate(total)
                if self.config.train.num_samples and not self.held_out.samples(total).exists():
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

    def _due(self, done: int, request: int) -> list:
        """Return what is done after this step, as (phase, function), in this order. An interval of 0 = only at the end."""
        c = self.config.train
        works = [("evaluate", self.evaluate, c.eval_every), ("save", self.save, c.checkpoint_every)]
        if c.num_samples:  # after saving: what generation fails at must not cost the steps before
            works.append(("evaluate", self.sample, c.sample_every))
        if request == STOP:
            return [("save", self.save)]
        return [
            (phase, do)
            for phase, do, every in works
            if done == c.num_steps or (every and done % every == 0) or (request == SAVE and do == self.save)
        ]

    def _settle(self, leave: int) -> int:
        """Read the metrics of all but the newest `leave` steps: judge, log. Return what was requested in them."""
        request = 0
        while len(self.in_flight) > leave:
            item = self.in_flight.popleft()
            values = {name: float(value) for name, value in jax.device_get(item.metrics).items()}
            request = max(request, int(item.request))
            self.bad_steps.judge(item, values, self.pipeline.plan)
            done = item.step + 1
            if done % self.config.train.log_every == 0 or done == self.config.train.num_steps:
                extra = {"learning_rate": float(self.schedule(item.step)), "bad_steps": self.health.num_bad}
                extra["replaced_clips"] = self.pipeline.num_replaced
                self.writer.write(done, "train", values | extra | self.speed.take(done))
        return request

    def _go_back(self) -> int:
        """After too many bad steps: restore the last good checkpoint and leave out the data since. Return its step."""
        self._settle(leave=0)
        self._enter("restore")
        good = self.bad_steps.go_back(self.pipeline.step)
        self.state = None  # two states may not fit
        self.state, _ = self.restore(good)
        self.speed.restart(good)
        return good

    def save(self, step: int) -> None:
        """Start an asynchronous checkpoint."""
        self.goodput.save()
        self.writer.write(step, "goodput", self.goodput.shares())
        self.writer.flush()
        meta = {"data_step": self.pipeline.step, "data_plan": self.pipeline.plan}
        meta |= {"config": self.config.to_dict(), "provenance": self.provenance, "objective": self.objective.facts}
        self.checkpointer.save(step, self.state, meta, good=self.health.healthy)
        self.requests.saved()
        self.bad_steps.saved()

    def evaluate(self, step: int) -> dict[str, Any]:
        """Measure on the evaluation split, with the EMA weights where there are any."""
        results = self.held_out.evaluate(self.state.eval_params)
        self.writer.write(step, "eval", results)
        return results

    def sample(self, step: int) -> None:
        self.writer.samples(step, self.held_out.sample(self.state.eval_params, step))
