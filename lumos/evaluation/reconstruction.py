"""How well a tokenizer gives back held-out clips: pixels, perception, codes, speed. The protocol stands beside the figures."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import AdversarialConfig, Config, PerceptualConfig
from lumos.data.pipeline import make_pipeline
from lumos.evaluation import i3d
from lumos.tokenizers import perceptual, pretrained
from lumos.tokenizers.objective import TokenizerObjective, side_by_side
from lumos.tokenizers.pixel_quality import to_float


def reconstruction(config: Config, workdir: Path) -> tuple[dict[str, Any], np.ndarray, list[str]]:
    """Return the metrics of the tokenizer in `workdir`, and the first clips with their labels to look at.

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
    measure, networks = jax.jit(objective.measure), _Networks(c.networks)
    sums, speed, shown, labels = None, _Speed(), None, []
    with make_pipeline(config, c.split, process_index=0, process_count=1, train=False) as pipeline:
        for _, batch in zip(range(num_batches), pipeline):
            video = batch["video"]
            tokens = speed.time("encode", video, lambda video=video: tokenizer.encode(video))
            recon = speed.time("decode", video, lambda tokens=tokens: tokenizer.decode(tokens))
            part = measure(video, recon, tokens)
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
            networks.add(video, recon)
            if shown is None:
                shown, labels = side_by_side(video[:6], recon[:6])
    results = objective.summarize(jax.tree.map(np.asarray, sums))
    results |= networks.summarize() | speed.summarize()
    results["fps"] = pipeline.video_fps
    results["num_clips"] = int(sums["clips"])  # a split may have fewer than were asked for
    sizes = " or ".join(f"{frames} frames of {width}x{height}" for frames, height, width in config.data.buckets)
    results["protocol"] = (
        f"{results['num_clips']} clips of split {c.split!r}, {sizes}; PSNR over all pixels of a "
        "clip after rounding to 8 bits, mean over clips; SSIM 11x11 Gaussian; FVD: I3D logits, frames stretched to 224x224, "
        "unbiased covariance"
    )
    return results, shown, labels


class _Networks:
    """LPIPS and the features of FVD, batch by batch."""

    def __init__(self, names: tuple[str, ...]):
        self._lpips = {}
        for name in names:
            if name == "i3d":
                continue
            self._lpips[name] = (jax.device_put(perceptual.load_params(name)), jax.jit(self._lpips_of(name)), [])
        self._i3d = (jax.device_put(i3d.load_params()), jax.jit(i3d.logits)) if "i3d" in names else None
        self._features: list[list[np.ndarray]] = []  # of a clip, reconstructed, held still, shuffled

    @staticmethod
    def _lpips_of(name: str):
        def run(params, a, b):
            net = perceptual.PerceptualNet(name, params)
            with jax.default_matmul_precision("highest"):  # published values are float32, whatever the device
                a, b = (net.features(perceptual.frames(to_float(video))) for video in (a, b))
                return net.lpips(a, b)

        return run

    def add(self, video: np.ndarray, recon: np.ndarray) -> None:
        for params, run, values in self._lpips.values():
            values += [run(params, clip[None], other[None]) for clip, other in zip(video, recon)]
        if self._i3d:
            params, run = self._i3d
            for clip, other in zip(video, recon):
                order = np.random.default_rng(0).permutation(len(clip))
                versions = (clip, other, clip[:1].repeat(len(clip), axis=0), clip[order])
                # One at a time: the network is large.
                self._features.append([np.asarray(run(params, version[None]))[0] for version in versions])

    def summarize(self) -> dict[str, float]:
        results = {
            f"lpips_{name}": float(np.mean(np.concatenate(values))) for name, (_, _, values) in self._lpips.items()
        }
        if self._features:
            real, made, still, shuffled = np.stack(self._features, axis=1)
            results["rfvd"] = i3d.frechet_distance(real, made)
            results["fvd_of_halves"] = i3d.frechet_distance(real[::2], real[1::2])
            results["fvd_of_still"] = i3d.frechet_distance(real, still)
            results["fvd_of_shuffled"] = i3d.frechet_distance(real, shuffled)
        return results


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
