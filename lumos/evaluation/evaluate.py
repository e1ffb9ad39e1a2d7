"""`lumos evaluate`: a workdir as it is, every measure, and the page of the report."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lumos
from lumos import config_loading, files, provenance
from lumos.checkpoint import read_config
from lumos.checkpoint_steps import resolve
from lumos.config import Config
from lumos.errors import UserError
from lumos.evaluation import i3d, latent_actions, measures, report, rows
from lumos.evaluation.long_video import frames_per_part
from lumos.evaluation.metric import Metric
from lumos.evaluation.reconstruction import reconstruction
from lumos.evaluation.subject import Clip, Subject
from lumos.videos.generator import Generator
from lumos.videos.prompts import read_prompts
from lumos.weights import release

_log = logging.getLogger(__name__)
_MEASURES = {
    "all": (),
    "tokenizer": (),
    "world": ("likelihood", "world"),
    "long": ("long",),
}  # () = what there are data for
_OF_CLIPS = ("continuation", "fvd")  # measures that compare with the clips of the tokenizer's run


def evaluate(
    workdir: str | Path,
    out: str | Path,
    overrides: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    what: str = "all",
    step: str = "",
    weights: str = "",
    prompts: str = "",
) -> dict[str, Any]:
    """Evaluate a training workdir into `out`: `results.jsonl`, `row.json`, videos, contact sheets and `index.html`.

    A tokenizer run gets reconstruction metrics, one of latent actions those of its codes. A transformer run gets those of its tokenizer, its masked
    cross-entropy per latent frame, samples, on moving_shapes how well held-out prompts are followed, and, where
    `evaluate.num_given` says so, how well clips are continued. `what="tokenizer"` stops after the tokenizer; `what="world"` plays a
    model whose frames come with actions, and measures how it answers; `what="long"` measures videos of `evaluate.long_seconds` alone. A release brings no data:
    what needs them is left out, with a line that says so.

    Every process of a run calls it; process 0 writes. With several steps (see `checkpoint_steps.resolve`) each has a folder of its
    own, and the page shows all. `prompts` is a file of prompts (`videos.prompts`), "" for held-out ones.
    """
    if what not in _MEASURES:
        raise UserError(f"what={what!r}; allowed: {', '.join(_MEASURES)}")
    out, texts = Path(out), tuple(read_prompts(prompts)) if prompts else ()
    read_config(workdir)
    config = config_loading.load(str(files.path(workdir) / "config.json"), overrides)
    if config.task != "transformer" or what == "tokenizer":
        if given := [
            f"--{name}" for name, value in (("prompts", prompts), ("step", step), ("weights", weights)) if value
        ]:
            raise UserError(
                f"{given[0]} is for the generator; other runs are evaluated alone, with their newest weights"
            )
        if config.task == "actions":
            return _evaluate_actions(config, files.path(workdir), out, seed)
        return _evaluate_tokenizer(config, files.path(workdir), out, seed)
    steps = resolve(workdir, step) if step or not release.is_release(workdir) else [None]
    generator = Generator.load(workdir, overrides, steps[0], weights)
    if generator.config.sequence.streams and what != "world":
        raise UserError(f"{workdir}: the frames of this model come with actions; evaluate it with --what=world")
    cell = {"prompts": Path(prompts).stem} if prompts else {}
    run = _Run(generator, files.path(workdir), seed, texts, cell, _MEASURES[what])
    folders = [out / f"step_{number:08d}" if len(steps) > 1 else out for number in steps]
    for number, folder in zip(steps, folders):
        if number not in (None, generator.step):
            generator.read_weights(workdir, number, weights)
        results = run.evaluate(folder)
    if len(steps) > 1 and jax.process_index() == 0:
        report.write(out, [out])
    return results | {"report": str(out / "index.html")}


class _Run:
    """A transformer run whose checkpoints are evaluated one after the other; their tokenizer is evaluated once."""

    def __init__(
        self,
        generator: Generator,
        workdir: Path,
        seed: int,
        prompts: tuple[str, ...],
        cell: dict[str, Any],
        names: tuple[str, ...] = (),
    ):
        self.generator, self.workdir, self.seed, self.prompts, self.cell = generator, workdir, seed, prompts, cell
        self.names = names
        self.tokenizer_workdir = files.path(generator.config.tokenizer_workdir)
        tokenizer_config = config_loading.parse(read_config(self.tokenizer_workdir))
        self.tokenizer_config = dataclasses.replace(tokenizer_config, evaluate=generator.config.evaluate)

    @functools.cached_property
    def measures(self) -> dict[str, Any]:
        """The measures that there are data for."""
        config, clips = self.generator.config, self.tokenizer_config.data.path
        found = measures.chosen(config.evaluate, self.names)
        if found.keys() & {"long", "world"} and config.evaluate.long_seconds:
            frames_per_part(self.generator)
        there = [
            name for name in found if (config.data.path or name != "likelihood") and (clips or name not in _OF_CLIPS)
        ]
        if left_out := [*sorted(found.keys() - set(there)), *(["reconstruction"] * (not clips))]:
            _log.warning(
                "left out for want of data, which a release does not bring: %s (config.data.path may name tokens, for the likelihood; all "
                "else is measured in the workdir of the run)", ", ".join(left_out),
            )  # fmt: skip
        return {name: found[name] for name in there}

    @functools.cached_property
    def reconstruction(self) -> tuple[dict[str, Any], dict[str, Metric], list[Clip]]:
        if not self.tokenizer_config.data.path:
            return {}, {}, []
        config, networks = self.tokenizer_config, self.tokenizer_config.evaluate.networks
        frames = min(frames for frames, _, _ in config.data.buckets)
        if "world" in self.names and "i3d" in networks and frames < i3d.MIN_FRAMES:
            _log.warning("no rFVD: the tokenizer learnt from clips of %d frames, it needs %d", frames, i3d.MIN_FRAMES)
            rest = dataclasses.replace(config.evaluate, networks=tuple(name for name in networks if name != "i3d"))
            config = dataclasses.replace(config, evaluate=rest)
        return _reconstruction(config, self.tokenizer_workdir)

    def evaluate(self, out: Path) -> dict[str, Any]:
        """Evaluate the checkpoint that the generator has."""
        generator, config = self.generator, self.generator.config
        measured = self.measures  # refuses now what settings lack
        results, metrics, clips = self.reconstruction
        facts = provenance.of_file(config, self.workdir, seed=self.seed, step=generator.step)
        subject = Subject(generator, self.tokenizer_config, self.seed, self.prompts)
        for name, measure in measured.items():
            found, more = measure(subject)
            metrics, clips = metrics | {f"{name}/{key}": value for key, value in found.items()}, clips + more
            scalars = {key: value.value for key, value in found.items() if isinstance(value.value, float)}
            if scalars:
                _log.info("%s: %s", name, ", ".join(f"{key} {value:.4g}" for key, value in scalars.items()))
        results = _head(config) | ({"reconstruction": results} if results else {}) | _figures(subject, metrics)
        if jax.process_index() == 0:
            out.mkdir(parents=True, exist_ok=True)
            cell = {"run": self.workdir.name, "step": generator.step, "weights": generator.weights or "ema"}
            row = rows.Row(cell | self.cell | {"seed": self.seed}, metrics)
            rows.write(out, row, clips, config.generate.fps, facts)
        return _finish(out, results, {"tokenizer": self.tokenizer_workdir, "transformer": self.workdir})


def _figures(subject: Subject, metrics: dict[str, Metric]) -> dict[str, Any]:
    """Return the tables of a transformer run."""
    get, results = lambda name: metrics[name].value, {}
    if "likelihood/nll" in metrics:
        results["masked_cross_entropy"] = {key: get(f"likelihood/{key}") for key in ("nll", "accuracy", "frame_nll")}
    for measure in ("world", "long"):
        found = {
            name.removeprefix(f"{measure}/"): m.value for name, m in metrics.items() if name.startswith(f"{measure}/")
        }
        if found:
            results[measure] = {name: value for name, value in found.items() if isinstance(value, float)}
    if subject.is_shapes and "prompts/colour" in metrics:
        accuracy = {key: get(f"prompts/{key}") for key in ("colour", "shape", "direction")}
        results["prompt_accuracy"] = {"num_prompts": len(subject.distinct), **accuracy}
        results["prompt_accuracy_reconstructed"] = _ceiling(subject)
    if any(name.startswith("tokens/") for name in metrics):  # clips were generated
        # The first call compiles; with a single call its time includes that.
        speed = max(made.tokens.size / made.seconds for made in subject.batches)
        results["generate"] = {"tokens_per_s": speed, "batch_size": len(subject.batches[0].tokens)}
    if "continuation/psnr_frames" in metrics:
        results["continuation"] = {
            "num_clips": metrics["continuation/psnr_frames"].n,
            "num_known_frames": subject.num_known,
            "psnr_first_new_frame": get("continuation/psnr_first_new_frame"),
            "psnr_frames": get("continuation/psnr_frames"),
        }
    return results


def _evaluate_tokenizer(config: Config, workdir: Path, out: Path, seed: int) -> dict[str, Any]:
    results, run = _head(config), workdir
    facts = provenance.of_file(config, workdir, seed=seed)
    if config.task != "tokenizer":
        run = files.path(config.tokenizer_workdir)
        config = dataclasses.replace(config_loading.parse(read_config(run)), evaluate=config.evaluate)
    results["reconstruction"], metrics, clips = _reconstruction(config, run)
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        row = rows.Row(cell={"run": run.name, "seed": seed}, metrics=metrics)
        rows.write(out, row, clips, results["reconstruction"]["fps"], facts)
    return _finish(out, results, {"tokenizer": run})


def _evaluate_actions(config: Config, workdir: Path, out: Path, seed: int) -> dict[str, Any]:
    metrics = latent_actions.measure(config, workdir)
    results = _head(config) | {"actions": {name: found.value for name, found in metrics.items()}}
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        row = rows.Row(
            {"run": workdir.name, "seed": seed}, {f"actions/{name}": found for name, found in metrics.items()}
        )
        rows.write(out, row, [], 0.0, provenance.of_file(config, workdir, seed=seed))
    return _finish(out, results, {"actions": workdir})


def _head(config: Config) -> dict[str, Any]:
    return {"name": config.name, "versions": versions(), "provenance": provenance.describe(config)}


def _finish(out: Path, results: dict[str, Any], runs: dict[str, Path]) -> dict[str, Any]:
    if jax.process_index() == 0:
        with open(out / "results.jsonl", "a") as file:
            file.write(json.dumps(results) + "\n")
        report.write(out, [out], results, runs)
    return results | {"report": str(out / "index.html")}


def versions() -> dict[str, str]:
    """Return what a figure depends on."""
    return {
        "lumos": lumos.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _reconstruction(config: Config, workdir: Path) -> tuple[dict[str, Any], dict[str, Metric], list[Clip]]:
    results, metrics, videos, labels = reconstruction(config, workdir)
    _log.info("reconstruction: psnr %.2f dB, usage %.2f", results["psnr"], results["usage"])
    clips = [Clip("reconstruction", video, label) for video, label in zip(videos, labels)]
    return results, {f"reconstruction/{name}": found for name, found in metrics.items()}, clips


def _ceiling(subject: Subject) -> dict[str, float]:
    """Let the checker read true clips of the prompts after the tokenizer: what is lost there, no transformer can show."""
    from lumos.data import moving_shapes

    level, c, tokenizer = subject.tokenizer_config.shapes.level, subject.settings, subject.generator.tokenizer
    shape, scores = subject.generated.videos.shape[1:4], []
    for start in range(0, len(subject.shapes_prompts), c.batch_size):
        indices = range(start, start + c.batch_size)
        truth = np.stack([moving_shapes.make_clip(level, shape, subject.seed, c.split, i)["video"] for i in indices])
        wanted = subject.shapes_prompts[start : start + c.batch_size]
        scores += [moving_shapes.score(*pair) for pair in zip(tokenizer.decode(tokenizer.encode(truth)), wanted)]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
