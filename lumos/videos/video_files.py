"""`lumos generate`: prompts and first frames in, video files out."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

from lumos import outputs, provenance
from lumos.data.captions import without_controls
from lumos.data.video_writer import check_writable, write_video
from lumos.errors import UserError
from lumos.videos.generator import Generator

_FORMATS = (".mp4", ".gif", ".png")


def generate(
    workdir: str | Path,
    prompts: list[str],
    out: str | Path,
    overrides: dict[str, Any] | None = None,
    *,
    given: str | None = None,
    num_frames: int = 0,
    seed: int = 0,
    step: int | None = None,
) -> list[Path]:
    """Write one file per prompt and return their paths.

    Each file's metadata holds its prompt, its own seed, the step of the weights, and the command that makes it again, alone.

    `out` is a file for one prompt; for several it is a folder (files 000.mp4, 001.mp4, ...). `step` is that of the weights, by
    default the newest.
    """
    prompts = prompts or [""]
    paths = _paths(out, len(prompts))  # before the model is loaded, and used
    if given and not Path(given).is_file():
        raise UserError(f"{given}: {'not a file' if Path(given).exists() else 'no such file'}")
    generator = Generator.load(workdir, overrides, step)
    fps = generator.config.generate.fps
    for path in paths:
        check_writable(path, fps)
    frames = generator.read_given(given, num_frames) if given else None
    made = generator.generate(prompts, seed=seed, num_frames=num_frames, given=frames)
    options = [f"--step={generator.step}"]  # training may go on
    options += [f"--config.{name}={value}" for name, value in (overrides or {}).items()]
    options += [f"--frames={num_frames}"] * bool(num_frames) + [f"--video={given}"] * bool(given)
    for path, video, prompt, own_seed in zip(paths, made.videos, map(without_controls, prompts), itertools.count(seed)):
        again = ["lumos", "generate", f"--workdir={workdir}", f"--prompt={prompt}", f"--seed={own_seed}", *options]
        facts = {"seed": own_seed, "step": generator.step, "command": shlex.join([*again, f"--out={path.name}"])}
        facts = provenance.of_file(generator.config, workdir, **facts)
        write_video(path, video, fps, {"prompt": prompt} | facts)
    return paths


def _paths(out: str | Path, num_prompts: int) -> list[Path]:
    """Return the files to write, one a prompt: `out` itself, or files in the folder `out`. Raises UserError."""
    name, suffix, is_folder = Path(out).name, Path(out).suffix.lower(), str(out).endswith("/")
    if suffix in _FORMATS and not is_folder:
        if num_prompts > 1:
            raise UserError(f"--out={out} is one file but there are {num_prompts} prompts; give a folder")
        return [outputs.check_file(out, "--out")]
    # A file called ".mp4" has no suffix.
    if name.lower() in _FORMATS or (suffix and not is_folder and not Path(out).is_dir()):
        raise UserError(f"--out={out}: unknown format {suffix or name}; allowed: {', '.join(_FORMATS)}, or a folder")
    folder = outputs.check_folder(out, "--out")
    return [outputs.check_file(folder / f"{i:03d}.mp4", "--out") for i in range(num_prompts)]
