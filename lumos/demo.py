"""`lumos demo`: data -> tokenizer -> tokens -> transformer -> samples -> report, each through the real command's code."""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from lumos import config_loading
from lumos.config import Config
from lumos.evaluation.evaluate import evaluate, versions
from lumos.tokenizers import pretrained
from lumos.tokenizers.tokenize import tokenize
from lumos.training.loop import train

_log = logging.getLogger(__name__)


def demo(workdir: str | Path, config_file: str = "configs/demo.py", variant: str = "") -> dict[str, Any]:
    """Run the whole path into `workdir` and return what it writes to `summary.json` there.

    Every stage resumes: a demo that was stopped goes on where it was. `config_file` has the variants "tokenizer", "tokens" (the
    tokenizer's run with `data.buckets` of whole clips) and "transformer", and the one that this `starts_from`; `variant` ("smoke") is
    appended to each.
    """
    # Absolute, because the runs' configs name each other's folders.
    start, workdir = time.perf_counter(), Path(workdir).absolute()
    suffix = f",{variant}" if variant else ""
    tokenizer_run = config_loading.load(f"{config_file}:tokenizer{suffix}")
    tokens_run = config_loading.load(f"{config_file}:tokens{suffix}")
    transformer_run = config_loading.load(f"{config_file}:transformer{suffix}")
    is_game, tokens = bool(tokens_run.data.record), workdir / "tokens"
    clips = workdir / "clips" / "manifest.jsonl" if is_game else workdir / "moving_shapes"
    tokenizer_run, tokens_run = (_with_paths(run, clips, workdir) for run in (tokenizer_run, tokens_run))
    transformer_run = _with_paths(transformer_run, tokens, workdir)

    if is_game:
        _stage(1, "playing, and recording what is played")
        _record(tokens_run, clips)
    else:
        from lumos.data import moving_shapes

        _stage(1, "drawing captioned clips")
        moving_shapes.prepare(clips, tokens_run.shapes, tokens_run.data.buckets[0], tokens_run.seed)
    _stage(2, "training the tokenizer")
    train(tokenizer_run, workdir / "tokenizer")
    _stage(3, "turning clips into tokens")
    splits = ("train", "validation", "test") if is_game else ()  # worlds are measured on clips of test
    tokenize(tokens_run, pretrained.load(workdir / "tokenizer"), tokens, splits=splits)
    _stage(4, "training the transformer")
    first = transformer_run.starts_from
    if first:
        train(_with_paths(config_loading.load(f"{config_file}:{first}{suffix}"), tokens, workdir), workdir / first)
    train(transformer_run, workdir / "transformer", init_from=workdir / first if first else "")
    _stage(5, "playing the world, and measuring" if is_game else "generating unseen prompts, and measuring")
    results = evaluate(workdir / "transformer", workdir / "report", what="world" if is_game else "all")

    reconstruction = results["reconstruction"]
    summary = {
        "seconds": time.perf_counter() - start,
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "linux" else 2**30),
        "tokenizer": {name: reconstruction[name] for name in ("psnr", "usage", "codebook_size")},
        **{name: results[name] for name in ("prompt_accuracy", "generate", "world") if name in results},
        "versions": versions(),
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    command = sys.argv[0] if Path(sys.argv[0]).name == "lumos" else "lumos"  # a venv need not be on the PATH
    print(f"\nreport:        {workdir / 'report' / 'index.html'}")
    if is_game:
        print(f"play it:       {command} play --workdir={workdir / 'transformer'}")
        return summary
    print(f"contact sheet: {workdir / 'report' / 'prompts.png'}")
    print(
        f"your prompt:   {command} generate --workdir={workdir / 'transformer'} --prompt='a red circle moves left' --out=out.mp4"
    )
    return summary


def _record(config: Config, manifest: Path) -> None:
    """Record the clips of a world, unless they are there."""
    if manifest.exists():
        return
    from lumos.data.index import index
    from lumos.data_verbs import record

    flags = [*shlex.split(config.data.record), f"--out={manifest.parent}", f"--seed={config.seed}"]
    index(record(flags), manifest, config.data)


def _with_paths(config: Config, data: Path, workdir: Path) -> Config:
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=str(data)),
        tokenizer_workdir=str(workdir / "tokenizer"),
    )


def _stage(number: int, text: str) -> None:
    _log.info("[%d/5] %s", number, text)
