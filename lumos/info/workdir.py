"""A training workdir: what was trained, on what, how far it is, and what another start would lack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lumos import files
from lumos.errors import UserError
from lumos.info import checkpoints
from lumos.info.config_file import is_resolved
from lumos.info.reading import read_object, read_tail, reason, sizes_in

_FOLDERS = ("checkpoints", "samples", "dumps", "profile", "tensorboard", "compiled")
# What a glance at a config wants to see, whatever is trained, and for each objective.
_SUMMARY = (
    "data.source",
    "data.buckets",
    "data.batch_size",
    "train.num_steps",
    "optimizer.name",
    "optimizer.learning_rate",
)
_SUMMARY_OF = {
    "transformer": (
        "sequence.layout sequence.grid model.num_layers model.model_dim model.num_heads model.num_kv_heads model.dtype "
        "model.param_dtype corruption.level corruption.cells"
    ).split(),
    "tokenizer": (
        "tokenizer.body tokenizer.quantizer tokenizer.levels tokenizer.composition tokenizer.channels "
        "tokenizer.temporal_compression tokenizer.spatial_compression tokenizer.dtype"
    ).split(),
    "actions": "sequence.grid actions.codes actions.history actions.width actions.num_layers actions.code_dim".split(),
}
_METRICS = (
    "loss",
    "nll",
    "accuracy",
    "psnr",
    "ssim",
    "usage",
    "use",
    "perplexity",
    "grad_norm",
    "learning_rate",
    "bad_steps",
    "replaced_clips",
)


def recognise(path: Path) -> bool:
    if not path.is_dir():
        return False
    steps = path / "checkpoints"
    begun = (path / "runs.jsonl").is_file() or is_resolved(path / "config.json")
    return begun or (steps.is_dir() and any(child.name.partition(".")[0].isdecimal() for child in steps.iterdir()))


def describe(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    saved = checkpoints.of_workdir(path, problems)
    latest = saved["latest_step"]
    config = _config(path, problems)
    task = config.task if config else ""
    num_steps = config.train.num_steps if config else None
    resumable = latest is not None and "opt_state" in saved["checkpoints"][str(latest)]["items"]
    state = _state(latest, num_steps, resumable)
    runs = read_tail(path / "runs.jsonl", problems, whole=True)
    metrics = read_tail(path / "metrics.jsonl", problems)
    sources = _sources(config, problems) if config else []
    tokenizer = _tokenizer(config) if config else {}
    facts = {
        "what": f"workdir of a {task or 'training'} run, {_STATES[state].format(step=latest, num_steps=num_steps)}",
        "state": state,
        "name": config.name if config else None,
        "task": task or None,
        "num_steps": num_steps,
        **{name: saved[name] for name in ("latest_step", "last_good_step", "unfinished_saves")},
        "missing": _missing(config, sources, tokenizer) if config else None,
        "bad_step_dumps": sorted(child.name for child in _children(path / "dumps")),
        "samples": [child.name for child in _children(path / "samples")][-1:],
        "checkpoints": saved["checkpoints"],
    }
    if latest is not None:
        facts |= checkpoints.arrays(path / "checkpoints" / str(latest), problems)
    facts["config"] = _summary(config) if config else {}
    facts["data"] = _data(config, sources, runs, problems) if config else {}
    facts["tokenizer"] = tokenizer
    facts["last_metrics"] = _last_metrics(metrics)
    facts["starts"] = _starts(path, runs, problems)
    sizes = sizes_in(path)
    facts["size_on_disk"] = {f"{name}_bytes": sizes[name] for name in _FOLDERS if sizes.get(name)}
    facts["size_on_disk"]["all_bytes"] = sum(sizes.values())
    return facts | {"problems": problems}


_STATES = {
    "finished": "finished: step {step} of {num_steps}",
    "resumable": "can be resumed from step {step} of {num_steps}",
    "weights": "weights of step {step} without optimizer state: training begins with them at step 0",
    "new": "without a checkpoint yet: training begins at step 0",
    "unknown": "step {step}",
}


def _state(latest: int | None, num_steps: int | None, resumable: bool) -> str:
    if latest is None:
        return "new"
    if num_steps is None:
        return "unknown"
    if not resumable:
        return "weights"
    return "finished" if latest >= num_steps else "resumable"


def _config(path: Path, problems: list[str]):
    """Return the Config of a workdir; None, with a problem, where it cannot be read."""
    from lumos import config_loading

    if not (path / "config.json").is_file():
        problems.append("no config.json: nothing can be done with the weights without it")
        return None
    try:
        return config_loading.load(str(path / "config.json"))
    except UserError as error:
        problems.append(f"config.json: {str(error).removeprefix(str(path / 'config.json')).strip()}")
        return None


def _summary(config) -> dict[str, Any]:
    from lumos.config_show import fields

    values = dict(fields(config))
    return {name: values[name] for name in (*_SUMMARY_OF[config.task], *_SUMMARY)}


def _sources(config, problems: list[str]) -> list[Path]:
    """Return the paths that `data.path` names."""
    from lumos.data.sources import parse_paths

    try:
        return [files.path(name) for name, _ in parse_paths(config.data.path)]
    except UserError as error:
        problems.append(reason(error))
        return []


def _data(config, sources: list[Path], runs: list[dict], problems: list[str]) -> dict[str, Any]:
    """Return where the data are, and whether they are those of the last start."""
    from lumos.provenance import data_fingerprint

    now, before = None, runs[-1].get("data") if runs else None
    there = bool(sources) and all(source.exists() for source in sources)
    if there:
        try:
            now = data_fingerprint(config.data.path)
        except OSError as error:
            problems.append(f"data: {reason(error)}")
    if now and before and now != before:
        problems.append("the data have changed since the last start: their fingerprints differ")
    manifests = [read_object(source / "manifest.json", []) for source in sources if source.is_dir()]
    tokenizers = [manifest.get("tokenizer") for manifest in manifests]
    tokenizers = {
        str(facts["fingerprint"]) for facts in tokenizers if isinstance(facts, dict) and "fingerprint" in facts
    }
    return {
        "path": config.data.path,
        "there": there,
        "fingerprint": now,
        "fingerprint_at_last_start": before,
        "tokens_of_tokenizer": sorted(tokenizers),
    }


def _tokenizer(config) -> dict[str, Any]:
    if config.task != "transformer" or not config.tokenizer_workdir:
        return {}
    place = files.path(config.tokenizer_workdir)
    latest = checkpoints.of_workdir(place, [])["latest_step"]
    return {"workdir": str(place), "there": place.is_dir(), "latest_step": latest}


def _missing(config, sources: list[Path], tokenizer: dict[str, Any]) -> list[str]:
    """Return what another start of the run would not find, as seen from the current folder."""
    missing = [f"data {source}" for source in sources if not source.exists()]
    if tokenizer and tokenizer["latest_step"] is None:
        missing.append(f"tokenizer {tokenizer['workdir']}")
    if config.text.model and not os.path.exists(config.text.model):
        missing.append(f"text model {config.text.model}")
    return missing


def _last_metrics(lines: list[dict]) -> dict[str, dict[str, Any]]:
    """Return the newest line of every kind, its main numbers."""
    newest = {line["kind"]: line for line in lines if isinstance(line.get("kind"), str) and "step" in line}
    goodput = newest.pop("goodput", None)
    rows = {
        kind: {"step": line["step"], **{name: line[name] for name in _METRICS if name in line}}
        for kind, line in newest.items()
    }
    return rows | ({"goodput": {"step": goodput["step"], "goodput": goodput.get("goodput")}} if goodput else {})


def _starts(path: Path, runs: list[dict], problems: list[str]) -> dict[str, Any]:
    times = read_object(path / "goodput.json", problems).get("seconds")
    facts: dict[str, Any] = {}
    if runs:
        last = runs[-1]
        versions = last.get("versions") if isinstance(last.get("versions"), dict) else {}
        facts = {"number": len(runs), "last_at": last.get("time"), "last_from_step": last.get("start_step")}
        facts |= {name: last.get(name) for name in ("seed", "config", "commit", "devices", "processes")}
        facts["versions"] = {name: versions[name] for name in ("lumos", "python", "jax") if name in versions}
    if isinstance(times, dict):
        facts["wall_seconds"] = sum(value for value in times.values() if isinstance(value, (int, float)))
    return facts


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
