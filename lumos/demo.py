"""`lumos demo`: data -> tokenizer -> tokens -> transformer -> samples -> report, each through the real command's code."""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
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
    tokenizer's run with `data.buckets` of whole clips) and "transformer"; `variant` ("smoke") is appended to each.
    """
    from lumos.data import moving_shapes

    # Absolute, because the runs' configs name each other's folders.
    start, workdir = time.perf_counter(), Path(workdir).absolute()
    suffix = f",{variant}" if variant else ""
    tokenizer_run = config_loading.load(f"{config_file}:tokenizer{suffix}")
    tokens_run = config_loading.load(f"{config_file}:tokens{suffix}")
    transformer_run = config_loading.load(f"{config_file}:transformer{suffix}")
    clips, tokens = workdir / "moving_shapes", workdir / "tokens"
    tokenizer_run, tokens_run = (_with_paths(run, clips, workdir) for run in (tokenizer_run, tokens_run))
    transformer_run = _with_paths(transformer_run, tokens, workdir)

    _stage(1, "drawing captioned clips")
    moving_shapes.prepare(clips, tokens_run.shapes, tokens_run.data.buckets[0], tokens_run.seed)
    _stage(2, "training the tokenizer")
    train(tokenizer_run, workdir / "tokenizer")
    _stage(3, "turning clips into tokens")
    tokenize(tokens_run, pretrained.load(workdir / "tokenizer"), tokens)
    _stage(4, "training the transformer")
    train(transformer_run, workdir / "transformer")
    _stage(5, "generating unseen prompts, and measuring")
    results = evaluate(workdir / "transformer", workdir / "report")

    reconstruction = results["reconstruction"]
    summary = {
        "seconds": time.perf_counter() - start,
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "linux" else 2**30),
        "tokenizer": {name: reconstruction[name] for name in ("psnr", "usage", "codebook_size")},
        "prompt_accuracy": results["prompt_accuracy"],
        "generate": results["generate"],
        "versions": versions(),
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"\nreport:        {workdir / 'report' / 'index.html'}")
    print(f"contact sheet: {workdir / 'report' / 'prompts.png'}")
    print(
        f"your prompt:   lumos generate --workdir={workdir / 'transformer'} --prompt='a red circle moves left' --out=out.mp4"
    )
    return summary


def _with_paths(config: Config, data: Path, workdir: Path) -> Config:
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=str(data)),
        tokenizer_workdir=str(workdir / "tokenizer"),
    )


def _stage(number: int, text: str) -> None:
    _log.info("[%d/5] %s", number, text)
