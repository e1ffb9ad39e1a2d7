"""A folder of videos after a tokenizer, under the same names: what TokenBench (and DAVIS in its layout) compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lumos import config_loading, outputs, provenance
from lumos.checkpoint import read_config
from lumos.data.video import probe, read_clip
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.tokenizers import pretrained


def reconstruct(workdir: str | Path, videos: str | Path, out: str | Path) -> list[Path]:
    """Encode and decode every .mp4 of a folder with the tokenizer of a run; return the files, of the same names and sizes.

    Frames and edges are repeated up to what the tokenizer takes, and cut off again. Files that are there are kept.

    Raises UserError: no folder, or no video in it.
    """
    folder, out = Path(videos), outputs.check_folder(out, "--out")
    files = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
    if not files:
        raise UserError(f"--layout=tokenbench needs a folder of .mp4 files: --video=FOLDER; {folder} is none")
    config = config_loading.parse(read_config(workdir))
    tokenizer = pretrained.load(workdir if config.task == "tokenizer" else config.tokenizer_workdir)
    c, made = tokenizer.config, []
    for file in files:
        path = out / file.name
        made.append(path)
        if path.exists():
            continue
        info = probe(file)
        video = read_clip(file, height=info.height, width=info.width)
        frames, height, width = video.shape[:3]
        short = (
            -(frames - 1) % c.temporal_compression,
            -height % c.spatial_compression,
            -width % c.spatial_compression,
        )
        padded = np.pad(video, (*((0, x) for x in short), (0, 0)), mode="edge")
        recon = tokenizer.decode(tokenizer.encode(padded[None]))[0, :frames, :height, :width]
        write_video(path, recon, info.fps, provenance.of_file(config, workdir))
    return made


def command(videos: str | Path, out: str | Path) -> str:
    """Return the official command."""
    return f"python3 -m token_bench.metrics_cli --mode=all --ext=mp4 --gtpath {videos} --targetpath {out}"
