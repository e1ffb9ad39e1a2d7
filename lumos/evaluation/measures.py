"""What a trained transformer is measured by: each measure gives metrics with intervals, and clips to look at.

A measure is a function of a `Subject`; `MEASURES` has them by name. Generated clips are made once for all of them.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable

import jax
import numpy as np

from lumos import sharding
from lumos.config import EvaluateConfig
from lumos.data.pipeline import make_pipeline
from lumos.errors import UserError
from lumos.evaluation import distribution, metric
from lumos.evaluation.cost import flops_of_clip, passes_of_clip
from lumos.evaluation.frames import compare_frames, frame_statistics
from lumos.evaluation.long_video import long_video
from lumos.evaluation.metric import Metric
from lumos.evaluation.prompt_switch import prompt_switch
from lumos.evaluation.subject import Clip, Subject
from lumos.evaluation.world import world
from lumos.training.match_data import encoder_of, token_manifests, with_grids_of_tokens
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import Generator
from lumos.videos.progress import progress

Result = tuple[dict[str, Metric], list[Clip]]
_SHOWN = 16  # clips of a group that are kept to look at
_FROZEN = 0.5  # of 255: mean change of a pixel from frame to frame below which a clip does not move
_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)  # masks of the bound: the middles of five equal parts


def prompts(subject: Subject) -> Result:
    """Whether clips of held-out moving_shapes prompts show the colour, shape and direction that was asked for."""
    clips, captions = subject.generated.videos, subject.captions
    metrics, marks = {}, captions
    if subject.is_shapes:
        from lumos.data import moving_shapes

        asked = [prompt for prompt in subject.shapes_prompts for _ in range(subject.settings.samples_per_prompt)]
        scores = [moving_shapes.score(video, prompt) for video, prompt in zip(clips, asked)]
        protocol = f"share of clips that a checker reads back right; {subject.protocol}"
        share = lambda right: metric.mean(subject.by_prompt(right), protocol, "high")
        metrics = {name: share([score[name] for score in scores]) for name in scores[0]}
        metrics["all_three"] = share([all(score.values()) for score in scores])
        words = lambda score: ", ".join(f"{name} {'ok' if right else 'wrong'}" for name, right in score.items())
        marks = [f"{caption}   [{words(score)}]" for caption, score in zip(captions, scores)]
    shown = zip(clips[:_SHOWN], marks)
    return metrics, [Clip("prompts", clip, mark, subject.seed + i) for i, (clip, mark) in enumerate(shown)]


def likelihood(subject: Subject) -> Result:
    """Cross-entropy of held-out tokens per frame, at the fixed mask, and a bound on the nats of a video.

    It does not depend on how videos are sampled: cells of one checkpoint share it.
    """
    generator, c = subject.generator, subject.settings
    key = ("likelihood", generator.step, generator.weights, c.mask_ratio, c.num_clips, c.batch_size)
    return generator.remember(key, lambda: _likelihood(generator, c))


def _likelihood(generator: Generator, c: EvaluateConfig) -> Result:
    config = with_grids_of_tokens(generator.config, token_manifests(generator.config))
    size = sharding.rows_to_split(generator.mesh, min(c.batch_size, c.num_clips))
    data, train = dataclasses.replace(config.data, batch_size=size), dataclasses.replace(config.train, accumulation=1)
    config = dataclasses.replace(config, data=data, train=train)
    objective, sums = TransformerObjective(config), []
    in_place = config.sequence.targets.name == "in_place"

    def run(params, batch, ratio):
        found = objective.evaluate_rows(params, batch, ratio)
        return jax.tree.map(lambda x: sharding.constrain(x, (None,) * x.ndim), found)

    # Compiled once, for all checkpoints.
    program = generator.remember(("likelihood program", size), lambda: jax.jit(run))
    ratios = [c.mask_ratio, *(_RATIOS if in_place else ())]
    whole = {"process_index": 0, "process_count": 1, "train": False, "encode": encoder_of(config)}
    with make_pipeline(config, config.data.eval_split, **whole) as pipeline:
        batches = (batch for _, batch in zip(range(max(1, c.num_clips // size)), pipeline))
        for batch in progress(batches, "clips", c.num_clips, lambda batch: len(batch["tokens"])):
            with generator.in_mesh():
                rows = sharding.put_rows(generator.mesh, batch)
                found = [jax.tree.map(np.asarray, program(generator.params, rows, ratio)) for ratio in ratios]
            sums.append(jax.tree.map(lambda *x: np.stack(x), *found))
    nll, correct, count = (
        np.concatenate([part[name] for part in sums], axis=1) for name in ("nll", "correct", "count")
    )
    used = count[0].sum(0) > 0  # frames; ratios come first, then clips
    what = (
        f"masks of ratio {c.mask_ratio}, the same cells in all frames"
        if in_place
        else "every code from those before it"
    )
    protocol = f"{nll.shape[1]} clips of split {config.data.eval_split!r}, teacher forcing, {what}; nats a code"
    at_mask = lambda x: x[0][:, used]
    metrics = {
        "nll": metric.ratio(at_mask(nll).sum(1), at_mask(count).sum(1), protocol, "low"),
        "accuracy": metric.ratio(at_mask(correct).sum(1), at_mask(count).sum(1), protocol, "high"),
        "frame_nll": metric.ratio(at_mask(nll), at_mask(count), protocol, "low"),
    }
    if in_place:  # codes of a clip times the mean over masked shares of the mean cross-entropy: any order of unmasking
        cells, each = np.prod(config.sequence.grid), nll[1:].sum(2) / count[1:].sum(2)
        protocol = f"{nll.shape[1]} clips; codes of a clip times the mean cross-entropy at mask ratios {_RATIOS}: an estimate of the bound over all orders"
        metrics["nats_per_video"] = metric.mean(cells * each.mean(0), protocol, "low")
    else:
        protocol = f"{nll.shape[1]} clips; sum over all codes, exact"
        metrics["nats_per_video"] = metric.mean(nll[0].sum(1), protocol, "low")
    return metrics, []


def continuation(subject: Subject) -> Result:
    """How near generated frames come to the truth, frame by frame, where the first latent frames of real clips are given.

    The first new frame can be judged against the truth; later ones may rightly take another course.
    """
    c = subject.settings
    if not c.num_given:
        raise UserError("measure 'continuation' needs config.evaluate.num_given, the latent frames that are given")
    num_known, found, clips = subject.num_known, [], []
    if 0 < c.num_frames <= num_known:
        raise UserError(
            f"measure 'continuation': config.evaluate.num_frames={c.num_frames} counts none of the frames behind the "
            f"{num_known} given ones"
        )
    for part in subject.continued:
        num, samples = part.made.shape[:2]
        compared = [compare_frames(part.truth, part.made[:, sample], c.networks) for sample in range(samples)]
        found.append({name: np.stack([each[name] for each in compared], axis=1) for name in compared[0]})
        for i in range(0 if clips else min(6, num)):
            label = f"{part.captions[i]}   [truth | continued after {num_known} frames]"
            pair = np.concatenate([part.truth[i], part.made[i, 0]], axis=2)
            clips.append(Clip("continuation", pair, label, part.seed + i * samples))
    protocol = (
        f"{subject.continued_protocol}; by frame, 8 bits, given frames included as their tokenizer shows them; PSNR in dB, "
        "SSIM 11x11 Gaussian"
    )
    metrics = {}
    for name in found[0]:
        values_NSF, better = np.concatenate([part[name] for part in found]), "low" if "lpips" in name else "high"
        frames_NF, new_NS = values_NSF.mean(1), values_NSF[:, :, num_known:].mean(2)
        metrics[f"{name}_frames"] = metric.mean(frames_NF, protocol, better)
        metrics[f"{name}_first_new_frame"] = metric.mean(frames_NF[:, num_known], protocol, better)
        metrics[f"{name}_new_frames"] = metric.mean(new_NS.mean(1), protocol, better)
        if new_NS.shape[1] > 1:
            best, what = new_NS.min(1) if better == "low" else new_NS.max(1), f"the best of {new_NS.shape[1]} each"
            metrics[f"{name}_new_frames_best"] = metric.mean(best, f"{protocol}; {what}", better)
    return metrics, clips


def tokens(subject: Subject) -> Result:
    """Codes in use, codes that repeat, and motion of generated clips."""
    made, protocol = subject.generated, subject.protocol
    tokens_BTHW, size = made.tokens, subject.generator.tokenizer.codebook_size
    what = f"share of {size} codes among {tokens_BTHW.size} tokens"
    metrics = {
        "code_usage": metric.statistic(metric.usage(tokens_BTHW, size), (len(tokens_BTHW),), f"{what}; {protocol}")
    }

    def add(name: str, values, what: str, better: str = "") -> None:
        metrics[name] = metric.mean(subject.by_prompt(values), f"{what}; {protocol}", better)

    if tokens_BTHW.shape[1] > 1:
        same_BT = (tokens_BTHW[:, 1:] == tokens_BTHW[:, :-1]).mean((2, 3))
        what = "share of codes that are those of the latent frame before, in the same place"
        add("repetition", same_BT.mean(1), what)
        add("repetition_frames", same_BT, what)
    found = frame_statistics(made.videos)
    if "motion" in found:
        motion = found["motion"].mean(1)
        add("motion", motion, "mean change of a pixel from frame to frame, 0 to 255")
        add(
            "frozen",
            motion < _FROZEN,
            f"share of clips whose pixels change by less than {_FROZEN} of 255 a frame",
            "low",
        )
    if "flicker" in found:
        what = "mean distance of a pixel from the mean of its neighbours in time, 0 to 255"
        add("flicker", found["flicker"].mean(1), what, "low")
    return metrics, []


def drift(subject: Subject) -> Result:
    """How sharpness, colour and motion of generated clips change along their length: curves over pixel frames."""
    found = frame_statistics(subject.generated.videos)
    meaning = {
        "sharpness": "variance of the Laplacian of the grey frame",
        "colour_shift": "distance of the mean colour from that of the first frame, 0 to 255",
        "motion": "mean change of a pixel from the frame before, 0 to 255",
    }
    return {
        f"{name}_frames": metric.mean(subject.by_prompt(found[name]), f"by pixel frame, {what}; {subject.protocol}")
        for name, what in meaning.items()
        if name in found
    }, []


def cost(subject: Subject) -> Result:
    """What a clip costs: passes over its codes, and the FLOPs of their matmuls. A search makes more of them, which is not counted."""
    config = subject.generator.config
    if config.generate.search.is_on:
        return {}, []
    passes, gflops, num = passes_of_clip(config), flops_of_clip(config) / 1e9, len(subject.captions)
    what = "passes of the model over each code, one to write it to the cache among them, times the branches of guidance"
    return {
        "passes": Metric(float(passes), float(passes), float(passes), num, what, "low"),
        "gflops": Metric(gflops, gflops, gflops, num, f"10^9 FLOPs of matmuls with weights a clip: {what}", "low"),
    }, []


def fvd(subject: Subject) -> Result:
    """FVD and KVD of generated clips to real ones, with what they are to be read against.

    Where frames are given (`evaluate.num_given`), the clips are continuations, with the given frames on both sides.
    """
    c = subject.settings
    if c.num_given:
        truth = [part.truth for part in subject.continued]
        made = np.concatenate([part.made.reshape(-1, *part.made.shape[2:]) for part in subject.continued])
        real, protocol = lambda: np.concatenate(truth), subject.continued_protocol
    else:
        real, made, protocol = subject.real, subject.counted(subject.generated.videos), subject.protocol
    # Cells of a sweep have the same real clips, whatever their seed.
    key = ("fvd", bool(c.num_given), c.split, len(made), c.num_clips, c.num_frames, c.frame_size, c.batch_size)
    found = subject.generator.remember(key, lambda: distribution.reference(real()))
    return distribution.distances(found, made, protocol), []


MEASURES: dict[str, Callable[[Subject], Result]] = {
    "likelihood": likelihood, "prompts": prompts, "continuation": continuation, "tokens": tokens, "drift": drift, "fvd": fvd, "cost": cost,
    "long": long_video, "switch": prompt_switch, "world": world,
}  # fmt: skip


def from_outside(path: str) -> Callable[[Subject], Result]:
    """Return the measure behind "module:function", of `evaluate.metrics`.

    The function gets the clips, uint8 [N, F, Y, X, 3], and their prompts; it returns {name: values [N] or [N, F]}.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"config.evaluate.metrics: {path!r} is not module:function ({error})") from error

    def measure(subject: Subject) -> Result:
        clips, found = subject.generated.videos, {}
        for key, values in function(clips, list(subject.captions)).items():
            values = np.asarray(values, np.float64)
            if values.shape[:1] != (len(clips),):
                raise UserError(
                    f"{path}: {key} has shape {values.shape}; there must be one value or curve for each of {len(clips)} clips"
                )
            found[key] = metric.mean(subject.by_prompt(values), f"{path}; {subject.protocol}")
        return found, []

    return measure


def chosen(subject_settings, names: tuple[str, ...] = ()) -> dict[str, Callable[[Subject], Result]]:
    """Return the measures of these names, by default what the settings have data for, and those of `evaluate.metrics`.

    Raises UserError on an unknown name, or without the length of long videos.
    """
    if unknown := [name for name in names if name not in MEASURES]:
        raise UserError(f"unknown measure {unknown[0]!r}; there are {', '.join(MEASURES)}, and config.evaluate.metrics")
    if "long" in names and subject_settings.long_seconds <= 0:
        raise UserError("measure 'long' needs config.evaluate.long_seconds, the length of its videos")
    default = ["likelihood", "prompts", "tokens", "drift", "cost"]
    default += ["continuation"] * bool(subject_settings.num_given) + ["fvd"] * ("i3d" in subject_settings.networks)
    default += ["long"] * (subject_settings.long_seconds > 0)
    found = {name: MEASURES[name] for name in names or default}
    return found | {path: from_outside(path) for path in subject_settings.metrics}
