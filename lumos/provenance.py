"""Where a result comes from: seed, versions, git commit, config and data, recorded with every run and every file."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import lumos
from lumos import files
from lumos.config import Config
from lumos.growing_files import Appended
from lumos.version import commit

_log = logging.getLogger(__name__)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av", "sentencepiece")


def describe(config: Config) -> dict[str, Any]:
    """Return everything that a run's numbers depend on."""
    return {
        "seed": config.seed,
        "config": fingerprint(config),
        "data": data_fingerprint(config.data.path),
        "commit": commit(),
        "versions": {"lumos": lumos.__version__, "python": platform.python_version(), **_packages()},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
    }


def begin(config: Config, workdir: Path, restored: dict[str, Any]) -> dict[str, Any]:
    """Return `describe(config)` for a run that starts from `restored` (`training.initialize`), and record it in the workdir.

    Data that have changed since the checkpoint are warned of.
    """
    facts, start = describe(config), restored["step"]
    data = restored.get("provenance", facts)["data"]
    if data != facts["data"]:
        _log.warning(
            "config.data.path, or what lies there, has changed since step %d (fingerprint %s, now %s): the run goes on with these "
            "data; if that is not meant, give the old ones", start, data, facts["data"],
        )  # fmt: skip
    if jax.process_index() == 0:
        _record(workdir / "runs.jsonl", facts | {"start_step": start})
    return facts


def of_file(config: Config, workdir: str | Path, **more: Any) -> dict[str, str]:
    """Return the short form that goes into the metadata of a file made by the run in `workdir`; `more` may say the step."""
    try:
        data = json.loads(files.read_text(files.path(workdir) / "runs.jsonl").splitlines()[-1])["data"]
    except (OSError, ValueError, LookupError):  # weights that lumos has not trained
        data = ""
    facts = {"run": Path(workdir).name, "seed": config.seed, "config": fingerprint(config), "data": data}
    versions = {"commit": commit(), "lumos": lumos.__version__, "jax": jax.__version__}
    return {name: str(value) for name, value in (facts | versions | more).items()}


def _record(path: Path, facts: dict[str, Any]) -> None:
    """Append one line to a JSONL file: every start of a run leaves its own."""
    file = Appended(path)
    file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}))
    file.close()


def fingerprint(config: Config) -> str:
    """Return a short hash of all config fields."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def data_fingerprint(paths: str) -> str:
    """Return a short hash of the manifests that `data.path` names: of a clip list, a token folder, a TFDS folder."""
    from lumos.data.sources import parse_paths

    digest = hashlib.sha256()
    for text, weight in parse_paths(paths):
        path = files.path(text)
        names = ("manifest.json", "*_info.json")
        found = [path] if path.is_file() else [file for name in names for file in files.find(path, name)]
        digest.update(str(weight).encode())
        for file in found:
            digest.update(file.name.encode())
            with files.borrowed(file) as local, local.open("rb") as stream:
                while block := stream.read(1 << 24):  # a manifest may be larger than memory
                    digest.update(block)
    return digest.hexdigest()[:16]


@functools.cache
def _packages() -> dict[str, str]:
    return {name: metadata.version(name) for name in _PACKAGES}
