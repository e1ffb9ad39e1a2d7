"""`lumos export`: a training workdir -> a release, of any kind of run (lumos/weights/release.py says what that is)."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lumos
from lumos import config_loading, files
from lumos.checkpoint import read_config
from lumos.checkpoint_steps import resolve
from lumos.config import Config
from lumos.errors import UserError
from lumos.release.card import model_card
from lumos.tokenizers import pretrained
from lumos.videos.generator import Generator
from lumos.weights import release, safetensors_files

_MAX_BYTES = 5_000_000_000  # of one file


def export(
    workdir: str | Path,
    target: str | Path,
    *,
    step: str = "",
    weights: str = "",
    dtype: str = "",
    report: str = "",
    license: str = "",
    max_bytes: int = _MAX_BYTES,
) -> dict[str, Any]:
    """Write the release of a run into a new folder; return its release.json.

    Args:
      step: which checkpoint, see `checkpoint_steps.resolve`; by default the newest.
      weights: "ema", "raw", or "" for the EMA where there is one.
      dtype: of the tensors of a transformer, such as "bfloat16"; by default as they are. Tokenizers stay as they are, for their
        tokens would change.
      report: folder that `lumos evaluate` wrote, whose figures go into the model card.
      license: of the weights, as the card names it, such as "apache-2.0".
      max_bytes: of one file of weights.

    Raises UserError: no such run or checkpoint, or a folder that is not empty.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"--to={target} is not empty; choose a new folder")
    config = config_loading.parse(read_config(workdir))
    if config.task == "actions":
        raise UserError(
            f"{workdir} holds latent actions, which have no release; label tokens with them (lumos data label)"
        )
    steps = resolve(workdir, step)
    if len(steps) > 1:
        raise UserError(f"--step={step} names {len(steps)} checkpoints; export one")
    if config.task == "tokenizer":
        if step or weights or dtype:
            raise UserError("--step, --weights and --dtype are for transformers: a tokenizer is its newest EMA weights")
        return _export_tokenizer(str(workdir), target, report, license, max_bytes)
    model = Generator.load(workdir, {"model.param_dtype": dtype} if dtype else None, steps[0], weights)
    target.mkdir(parents=True, exist_ok=True)
    _export_tokenizer(config.tokenizer_workdir, target / release.TOKENIZER, "", license, max_bytes)
    changes: dict[str, Any] = {"tokenizer_workdir": release.TOKENIZER}
    changes["actions"] = dataclasses.replace(config.actions, weight=0.0)  # what was learnt beside it stays behind
    if config.text.model:
        name = f"text{Path(config.text.model).suffix}"
        shutil.copy(config.text.model, target / name)
        changes["text"] = dataclasses.replace(config.text, model=name)
    tensors = release.tensors_of("transformer", model.definition, model.params, dtype)
    facts = {
        "parameters": model.definition.num_params,
        "step": model.step,
        "weights": weights or ("ema" if config.optimizer.ema_decay else "raw"),
    }
    return _write(
        target, dataclasses.replace(model.config, **changes), tensors, facts, workdir, report, license, max_bytes
    )


def _export_tokenizer(workdir: str, target: Path, report: str, license: str, max_bytes: int) -> dict[str, Any]:
    tokenizer, config = pretrained.load(workdir), config_loading.parse(read_config(workdir))
    target.mkdir(parents=True, exist_ok=True)
    tensors = release.tensors_of("tokenizer", tokenizer.definition, tokenizer.params)
    number = sum(x.size for x in jax.tree.leaves(tokenizer.params))
    known = release.read_facts(workdir)["step"] if release.is_release(workdir) else resolve(workdir, "")[0]
    facts = {"parameters": number, "step": known, "fingerprint": tokenizer.fingerprint}
    return _write(target, config, tensors, facts, workdir, report, license, max_bytes)


def _write(
    target: Path,
    config: Config,
    tensors: Iterable[tuple[str, np.ndarray]],
    facts: dict[str, Any],
    workdir: str | Path,
    report: str,
    license: str,
    max_bytes: int,
) -> dict[str, Any]:
    """Write everything, release.json last: a folder without it is none."""
    # Paths of this machine, which say nothing elsewhere.
    data, loss = dataclasses.replace(config.data, path=""), dataclasses.replace(config.loss, teacher="")
    train = dataclasses.replace(config.train, sample_prompts="")
    safetensors_files.write(target, tensors, max_bytes=max_bytes)
    released = dataclasses.replace(config, data=data, loss=loss, train=train)
    (target / "config.json").write_text(json.dumps(released.to_dict(), indent=1) + "\n")
    facts = {
        "format": release.FORMAT,
        "lumos": lumos.__version__,
        "task": config.task,
        "name": config.name,
        **facts,
        "provenance": _last_line(files.path(workdir) / "runs.jsonl"),
    }
    (target / "README.md").write_text(model_card(config, facts, files.path(workdir), report, license))
    names = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    facts["files"] = {name: (target / name).stat().st_size for name in names}
    files.write_text(target / release.NAME, json.dumps(facts, indent=1) + "\n")
    return facts


def _last_line(path: Path) -> dict[str, Any]:
    """Return what the run's last start recorded of where it comes from; {} where that is not known."""
    try:
        return json.loads(files.read_text(path).splitlines()[-1])
    except (OSError, ValueError, LookupError):
        return {}
