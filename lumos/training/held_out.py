"""What a run does with its evaluation split: it measures, and it makes samples to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lumos import provenance, sharding
from lumos.config import Config
from lumos.data.contact_sheet import contact_sheet
from lumos.data.video_writer import write_video
from lumos.objective import Objective
from lumos.training.batches import open_split


class HeldOut:
    """Evaluates and samples one run. Every process calls it; process 0 writes the files."""

    def __init__(self, config: Config, workdir: Path, mesh: Mesh, objective: Objective):
        self._config, self._workdir, self._mesh, self._objective = config, workdir, mesh, objective
        self._evaluate_batch = jax.jit(objective.evaluate_batch)

    def open(self):
        """Open the evaluation split from its beginning."""
        return open_split(self._config, self._mesh, self._config.data.eval_split)

    def evaluate(self, params: Any) -> dict[str, Any]:
        """Return the metrics of `eval_batches` batches."""
        sums = None
        with self.open() as pipeline:
            for _, batch in zip(range(self._config.train.eval_batches), pipeline):
                part = self._evaluate_batch(params, sharding.put_batch(self._mesh, batch))
                sums = part if sums is None else jax.tree.map(lambda a, b: a + b, sums, part)
        return self._objective.summarize(jax.tree.map(np.asarray, jax.device_get(sums)))

    def sample(self, params: Any, step: int) -> None:
        """Write `num_samples` samples as MP4, and one contact sheet, to the folder of this step."""
        num = self._config.train.num_samples
        with self.open() as pipeline:
            batch, fps = next(pipeline), pipeline.video_fps
        rows = sharding.from_first_process({name: value[:num] for name, value in batch.items()})
        videos, captions = self._objective.samples(params, rows)
        if jax.process_index():
            return
        folder = self.samples(step)
        folder.mkdir(parents=True, exist_ok=True)
        for i, (video, caption) in enumerate(zip(videos, captions)):
            facts = provenance.of_file(self._config, self._workdir, step=step, seed=self._config.seed + i)
            write_video(folder / f"{i:02d}.mp4", video, fps, {"prompt": caption} | facts)
        contact_sheet(videos, captions).save(folder / "contact_sheet.png")

    def samples(self, step: int) -> Path:
        """Return the folder of the samples after `step` updates."""
        return self._workdir / "samples" / f"step_{step:08d}"
