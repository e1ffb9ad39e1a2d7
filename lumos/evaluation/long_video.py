"""How a long video holds up: what is measured of each tenth of it, and how far later tenths are from the first."""

from __future__ import annotations

import numpy as np

from lumos.errors import UserError
from lumos.evaluation import metric
from lumos.evaluation.frames import frame_statistics
from lumos.evaluation.metric import Metric
from lumos.evaluation.subject import Clip, Subject
from lumos.streaming.live import Live, Options
from lumos.videos.generator import Generator
from lumos.videos.progress import progress

PARTS = 10
_SHOWN = 4  # videos that are kept to look at
# A cut is a step whose mean change of a pixel is so many times the median of the part, which counts as so much of 255 at least.
_CUT, _LEAST_MOTION = 5.0, 2.0
_SHARES = ("colour", "shape", "direction", "all_three", "present", "legal_steps")  # of what is right


def deviation(parts_NP: np.ndarray, *, weighted: bool = True) -> np.ndarray:
    """Return how far a quantity of ten parts is from that of the first, relative to it, [N].

    Weighted it is VDE (BlockVid, arXiv 2511.22973): the sum over later parts, the second nine times and the last once, so early
    deviations count most. Otherwise it is their mean, which says more of a late collapse.
    """
    first = np.abs(parts_NP[:, :1])
    relative = np.abs(parts_NP[:, 1:] - parts_NP[:, :1]) / np.where(first > 0, first, np.nan)
    return relative @ np.arange(PARTS - 1, 0, -1) if weighted else relative.mean(axis=1)


def frames_per_part(generator: Generator) -> int:
    """Return the latent frames of a tenth of videos of `evaluate.long_seconds`. Raises UserError where they are less than two."""
    a_second = generator.config.generate.fps / generator.tokenizer.config.temporal_compression
    num = round(generator.config.evaluate.long_seconds * a_second / PARTS)
    if num < 2:
        raise UserError(
            f"config.evaluate.long_seconds={generator.config.evaluate.long_seconds:g} is too short for ten parts of two latent frames; "
            f"give at least {2 * PARTS / a_second:g}"
        )
    return num


def long_video(subject: Subject) -> tuple[dict[str, Metric], list[Clip]]:
    """Statistics, and on moving_shapes what a checker reads back, of each tenth of videos of `evaluate.long_seconds`."""
    c, generator = subject.settings, subject.generator
    per_part = frames_per_part(generator)
    prompts, found, shown = subject.distinct, [], []
    for start in progress(range(0, len(prompts), c.batch_size), "videos", len(prompts), lambda _: c.batch_size):
        rows = slice(start, start + c.batch_size)
        asked = subject.shapes_prompts[rows] if subject.is_shapes else None
        live = Live(generator, prompts[rows], options=Options(seed=subject.seed + start))
        videos, of_parts = [], []
        for part in range(PARTS):  # the first has the frame that is alone too
            frames = [next(live).pixels for _ in range(per_part + (part == 0))]
            video = np.concatenate(frames, axis=1)
            of_parts.append(_of_part(video, asked))
            videos.append(video[:_SHOWN])
        found.append({name: np.stack([part[name] for part in of_parts], axis=1) for name in of_parts[0]})
        if not shown:
            shown = list(np.concatenate(videos, axis=1))
    protocol = f"{len(prompts)} prompts, videos of {c.long_seconds:g} s in {PARTS} parts of {per_part} latent frames, seeds from {subject.seed}"
    metrics = {}
    for name in found[0]:
        parts_NP = np.concatenate([part[name] for part in found])
        better = "high" if name in _SHARES else ""
        metrics[f"{name}_parts"] = metric.mean(parts_NP, protocol, better)
        metrics[f"{name}_last"] = metric.mean(parts_NP[:, -1], f"last part; {protocol}", better)
        if better:
            later_N = parts_NP[:, 1:].mean(axis=1) - parts_NP[:, 0]
            metrics[f"{name}_change"] = metric.mean(
                later_N, f"mean of the later parts less the first; {protocol}", better
            )
        else:
            # Without a first value there is nothing to be relative to.
            usable = parts_NP[parts_NP[:, 0] != 0]
            if len(usable):
                metrics[f"{name}_vde"] = metric.mean(deviation(usable), f"VDE; {protocol}", "low")
                mean = deviation(usable, weighted=False)
                metrics[f"{name}_deviation"] = metric.mean(
                    mean, f"mean relative deviation from the first part; {protocol}", "low"
                )
    return metrics, [Clip("long", video, prompts[i], subject.seed + i) for i, video in enumerate(shown)]


def _of_part(video_BFYXC: np.ndarray, asked) -> dict[str, np.ndarray]:
    """Return what is measured of a part of each video, [B]."""
    statistics = frame_statistics(video_BFYXC)
    found = {name: statistics[name].mean(axis=1) for name in ("sharpness", "motion", "flicker")}
    motion = statistics["motion"]
    usual = np.maximum(np.median(motion, axis=1, keepdims=True), _LEAST_MOTION)
    found["cuts"] = (motion > _CUT * usual).sum(axis=1).astype(float)
    if asked is None:
        return found
    from lumos.data import moving_shapes, shapes_motion, shapes_scene

    readings = [moving_shapes.read(video) for video in video_BFYXC]
    found["present"] = np.array([(~np.isnan(reading.centre_F2[:, 0])).mean() for reading in readings])
    if asked[0].direction in shapes_scene.ROUTES:
        size = video_BFYXC.shape[2:4]
        legal = (shapes_motion.legal_steps(r.centre_F2, size, p.direction, p.shape) for r, p in zip(readings, asked))
        found["legal_steps"] = np.array([steps.mean() if len(steps) else 0.0 for steps in legal])
    scores = [moving_shapes.score(video, prompt) for video, prompt in zip(video_BFYXC, asked)]
    read = {name: np.array([score[name] for score in scores], float) for name in scores[0]}
    return found | read | {"all_three": np.array([all(score.values()) for score in scores], float)}
