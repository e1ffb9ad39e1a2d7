"""How well a tokenizer gives back held-out clips: pixels, perception, codes, speed. The protocol stands beside the figures."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import AdversarialConfig, Config, PerceptualConfig
from lumos.data.pipeline import make_pipeline
from lumos.evaluation import distribution, metric
from lumos.evaluation.metric import Metric
from lumos.tokenizers import perceptual, pretrained
from lumos.tokenizers.objective import TokenizerObjective, side_by_side
from lumos.tokenizers.pixel_quality import psnr, ssim, to_float
from lumos.videos.progress import progress

_psnr = jax.jit(psnr)
_ssim = jax.jit(ssim)


def reconstruction(config: Config, workdir: Path) -> tuple[dict[str, Any], dict[str, Metric], np.ndarray, list[str]]:
    """Return the figures of the tokenizer in `workdir`, the main ones with intervals, and the first clips with their labels.

    Every clip goes through its tokens. `evaluate.networks` names the metric networks: "alex" and "vgg" give LPIPS, "i3d"
    gives rFVD between the clips and their reconstructions, and what it is to be read against: the FVD between two halves
    of the clips, and between the clips and themselves without motion (first frame held) or out of order (frames shuffled).
    """
    c = config.evaluate
    batch_size = min(c.batch_size, c.num_clips)
    # What is trained beside the tokenizer, and its loss networks, have no part in it.
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=batch_size),
        adversarial=AdversarialConfig(),
        perceptual=PerceptualConfig(),
        freeze_encoder=False,
    )
    tokenizer, objective = pretrained.load(workdir), TokenizerObjective(config)
    num_batches = max(1, c.num_clips // batch_size)
    measure, compared = jax.jit(objective.measure), _Compared(c.networks, objective.quantizer.by_part)
    sums, speed, shown, labels = None, _Speed(), None, []
    with make_pipeline(config, c.split, process_index=0, process_count=1, train=False) as pipeline:
        batches = (batch for _, batch in zip(range(num_batches), pipeline))
        for batch in progress(batches, "clips", c.num_clips, lambda batch: len(batch["video"])):
            video = batch["video"]
            tokens = speed.time("encode", video, lambda video=video: tokenizer.encode(video))
            recon = speed.time("decode", video, lambda tokens=tokens: tokenizer.decode(tokens))
            part = measure(video, recon, tokens)
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
            compared.add(video, recon, tokens)
            if shown is None:
                shown, labels = side_by_side(video[:6], recon[:6])
    results = objective.summarize(jax.tree.map(np.asarray, sums))
    sizes = " or ".join(f"{frames} frames of {width}x{height}" for frames, height, width in config.data.buckets)
    results["fps"] = pipeline.video_fps
    results["num_clips"] = int(sums["clips"])  # a split may have fewer than were asked for
    results["protocol"] = (
        f"{results['num_clips']} clips of split {c.split!r}, {sizes} at {pipeline.video_fps:g} frames a second; PSNR over all pixels of a "
        "clip after rounding to 8 bits, mean over clips; SSIM 11x11 Gaussian"
    )
    metrics = compared.summarize(results["protocol"], results)
    return results | speed.summarize(), metrics, shown, labels


@functools.cache
def lpips_of(name: str):
    """Return the function that gives the LPIPS of clips uint8 [B, F, Y, X, 3], with the network "alex" or "vgg"."""

    def run(params, a, b):
        net = perceptual.PerceptualNet(name, params)
        with jax.default_matmul_precision("highest"):  # published values are float32, whatever the device
            a, b = (net.features(perceptual.frames(to_float(video))) for video in (a, b))
            return net.lpips(a, b)

    return functools.partial(jax.jit(run), jax.device_put(perceptual.load_params(name)))


class _Compared:
    """What clips and their reconstructions are like, clip by clip."""

    def __init__(self, networks: tuple[str, ...], by_part: Callable):
        self._by_part, self._parts = by_part, []
        self._networks = {f"lpips_{name}": lpips_of(name) for name in networks if name != "i3d"}
        self._has_i3d, self._size = "i3d" in networks, ""
        self._values: dict[str, list[np.ndarray]] = {}

    def add(self, video: np.ndarray, recon: np.ndarray, tokens: np.ndarray) -> None:
        found = {"psnr": _psnr(video, recon), "ssim": _ssim(video, recon)}
        for name, run in self._networks.items():
            found[name] = np.concatenate([run(clip[None], other[None]) for clip, other in zip(video, recon)])
        if self._has_i3d:
            found |= dict(zip(("real", "still", "shuffled"), distribution.versions(video)))
            found["made"], self._size = distribution.features(recon), distribution.protocol_of(video)
        for name, values in found.items():
            self._values.setdefault(name, []).append(np.asarray(values))
        self._parts += [[np.asarray(part) for part in self._by_part(clip[None])] for clip in tokens]

    def summarize(self, protocol: str, results: dict[str, Any]) -> dict[str, Metric]:
        """Return the metrics; what `results` lacks of their values is added to it."""
        each = {name: np.concatenate(parts) for name, parts in self._values.items()}
        metrics = {name: metric.mean(each[name], protocol, "high") for name in ("psnr", "ssim")}
        metrics |= {name: metric.mean(each[name], protocol, "low") for name in self._networks}
        if self._has_i3d:
            what = f"{len(each['real'])} clips against their reconstructions; {self._size}; {protocol}"
            own = distribution.both("", each["real"], each["made"], what, "low", paired=True)
            metrics |= {"rfvd": own["fvd"], "rkvd": own["kvd"]}
            metrics |= distribution.controls(each["real"], each["still"], each["shuffled"])
        of_parts = [metric.usage(tokens, int(results["codebook_size"])) for tokens in zip(*self._parts)]
        used = lambda count_N: np.mean([usage(count_N) for usage in of_parts])
        metrics["usage"] = metric.statistic(used, (len(self._parts),), f"share of codes in use; {protocol}")
        for name, found in metrics.items():
            results.setdefault(name, found.value)
        return metrics


class _Speed:
    """Frames per second of encoding and decoding; the first call of each compiles and is not counted."""

    def __init__(self):
        self._runs: dict[str, list[float]] = {}

    def time(self, name: str, video: np.ndarray, run) -> np.ndarray:
        start = time.perf_counter()
        out = run()
        self._runs.setdefault(name, []).append(video.shape[0] * video.shape[1] / (time.perf_counter() - start))
        return out

    def summarize(self) -> dict[str, float]:
        return {f"{name}_frames_per_s": float(np.median(runs[1:] or runs)) for name, runs in self._runs.items()}
