"""What a run does with its evaluation split: it measures, and it makes samples to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lumos import files, provenance, sharding
from lumos.config import Config
from lumos.data.contact_sheet import contact_sheet
from lumos.data.text import TextTokenizer
from lumos.data.video_writer import write_video
from lumos.objective import Objective
from lumos.training.batches import open_split
from lumos.videos.prompts import read_prompts


class HeldOut:
    """Evaluates and samples one run. Every process calls it; process 0 writes the files."""

    def __init__(self, config: Config, workdir: Path, mesh: Mesh, objective: Objective):
        self._config, self._workdir, self._mesh, self._objective = config, workdir, mesh, objective
        self._evaluate_batch = jax.jit(objective.evaluate_batch)
        self._prompts = _encoded(config)

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

    def sample(self, params: Any, step: int) -> Path:
        """Write samples as MP4, and one contact sheet, to the folder of this step; return it.

        They are `num_samples` clips of the evaluation split, or one for each of `sample_prompts`.
        """
        with self.open() as pipeline:
            batch, fps = next(pipeline), pipeline.video_fps
        rows = {name: value[: self._config.train.num_samples] for name, value in batch.items()}
        rows = sharding.from_first_process(rows | self._prompts)
        videos, captions = self._objective.samples(params, rows)
        folder = self.samples(step)
        if jax.process_index():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        for i, (video, caption) in enumerate(zip(videos, captions)):
            facts = provenance.of_file(self._config, self._workdir, step=step, seed=self._config.seed + i)
            write_video(folder / f"{i:02d}.mp4", video, fps, {"prompt": caption} | facts)
        with files.written(folder / "contact_sheet.png") as path:
            contact_sheet(videos, captions).save(path, format="PNG")
        return folder

    def samples(self, step: int) -> Path:
        """Return the folder of the samples after `step` updates."""
        return self._workdir / "samples" / f"step_{step:08d}"


def _encoded(config: Config) -> dict[str, np.ndarray]:
    """Return the text of a batch of `train.sample_prompts`; nothing where there are none. Raises UserError."""
    if not config.train.sample_prompts:
        return {}
    text = TextTokenizer(config.text.model)
    rows = [text.encode(prompt, config.sequence.text_length) for prompt in read_prompts(config.train.sample_prompts)]
    return {"text": np.stack([ids for ids, _ in rows]), "text_length": np.array([n for _, n in rows], np.int32)}
