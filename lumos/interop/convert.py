"""`lumos convert`: released weights and tokens into what the other verbs use, and weights back out.

from            input                                   to
lumos1          checkpoint folder                       workdir: generate, evaluate, train (fine-tuning)
cosmos          safetensors or TorchScript archives     workdir of a tokenizer
lumos           workdir                                 folder with the official names
lumos1-tokens   folder or list of pickles               token folder
release         folder written by `lumos export`        workdir: train (fine-tuning), or with other settings
clips           config file of clips with actions       folder of frames and actions that Jasmine reads
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lumos import config_loading, sharding
from lumos.checkpoint import Checkpointer, read_config
from lumos.config import Config
from lumos.errors import UserError
from lumos.generation.guidance import TextGuidance
from lumos.generation.released import Released
from lumos.interop import cosmos, frames, lumos1, lumos1_config, lumos1_prompt, lumos1_tokens
from lumos.layouts import make_layout
from lumos.model.definition import Definition
from lumos.model.transformer import make_definition
from lumos.sequence.lumos1 import Lumos1
from lumos.tokenizers import pretrained
from lumos.tokenizers.causal_vae import make_definition as tokenizer_definition
from lumos.training.state import TrainState
from lumos.weights import release

_log = logging.getLogger(__name__)
_OFFICIAL = "official_config.json"  # kept in a workdir, so that an export has every field of the original
_IDS = ("vocab_size", "special_tokens", "size_token_zero", "visual_start", "token_patch_size")


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the verb: dtype "" keeps that of the files; tokenizer is a workdir; text is a tokenizer.json."""

    dtype: str = ""
    tokenizer: str = ""
    text: str = ""
    ids: str = ""  # JSON file with some of _IDS, where they differ from the released vocabulary


def convert(
    kind: str,
    source: str | Path,
    target: str | Path,
    options: Options = Options(),
    overrides: dict[str, Any] | None = None,
) -> str:
    """Convert and return one line that says what was made. Raises UserError."""
    kinds: dict[str, Callable] = {
        "lumos1": _from_lumos1,
        "cosmos": _from_cosmos,
        "lumos": _from_workdir,
        "lumos1-tokens": _from_tokens,
        "release": _from_release,
        "clips": _from_clips,
    }
    if kind not in kinds:
        raise UserError(f"--from={kind}: allowed are {', '.join(kinds)}")
    return kinds[kind](Path(source), Path(target), options, overrides or {})


def _from_lumos1(source: Path, workdir: Path, options: Options, overrides: dict[str, Any]) -> str:
    _check_new(workdir)
    # All devices share the weights, so that a model larger than one of them can be converted too.
    mesh_fields = {name: value for name, value in overrides.items() if name.startswith("mesh.")}
    mesh = sharding.make_mesh(config_loading.override(Config(), mesh_fields).mesh) if jax.device_count() > 1 else None
    model = lumos1.load(source, dtype=options.dtype or "float32", mesh=mesh, **_load_ids(options))
    text = Path(options.text) if options.text else source / "tokenizer.json"
    workdir.mkdir(parents=True, exist_ok=True)
    if text.is_file():
        shutil.copy(text, workdir / "tokenizer.json")
    elif options.text:
        raise UserError(f"--text={text}: no such file")
    config = config_loading.override(_lumos1_config(model, workdir, options), overrides)
    _save(workdir, config, model.params)
    (workdir / _OFFICIAL).write_text(json.dumps(dict(model.spec.official), indent=1) + "\n")
    unused = f"; not used: {', '.join(model.ignored[:3])} ..." if model.ignored else ""
    return f"{workdir}: {model.spec.definition.num_params:,} parameters, {config.model.param_dtype}{unused}"


def _lumos1_config(model: lumos1.Lumos1, workdir: Path, options: Options) -> Config:
    """Describe a run that continues a released model: its stage-2 settings, its sampler."""
    c, v = Config(), model.spec.vocabulary
    replace = dataclasses.replace
    text = workdir / "tokenizer.json"
    return replace(
        c,
        name="lumos1",
        tokenizer_workdir=str(Path(options.tokenizer).absolute()) if options.tokenizer else "",
        data=replace(c.data, source="tokens"),
        text=replace(c.text, model=str(text.absolute()) if text.exists() else "", template=lumos1_prompt.TEMPLATE),
        tokenizer=cosmos.CONFIGS["dv4x8x8"],
        sequence=replace(
            c.sequence,
            layout=Lumos1(
                size_unit=model.spec.size_unit,
                visual_start=v.visual_start,
                number_zero=v.number_zero,
                special_tokens=lumos1_config.special_ids(v),
            ),
            text_length=256,
            grid=(7, 32, 56),
        ),
        model=model.spec.config,
        loss=replace(c.loss, chunk=4096),
        optimizer=replace(
            c.optimizer, learning_rate=2.5e-5, schedule="constant", weight_decay=0.1, clip_norm=4.0, ema_decay=0.0
        ),
        generate=replace(
            c.generate, steps=50, sampler=Released(), guidance=TextGuidance(scale=15.0), history_ratio=0.7, fps=12.0
        ),
    )


