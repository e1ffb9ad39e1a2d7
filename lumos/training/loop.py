"""The training loop, for every task: restore, then fetch, step, log, evaluate, sample, save."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lumos import sharding
from lumos.checkpoint import Checkpointer
from lumos.config import Config
from lumos.data.pipeline import make_pipeline
from lumos.data.video import write_video
from lumos.errors import UserError
from lumos.evaluation.contact_sheet import contact_sheet
from lumos.training import flops
from lumos.training.metrics import MetricsWriter
from lumos.training.optimizer import make_schedule
from lumos.training.state import abstract_state, create_state
from lumos.training.step import Task, make_train_step
from lumos.training.tasks import make_task, make_task_optimizer, resolve

_log = logging.getLogger(__name__)


def train(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Train until `train.num_steps` updates are done, resuming from the latest checkpoint. Returns the last evaluation."""
    config, workdir = resolve(config), Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(config.mesh)
    if config.data.batch_size % (sharding.num_batch_shards(mesh) * config.train.accumulation):
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} must be a multiple of the batch shards of the mesh "
            f"({sharding.num_batch_shards(mesh)}) times config.train.accumulation={config.train.accumulation}"
        )
    with jax.set_mesh(mesh):
        return _Run(config, workdir, mesh).run()


class _Run:
    def __init__(self, config: Config, workdir: Path, mesh):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.task: Task = make_task(config)
        optimizer = make_task_optimizer(self.task, config)
        self.schedule = make_schedule(config.optimizer, config.train.num_steps)
        has_ema = config.optimizer.ema_decay > 0
        self.checkpointer = Checkpointer(workdir, keep=config.train.keep_checkpoints)
        if self.checkpointer.latest_step() is None:
            params = self.task.initial_params() if config.initial_workdir else None
            self.state = create_state(
                self.task.definition, optimizer, mesh, seed=config.seed, ema=has_ema, params=params
            )
            self.start = 0
        elif not self.checkpointer.has_optimizer():
            abstract = abstract_state(self.task.definition, optimizer, mesh, ema=False).params
            params = self.checkpointer.restore_params(abstract)
            self.state = create_state(
                self.task.definition, optimizer, mesh, seed=config.seed, ema=has_ema, params=params
            )
            self.start = 0
            _log.info("fine-tuning the weights in %s", workdir)
        else:
            abstract = abstract_state(self.task.definition, optimizer, mesh, ema=has_ema)
            self.state, meta = self.checkpointer.restore(abstract)
            self.start = meta["step"]
            _log.info("resuming %s from step %d", workdir, self.start)
        self.main_process = jax.process_index() == 0
        if self.main_process:
            config.save(workdir / "config.json")
        self.train_step = make_train_step(self.task, optimizer, config, mesh)
        self.evaluate_batch = jax.jit(self.task.evaluate_batch)

    def run(self) -> dict[str, Any]:
        c, total = self.config.train, self.config.train.num_steps
        pipeline = self._pipeline(self.config.data.split, start_step=self.start)
        self.writer = MetricsWriter(
            self.workdir, total_steps=total, start_step=self.start, name=self.config.name, active=self.main_process
        )
        batches, pending, results = iter(pipeline), None, {}
        self.meter = _Meter(self.task.flops_per_step(), self.start)
        try:
            for step in range(self.start, total):
                batch = sharding.put_batch(self.mesh, next(batches))
                self.state, metrics = self.train_step(self.state, batch)
                self.meter.count(_num_positions(batch), pipeline.wait_ms)
                self.writer.advance()
                if pending:  # metrics of the step before: fetching them does not hold up the device
                    self._log(*pending)
                done, pending = step + 1, None
                if done % c.log_every == 0 or done == total:
                    pending = (done, metrics)
                due = [
                    work for work, every in self._schedule_of_work() if done == total or (every and done % every == 0)
                ]
                if due:
                    if pending:
                        self._log(*pending)
                        pending = None
                    for work in due:
                        results = work(done) or results
                    self.meter.restart(done)
            self.checkpointer.wait()
            if self.start >= total:
                results = self.evaluate(total)
        finally:
            pipeline.close()
            self.writer.close()
            self.checkpointer.close()
        return results

    def _schedule_of_work(self):
        """What is done between steps, with its interval (0 = only at the end), in this order."""
        c = self.config.train
        yield self.evaluate, c.eval_every
        if c.num_samples:
            yield self.sample, c.sample_every
        yield self.save, c.checkpoint_every

    def _log(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        speed = self.meter.take(step)
        self.writer.write(step, "train", values | {"learning_rate": float(self.schedule(step - 1))} | speed)

    def save(self, step: int) -> None:
        """Start an asynchronous checkpoint."""
        self.checkpointer.save(step, self.state, {"data_step": step})

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
        batch = next(iter(self._batches(self.config.data.eval_split, 1)))
        videos, captions = self.task.samples(self.state.eval_params, {k: v[:num] for k, v in batch.items()})
        if not self.main_process:
            return
        folder = self.workdir / "samples" / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, (video, caption) in enumerate(zip(videos, captions)):
            write_video(folder / f"{i:02d}.mp4", video, self.config.generate.fps, {"prompt": caption})
        contact_sheet(videos, captions).save(folder / "contact_sheet.png")

    def _batches(self, split: str, num: int):
        pipeline = self._pipeline(split, train=False)
        try:
            for _, batch in zip(range(num), pipeline):
                yield batch
        finally:
            pipeline.close()

    def _pipeline(self, split: str, start_step: int = 0, train: bool = True):
        return make_pipeline(
            self.config,
            split,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            start_step=start_step,
            train=train,
            divisor=sharding.num_batch_shards(self.mesh) * (self.config.train.accumulation if train else 1),
        )


def _num_positions(batch: dict[str, jax.Array]) -> int:
    """Return the tokens (transformer) or pixels (tokenizer) of a batch, over all processes."""
    return batch["tokens"].size if "tokens" in batch else batch["video"].size // 3


class _Meter:
    """Speed between two log lines: step time, data wait, throughput, mask-exact MFU.

    Times are taken where metrics arrive from the device, so they are those of finished steps.
    """

    def __init__(self, flops_per_step: float, step: int):
        self._flops = flops_per_step
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start a new window after `step`: time spent on evaluation and saving is not step time."""
        self._start, self._step = time.perf_counter(), step
        self._dispatched: list[tuple[int, float]] = []

    def count(self, positions: int, wait_ms: float) -> None:
        """Count a dispatched step."""
        self._dispatched.append((positions, wait_ms))

    def take(self, step: int) -> dict[str, float]:
        """Return the averages over the steps from the last window to `step`, and start the next one."""
        now, steps = time.perf_counter(), step - self._step
        window, self._dispatched = self._dispatched[:steps], self._dispatched[steps:]
        seconds, self._start, self._step = now - self._start, now, step
        peak = flops.peak_flops_per_device() * jax.device_count()
        return {
            "step_time_ms": 1e3 * seconds / steps,
            "data_wait_ms": sum(wait for _, wait in window) / steps,
            "positions_per_s": sum(positions for positions, _ in window) / seconds,
            "mfu": self._flops * steps / seconds / peak,
        }
