"""`lumos generate`: prompts and first frames in, video files out."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lumos import outputs, provenance
from lumos.checkpoint import read_config
from lumos.checkpoint_steps import resolve
from lumos.data.captions import without_controls
from lumos.data.video_writer import check_writable, write_video
from lumos.errors import UserError
from lumos.videos.benchmarks import Files
from lumos.videos.conditions import planned_actions
from lumos.videos.generator import Generator

_SAME = ("run", "config", "step", "weights", "frames", "seed")  # of all files of a benchmark
_FORMATS = (".mp4", ".gif", ".png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to generate.

    prompts: captions; none = one clip without any. samples: clips of each prompt. given: path of an image or a video whose frames
    come first. num_frames: 0 = as trained. actions: that lead to the frames of a world ("turn left*4,none"), which say their number. seed: of the first clip; later ones count on. steps: of the weights, see
    `checkpoint_steps.resolve`. weights: "ema", "raw", or "" for the EMA where there is one.
    """

    prompts: tuple[str, ...] = ()
    samples: int = 1
    given: str = ""
    num_frames: int = 0
    actions: str = ""
    seed: int = 0
    step: str = ""
    weights: str = ""


def generate(
    workdir: str | Path, request: Request, out: str | Path, overrides: dict[str, Any] | None = None
) -> list[Path]:
    """Write one file per clip and return their paths. Every process of a run calls it; process 0 writes.

    Each file's metadata holds its prompt, its own seed, the step of the weights, and the command that makes it again, alone.

    `out` is a file for one clip; for several it is a folder (files 000.mp4, 001.mp4, ..., with several samples 000-0.mp4, ...; with
    several steps in a folder of each).
    """
    prompts, given = list(request.prompts or ("",)), request.given
    if request.samples < 1:
        raise UserError(f"--samples_per_prompt={request.samples} must be at least 1")
    if given and not Path(given).is_file():
        raise UserError(f"{given}: {'not a file' if Path(given).exists() else 'no such file'}")
    steps: list[int | None] = [None]  # the newest
    if request.step:
        read_config(workdir)
        steps = resolve(workdir, request.step)
    places = [str(out) if len(steps) == 1 else f"{out}/step_{step:08d}/" for step in steps]
    # Before the model is loaded, and used.
    paths = [_paths(place, len(prompts), request.samples) for place in places]
    if not (request.prompts or given or request.actions):
        raise UserError("no prompt: give --prompt (--prompt= for a clip without one), --prompts, --image or --video")
    generator = Generator.load(workdir, overrides, steps[0], request.weights)
    fps = generator.config.generate.fps
    for path in sum(paths, []):
        check_writable(path, fps)
    frames = generator.read_given(given, request.num_frames) if given else None
    num_frames, streams = request.num_frames, []
    if request.actions:
        stride = generator.tokenizer.config.temporal_compression
        num_given = 0 if frames is None else 1 + (len(frames) - 1) // stride
        streams = [planned_actions(generator.config, request.actions, num_given, stride)]
        num_frames = 1 + (len(streams[0]) - 1) * stride
    prompts = [prompt for prompt in prompts for _ in range(request.samples)]
    for wanted, files in zip(steps, paths):
        if wanted not in (None, generator.step):
            generator.read_weights(workdir, wanted, request.weights)
        step = generator.step
        options = [f"--step={step}"]  # training may go on
        options += [f"--weights={request.weights}"] * bool(request.weights)
        options += [f"--config.{name}={value}" for name, value in (overrides or {}).items()]
        options += [f"--frames={request.num_frames}"] * bool(request.num_frames) + [f"--video={given}"] * bool(given)
        options += [f"--actions={request.actions}"] * bool(request.actions)
        stream = generator.generate_batches(
            prompts, seed=request.seed, num_frames=num_frames, given=frames, streams=streams
        )
        videos = (video for part in stream for video in part.videos)
        for i, (path, video, prompt) in enumerate(zip(files, videos, map(without_controls, prompts))):
            own_seed = request.seed + i
            again = ["lumos", "generate", f"--workdir={workdir}", f"--prompt={prompt}", f"--seed={own_seed}", *options]
            facts = {"seed": own_seed, "step": step, "command": shlex.join([*again, f"--out={path.name}"])}
            facts = provenance.of_file(generator.config, workdir, **facts)
            if jax.process_index() == 0:
                write_video(path, video, fps, {"prompt": prompt} | facts)
    return sum(paths, [])


def generate_benchmark(
    workdir: str | Path, request: Request, files: Files, out: str | Path, overrides: dict[str, Any] | None = None
) -> Path:
    """Write the files of a benchmark into the folder `out`, and how they were made beside it, `<out>.lumos.json`; return that.

    Clip i has seed + i. Files that are there are kept, so that a stopped run goes on; with other weights or settings it is refused.
    """
    folder = outputs.check_folder(out, "--out")
    steps = resolve(workdir, request.step)
    if len(steps) > 1:
        raise UserError(f"--layout writes the files of one checkpoint, not of {len(steps)}; run it once for each step")
    generator = Generator.load(workdir, overrides, steps[0], request.weights)
    frames, fps = 1 if files.are_images else request.num_frames, generator.config.generate.fps
    facts = provenance.of_file(
        generator.config, workdir, step=generator.step, weights=request.weights, frames=frames, seed=request.seed
    )
    beside = folder.with_name(f"{folder.name}.lumos.json")
    old = json.loads(beside.read_text())["facts"] if beside.exists() else facts
    if changed := [name for name in _SAME if old[name] != facts[name]]:
        raise UserError(f"{out} holds files of another {', '.join(changed)} ({beside}); choose another --out")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.more.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        record = {"note": files.command, "files": len(files.items), "facts": facts}
        beside.write_text(json.dumps(record, indent=1) + "\n")
    size = generator.config.evaluate.batch_size
    for start in range(0, len(files.items), size):
        items = files.items[start : start + size]
        if all((folder / item.name).exists() for item in items):
            continue
        given = [generator.read_given(item.image, frames) for item in items if item.image]
        texts, seed = [item.text for item in items], request.seed + start
        made = generator.generate(texts, seed=seed, num_frames=frames, given=np.stack(given) if given else None)
        for i, (item, video) in enumerate(zip(items, made.videos)):
            if jax.process_index() == 0:
                write_video(
                    folder / item.name,
                    video,
                    fps,
                    {"prompt": without_controls(item.text)} | facts | {"seed": str(seed + i)},
                )
    return beside


def _paths(out: str, num_prompts: int, samples: int) -> list[Path]:
    """Return the files to write, one a clip: `out` itself, or files in the folder `out`. Raises UserError."""
    name, suffix, is_folder = Path(out).name, Path(out).suffix.lower(), str(out).endswith("/")
    if suffix in _FORMATS and not is_folder:
        if num_prompts * samples > 1:
            what = f"{num_prompts} prompts" + f" of {samples} samples" * (samples > 1)
            raise UserError(f"--out={out} is one file but there are {what}; give a folder")
        return [outputs.check_file(out, "--out")]
    # A file called ".mp4" has no suffix.
    if name.lower() in _FORMATS or (suffix and not is_folder and not Path(out).is_dir()):
        raise UserError(f"--out={out}: unknown format {suffix or name}; allowed: {', '.join(_FORMATS)}, or a folder")
    folder = outputs.check_folder(out, "--out")
    names = [
        f"{i:03d}" + f"-{sample}" * (samples > 1) + ".mp4" for i in range(num_prompts) for sample in range(samples)
    ]
    return [outputs.check_file(folder / name, "--out") for name in names]