def _from_cosmos(source: Path, workdir: Path, options: Options, overrides: dict[str, Any]) -> str:
    _check_new(workdir)
    tokenizer = cosmos.load(source)
    workdir.mkdir(parents=True, exist_ok=True)
    data = dataclasses.replace(Config().data, buckets=((17, 64, 64),))
    config = dataclasses.replace(Config(), name="cosmos", task="tokenizer", data=data, tokenizer=tokenizer.config)
    config = config_loading.override(config, overrides)
    _save(workdir, config, {"vae": tokenizer.params})
    unused = f"; {len(tokenizer.ignored)} tensors that the network never runs are left out" if tokenizer.ignored else ""
    return f"{workdir}: {tokenizer.definition.num_params:,} parameters{unused}"


def _from_workdir(workdir: Path, target: Path, options: Options, overrides: dict[str, Any]) -> str:
    read_config(workdir)
    config = config_loading.load(str(workdir / "config.json"), overrides)
    if config.task == "tokenizer":
        if not config.tokenizer.outer_norm or config.tokenizer.temporal_window:
            raise UserError(
                f"{workdir}: only tokenizers of the Cosmos shape (outer_norm, no temporal_window) have official names"
            )
        cosmos.CosmosTokenizer(config.tokenizer, pretrained.load(workdir).params).save(target)
        return f"{target}: model.safetensors with the official Cosmos names"
    if config.task == "actions" or config.sequence.layout.name != "lumos1":
        raise UserError(f"{workdir}: only transformer runs with the layout 'lumos1' have an official form")
    vocabulary = make_layout(config).vocabulary
    definition = make_definition(config.model, vocabulary)
    kept = workdir / _OFFICIAL
    official = json.loads(kept.read_text()) if kept.exists() else {}
    official |= lumos1_config.official_config(config.model, vocabulary)
    spec = lumos1.Spec(config.model, vocabulary, config.sequence.layout.size_unit, official, {}, ())
    lumos1.Lumos1(_restore(workdir, definition), spec).save(target, dtype=options.dtype or None)
    return f"{target}: config.json and safetensors with the official Lumos-1 names"


def _from_release(source: Path, workdir: Path, options: Options, overrides: dict[str, Any]) -> str:
    _check_new(workdir)
    if not release.is_release(source):
        raise UserError(f"{source} is no release: there is no {release.NAME}; make one with lumos export")
    # Absolute, for the workdir may be used from anywhere.
    config = config_loading.load(str(source.absolute() / "config.json"), overrides)
    if config.task == "tokenizer":
        definition, part = tokenizer_definition(config.tokenizer), {"vae"}
    else:
        definition, part = make_definition(config.model, make_layout(config).vocabulary), set()
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = release.read(source, definition, jax.tree.map(lambda _: place, definition.abstract))
    workdir.mkdir(parents=True, exist_ok=True)
    _save(workdir, config, {name: params for name in part} or params)
    return f"{workdir}: {definition.num_params:,} parameters, to be trained further"


def _from_clips(source: Path, target: Path, options: Options, overrides: dict[str, Any]) -> str:
    facts = frames.export(config_loading.load(str(source), overrides), target)
    counts = ", ".join(f"{facts[f'num_episodes_{split}']} of {split}" for split in ("train", "val", "test"))
    height, width = facts["image_size"]
    return f"{target}: clips of {height}x{width} with {facts['num_actions']} actions, {counts}"


def _from_tokens(source: Path, target: Path, options: Options, overrides: dict[str, Any]) -> str:
    ids = {"vocab_size": 129_536, "size_token_zero": 8804, "visual_start": 65_536} | _ids(options)
    vocabulary = lumos1_config.make_vocabulary(
        ids["vocab_size"], ids.get("special_tokens"), ids["size_token_zero"], ids["visual_start"]
    )
    unit = lumos1_config.size_unit(ids.get("token_patch_size", 32))
    fingerprint = pretrained.load(options.tokenizer).fingerprint if options.tokenizer else None
    manifest = lumos1_tokens.convert(source, target, vocabulary, unit, fingerprint=fingerprint)
    data = manifest["data"]
    return (
        f"{target}: {data['clips']['train']} sequences, latent grid {tuple(manifest['grid'])}; train with "
        f"--config.sequence.fps={data['fps']} --config.sequence.duration={data['duration']}"
    )


def _ids(options: Options) -> dict[str, Any]:
    if not options.ids:
        return {}
    try:
        ids = json.loads(Path(options.ids).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--ids={options.ids}: not a readable JSON file") from error
    if not isinstance(ids, dict) or set(ids) - set(_IDS):
        raise UserError(f"--ids={options.ids}: a JSON object with some of {', '.join(_IDS)}")
    return ids


def _load_ids(options: Options) -> dict[str, Any]:
    return {name: value for name, value in _ids(options).items() if name != "vocab_size"}  # that is in config.json


def _check_new(workdir: Path) -> None:
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} already is a workdir; choose another --to")


def _save(workdir: Path, config: Config, params: Any) -> None:
    """Write config.json and checkpoint 0, which holds weights alone: training makes its own optimizer state."""
    config.save(workdir / "config.json")
    checkpointer = Checkpointer(workdir)
    try:
        checkpointer.save(0, TrainState(jnp.zeros((), jnp.int32), params, None, None), {"data_step": 0})
        checkpointer.wait()
    finally:
        checkpointer.close()


def _restore(workdir: Path, definition: Definition) -> Any:
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), definition.abstract)
    checkpointer = Checkpointer(workdir, read_only=True)
    try:
        return checkpointer.restore_params(abstract)
    finally:
        checkpointer.close()
