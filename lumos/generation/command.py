"""`lumos generate`: prompts and first frames in, video files out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumos import provenance
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.generation.generate import Generator

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
) -> list[Path]:
    """Write one file per prompt and return their paths. The prompt is stored in each file's metadata.

    `out` is a file for one prompt; for several it is a folder (files 000.mp4, 001.mp4, ...).
    """
    out = Path(out)
    prompts = prompts or [""]
    is_file = out.suffix.lower() in _FORMATS
    if is_file and len(prompts) > 1:
        raise UserError(f"--out={out} is one file but there are {len(prompts)} prompts; give a folder")
    if out.suffix and not is_file:
        raise UserError(f"--out={out}: unknown format {out.suffix}; allowed: {', '.join(_FORMATS)}, or a folder")
    generator = Generator.load(workdir, overrides)
    frames = generator.read_given(given, num_frames) if given else None
    made = generator.generate(prompts, seed=seed, num_frames=num_frames, given=frames)
    facts = provenance.of_file(generator.config, workdir, seed=seed)
    paths = [out] if is_file else [out / f"{i:03d}.mp4" for i in range(len(prompts))]
    for path, video, prompt in zip(paths, made.videos, prompts):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, video, generator.config.generate.fps, {"prompt": prompt} | facts)
    return paths
