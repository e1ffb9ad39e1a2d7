"""`lumos data label`: a folder of tokens -> the same folder with latent actions as a stream, labelled once.

A shard appears under its name only when it is complete, and a killed run continues with those that are missing. `plan.json` pins the
tokens and the model, so that another one in the same folder is refused; `manifest.json` is written when every shard is there.
"""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np

from lumos import files
from lumos.data.records import RecordSource, RecordWriter
from lumos.errors import UserError
from lumos.latent_actions.trained import Labeller
from lumos.tokenizers.quantizers import codebook_usage, perplexity
from lumos.tokenizers.tokenize import read_manifest

NAME = "latent_action"  # of the stream


def label(tokens: str | Path, labeller: Labeller, out: str | Path, *, keep: bool = False) -> dict[str, Any]:
    """Write the tokens with their latent actions into `out`; return its manifest.

    Records have the actions as `stream_0`, int32 [T, 1], and the manifest describes the stream as that of real ones: whole numbers that lead
    to their frames. `latent_actions` there says which model named them, where it lay, and how often each code is used.

    Args:
      keep: keep the streams that the tokens have already: the latent actions are the last one then.

    Raises:
      UserError: no finished folder of tokens, of a codebook that is not the model's, or `out` holds something else.
    """
    tokens, out = files.path(tokens), files.path(out)
    manifest = read_manifest(tokens)
    vocabulary = labeller.config.model.visual_vocab
    if int(manifest["codebook_size"]) > vocabulary:
        raise UserError(
            f"{tokens}: tokens of a codebook of {manifest['codebook_size']}, but these latent actions were learnt on one of {vocabulary}"
        )
    streams = list(manifest.get("streams", ())) if keep else []
    stream = {"name": NAME, "codes": labeller.num_codes, "names": [], "low": 0.0, "high": 0.0, "rows": 1, "leads": True}
    named = {"fingerprint": labeller.fingerprint}
    manifest |= {"streams": [*streams, stream | {"tokens": 1}], "latent_actions": named}
    _pin(out, manifest)
    shards = files.find(tokens, "*.array_record")
    counts = collections.Counter()
    for shard in shards:
        target = out / shard.name
        if not target.exists():
            _label(shard, target, labeller, len(streams))
        counts.update(np.concatenate([x[1:, 0] for x in _streams(target, len(streams))] or [np.empty(0, int)]).tolist())
    used = [counts[code] for code in range(labeller.num_codes)]
    # The folder is not part of the plan: a model may move.
    named |= {"workdir": str(labeller.workdir), "codes": used, "use": codebook_usage(np.array(used))}
    manifest["latent_actions"] = named | ({"perplexity": perplexity(np.array(used))} if sum(used) else {})
    files.write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest


def _pin(out: Path, manifest: dict[str, Any]) -> None:
    """Write what is being made; refuse a folder that holds something else."""
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "plan.json"
    if plan.exists() and json.loads(files.read_text(plan)) != json.loads(json.dumps(manifest)):
        raise UserError(f"{out} holds other tokens, or labels of another model; choose another --out")
    if not plan.exists() and files.find(out, "*.array_record"):
        raise UserError(f"{out} holds shards already; choose another --out")
    files.write_text(plan, json.dumps(manifest, indent=1) + "\n")


def _label(shard: Path, target: Path, labeller: Labeller, num_kept: int) -> None:
    source = RecordSource([shard])
    records = [source[i] for i in range(len(source))]
    labels = labeller([record["tokens"] for record in records])
    with RecordWriter(target) as writer:
        for record, label_T1 in zip(records, labels):
            kept = {name: x for name, x in record.items() if not name.startswith("stream_") or int(name[7:]) < num_kept}
            writer.write(kept | {f"stream_{num_kept}": label_T1})


def _streams(shard: Path, number: int) -> list[np.ndarray]:
    source = RecordSource([shard])
    return [source[i][f"stream_{number}"] for i in range(len(source))]
