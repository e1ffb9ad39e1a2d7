"""`lumos evaluate`: reconstruction, masked cross-entropy per frame, prompt following, throughput."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lumos
from lumos import config_loading, provenance
from lumos.checkpoint import read_config
from lumos.config import Config
from lumos.data.contact_sheet import contact_sheet
from lumos.data.pipeline import make_pipeline
from lumos.data.rates import agree
from lumos.data.sources import manifest_fps
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.evaluation import report
from lumos.evaluation.reconstruction import reconstruction
from lumos.objective import Objective
from lumos.tokenizers.pixel_quality import frame_psnr
from lumos.training.match_data import token_manifests, with_grids_of_tokens
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import Generator

_log = logging.getLogger(__name__)


def evaluate(
    workdir: str | Path, out: str | Path, overrides: dict[str, Any] | None = None, *, seed: int = 0, what: str = "all"
) -> dict[str, Any]:
    """Evaluate a training workdir into `out`: `results.jsonl`, videos, contact sheets and `index.html`.

    A tokenizer run gets reconstruction metrics. A transformer run gets those of its tokenizer, its masked
    cross-entropy per latent frame, samples, on moving_shapes how well held-out prompts are followed, and, where
    `evaluate.num_given` says so, how well clips are continued. `what="tokenizer"` stops after the tokenizer.
    """
    if what not in ("all", "tokenizer"):
        raise UserError(f"what={what!r}; allowed: all, tokenizer")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    read_config(workdir)
    config = config_loading.load(str(Path(workdir) / "config.json"), overrides)
    results: dict[str, Any] = {"name": config.name, "versions": versions(), "provenance": provenance.describe(config)}
    facts = provenance.of_file(config, workdir, seed=seed)
    if config.task == "tokenizer":
        results["reconstruction"] = _reconstruction(config, Path(workdir), out, facts)
        runs = {"tokenizer": Path(workdir)}
    elif what == "tokenizer":
        runs = {"tokenizer": Path(config.tokenizer_workdir)}
        trained = dataclasses.replace(config_loading.parse(read_config(runs["tokenizer"])), evaluate=config.evaluate)
        results["reconstruction"] = _reconstruction(trained, runs["tokenizer"], out, facts)
    else:
        generator = Generator.load(workdir, overrides)
        facts |= {"step": str(generator.step)}
        tokenizer_workdir = Path(config.tokenizer_workdir)
        tokenizer_config = config_loading.parse(read_config(tokenizer_workdir))
        tokenizer_config = dataclasses.replace(tokenizer_config, evaluate=config.evaluate)
        results["reconstruction"] = _reconstruction(tokenizer_config, tokenizer_workdir, out, facts)
        results["masked_cross_entropy"] = _masked_cross_entropy(generator)
        if tokenizer_config.data.source == "moving_shapes":
            results |= _prompt_following(generator, tokenizer_config.shapes.level, out, seed, facts)
        if config.evaluate.num_given:
            results["continuation"] = _continuation(generator, tokenizer_config, out, seed, facts)
        runs = {"tokenizer": tokenizer_workdir, "transformer": Path(workdir)}
    with open(out / "results.jsonl", "a") as file:
        file.write(json.dumps(results) + "\n")
    results["report"] = str(report.write(out, results, runs))
    return results


def versions() -> dict[str, str]:
    """Return what a figure depends on."""
    return {
        "lumos": lumos.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _evaluate_objective(objective: Objective, params, config: Config, split: str) -> dict[str, Any]:
    """Evaluate `evaluate.num_clips` clips of a split, `evaluate.batch_size` of them at a time."""
    batch_size = min(config.evaluate.batch_size, config.evaluate.num_clips)
    num_batches = max(1, config.evaluate.num_clips // batch_size)
    data = dataclasses.replace(config.data, batch_size=batch_size)
    train = dataclasses.replace(config.train, accumulation=1)
    config = dataclasses.replace(config, data=data, train=train)
    evaluate_batch, sums = jax.jit(objective.evaluate_batch), None
    with make_pipeline(config, split, process_index=0, process_count=1, train=False) as pipeline:
        for _, batch in zip(range(num_batches), pipeline):
            part = evaluate_batch(params, {k: v for k, v in batch.items()})
            sums = part if sums is None else jax.tree.map(lambda a, b: a + b, sums, part)
    return objective.summarize(jax.tree.map(np.asarray, sums))


def _reconstruction(config: Config, workdir: Path, out: Path, facts) -> dict[str, Any]:
    results, videos, labels = reconstruction(config, workdir)
    _write_videos(out, "reconstruction", videos, labels, results["fps"], facts)
    _log.info("reconstruction: psnr %.2f dB, usage %.2f", results["psnr"], results["usage"])
    return results


def _masked_cross_entropy(generator: Generator) -> dict[str, Any]:
    config = with_grids_of_tokens(generator.config, token_manifests(generator.config))
    objective = TransformerObjective(config)
    return _evaluate_objective(objective, generator.params, config, config.data.eval_split)


def _prompt_following(generator: Generator, level: str, out: Path, seed: int, facts) -> dict[str, Any]:
    """Generate held-out prompts and let the checker read colour, shape and direction back from the pixels.

    It also reads true clips of the same prompts after the tokenizer: what is lost there, no transformer can show.
    """
    from lumos.data import moving_shapes

    c, tokenizer = generator.config.evaluate, generator.tokenizer
    prompts = moving_shapes.test_prompts(level, c.num_prompts, seed=seed, split=c.split)
    videos, reconstructed, seconds, num_tokens = [], [], [], 0
    for start in range(0, len(prompts), c.batch_size):
        captions = [prompt.caption for prompt in prompts[start : start + c.batch_size]]
        captions += captions[-1:] * (c.batch_size - len(captions))  # one compiled shape
        made = generator.generate(captions, seed=seed + start)
        videos += list(made.videos[: len(prompts) - start])
        shape, indices = made.videos.shape[1:4], range(start, start + c.batch_size)
        truth = np.stack([moving_shapes.make_clip(level, shape, seed, c.split, i)["video"] for i in indices])
        reconstructed += list(tokenizer.decode(tokenizer.encode(truth)))
        seconds.append(made.seconds)
        num_tokens = made.tokens.size
    scores, of_reconstructed = (
        [moving_shapes.score(video, prompt) for video, prompt in zip(clips, prompts)]
        for clips in (videos, reconstructed)
    )
    accuracy, ceiling = _share_right(scores), _share_right(of_reconstructed)
    shown = list(range(min(16, len(prompts))))
    marks = [
        prompts[i].caption + "   [" + ", ".join(f"{k} {'ok' if v else 'wrong'}" for k, v in scores[i].items()) + "]"
        for i in shown
    ]
    fps = generator.config.generate.fps
    _write_videos(out, "prompts", [videos[i] for i in shown], marks, fps, facts, [seed + i for i in shown])
    _log.info("prompt following over %d prompts: %s; true clips, reconstructed: %s", len(prompts), accuracy, ceiling)
    # The first call compiles; with a single call its time includes that.
    return {
        "prompt_accuracy": {"num_prompts": len(prompts), **accuracy},
        "prompt_accuracy_reconstructed": ceiling,
        "generate": {"tokens_per_s": num_tokens / min(seconds), "batch_size": c.batch_size},
    }


def _share_right(scores: list[dict[str, bool]]) -> dict[str, float]:
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def _continuation(generator: Generator, tokenizer_config: Config, out: Path, seed: int, facts) -> dict[str, Any]:
    """Give the first latent frames of real clips and compare what follows with the truth, by pixel frame.

    The first new frame can be judged against the truth; later ones may rightly take another course.
    """
    c = generator.config.evaluate
    temporal = generator.tokenizer.config.temporal_compression
    clip = (1 + (generator.config.sequence.grid[0] - 1) * temporal, *generator.frame_size)
    data = dataclasses.replace(tokenizer_config.data, batch_size=min(c.batch_size, c.num_clips), buckets=(clip,))
    rate = next(filter(None, map(manifest_fps, token_manifests(generator.config).values())), 0.0)
    if data.source == "clips" and not agree([data.fps, rate]):  # the transformer knows clips at the rate of its tokens
        data = dataclasses.replace(data, fps=rate)
    # The tokenizer's clips with the transformer's text.
    text = {"text": generator.config.text, "sequence": generator.config.sequence}
    config = dataclasses.replace(tokenizer_config, data=data, **text)
    num_known = 1 + (c.num_given - 1) * temporal
    psnr_NF, shown, labels = [], [], []
    with make_pipeline(config, c.split, process_index=0, process_count=1, train=False) as pipeline:
        for _, batch in zip(range(max(1, c.num_clips // data.batch_size)), pipeline):
            truth = batch["video"]
            captions = [generator.text.decode(ids) for ids in batch["text"]]
            first = seed + sum(map(len, psnr_NF))
            made = generator.generate(captions, seed=first, given=truth[:, :num_known], num_frames=truth.shape[1])
            psnr_NF.append(np.asarray(frame_psnr(truth, made.videos)))
            if not shown:
                shown = list(np.concatenate([truth, made.videos], axis=3)[:6])
                labels = [f"{caption}   [truth | continued after {num_known} frames]" for caption in captions[:6]]
    seeds = [seed + i for i in range(len(shown))]
    _write_videos(out, "continuation", shown, labels, generator.config.generate.fps, facts, seeds)
    psnr_F = np.concatenate(psnr_NF).mean(axis=0)
    _log.info("continuation: first new frame %.2f dB", psnr_F[num_known])
    return {
        "num_clips": sum(map(len, psnr_NF)),
        "num_known_frames": num_known,
        "psnr_first_new_frame": float(psnr_F[num_known]),
        "psnr_frames": [float(x) for x in psnr_F],
    }


def _write_videos(out: Path, name: str, videos, captions: list[str], fps: float, facts, seeds=()) -> None:
    """Write clips and their contact sheet; `seeds` are those of generated clips."""
    folder = out / name
    folder.mkdir(exist_ok=True)
    for i, (video, caption) in enumerate(zip(videos, captions)):
        own = {"seed": str(seeds[i])} if seeds else {}
        write_video(folder / f"{i:02d}.mp4", video, fps, {"prompt": caption} | facts | own)
    (folder / "captions.json").write_text(json.dumps(captions))
    contact_sheet(videos, captions).save(out / f"{name}.png")
