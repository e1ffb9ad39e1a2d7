"""Matches the config of a transformer run with its tokens: checks the data, and fills in what they decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lumos.config import Config, TokenizerConfig
from lumos.data.manifest import Manifest, open_manifest
from lumos.data.rates import common_rate, with_rate_of_tokens
from lumos.data.sources import is_manifest, manifest_fps, parse_paths
from lumos.data.text import TextTokenizer
from lumos.errors import UserError
from lumos.geometry import token_shape
from lumos.sequence import streams
from lumos.tokenizers import pretrained
from lumos.tokenizers.tokenize import read_manifest
from lumos.typed_values import from_dict


def token_manifests(config: Config) -> dict[str, dict[str, Any]]:
    """Return the manifest of every token folder in `data.path`. Raises UserError where one is missing or unfinished."""
    return {path: read_manifest(path) for path, _ in parse_paths(config.data.path) if not is_manifest(path)}


def encoder_of(config: Config) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the tokenizer of a run on tokens that has manifests of clips beside them; None for all others."""
    if config.data.source != "tokens" or not any(is_manifest(path) for path, _ in parse_paths(config.data.path)):
        return None
    if not config.tokenizer_workdir:
        raise UserError(
            f"config.data.path={config.data.path} has clips in pixels beside tokens: set config.tokenizer_workdir to the tokenizer "
            "that made the tokens, or run `lumos tokenize` on the clips first"
        )
    return pretrained.load(config.tokenizer_workdir).encode


def tokenizer_fingerprints(config: Config) -> set[str]:
    """Return the tokenizers that made the tokens in `data.path`, as far as they are known and the folders are there."""
    try:
        manifests = token_manifests(config).values()
    except UserError:
        return set()
    return {manifest["tokenizer"]["fingerprint"] for manifest in manifests} - {None}


def with_grids_of_tokens(config: Config, manifests: dict[str, dict[str, Any]]) -> Config:
    """Return the config of a transformer with `data.buckets`, `sequence.grid` and the `tokenizer` section of its tokens.

    What is given stays: `sequence.grid` alone is the only bucket. Without either, every grid that the manifests name is a
    bucket, that of the first folder first. Tokens that do not say which tokenizer made them leave that section as it is.

    Raises UserError where grid and first bucket differ, or no clip fills them.
    """
    settings = [settings for manifest in manifests.values() if (settings := _settings(manifest))]
    grids = list(dict.fromkeys(grid for manifest in manifests.values() for grid in grids_of(manifest)))
    data, sequence = config.data, config.sequence
    buckets = data.buckets or ((sequence.grid,) if any(sequence.grid) else tuple(grids))
    grid = sequence.grid if any(sequence.grid) else buckets[0]
    if grid != buckets[0]:
        raise UserError(
            f"config.data.buckets={buckets} begins with another grid than config.sequence.grid={grid}; training and generation need "
            "the same: set one of them alone, or neither to take the grids of the tokens"
        )
    frames, *size = grid
    if not [known for known in grids if list(known[1:]) == size and known[0] >= frames]:  # longer clips are cut
        name = "data.buckets" if data.buckets else "sequence.grid"
        raise UserError(
            f"{data.path} holds token grids {', '.join(map(str, grids))} (frames, rows, columns) but config.{name}="
            f"{data.buckets or grid}; set it to {'()' if data.buckets else '(0, 0, 0)'} to take the grids of the tokens"
        )
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, buckets=buckets),
        sequence=dataclasses.replace(sequence, grid=grid),
        tokenizer=settings[0] if settings else config.tokenizer,
    )


def _rates_of_clips(config: Config) -> dict[str, float]:
    """Return the frames a second of clips in pixels."""
    paths = [path for path, _ in parse_paths(config.data.path) if is_manifest(path)]
    return {path: config.data.fps or common_rate(path, _moving(open_manifest(path))) for path in paths}


def _moving(manifest: Manifest) -> np.ndarray:
    return manifest.column("fps")[manifest.column("frames") > 1]


def grids_of(manifest: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Return the token grids (frames, rows, columns) in a folder, the one of its first bucket first."""
    settings = _settings(manifest)
    shapes = manifest.get("buckets") or [] if settings else []
    return list(dict.fromkeys([tuple(manifest["grid"]), *(token_shape(settings, *shape) for shape in shapes)]))


def _settings(manifest: dict[str, Any]) -> TokenizerConfig | None:
    """Return the settings of the tokenizer behind tokens; None where their manifest does not say them."""
    found = (manifest.get("tokenizer") or {}).get("config")
    known = {field.name for field in dataclasses.fields(TokenizerConfig)}
    return found and from_dict(TokenizerConfig, {n: v for n, v in found.items() if n in known}, "tokenizer")


def match_data(config: Config) -> Config:
    """Return the config with what its text model and its tokens decide: vocabulary sizes, rate, grids, tokenizer settings.

    Raises UserError if a transformer, or latent actions, shall train on something else than tokens, they do not fill the grid, they were made by
    another tokenizer than the one in `tokenizer_workdir`, samples are wanted without a tokenizer, or the clips behind the
    tokens have several rates, or another than `sequence.fps` where that is written into sequences.
    """
    if config.task == "tokenizer":
        return config
    if config.data.source != "tokens":
        what = "a transformer" if config.task == "transformer" else "a latent action model"
        raise UserError(
            f"config.data.source={config.data.source!r}: {what} trains on tokens; make them with lumos tokenize, then set "
            "config.data.source=tokens and config.data.path to their folder"
        )
    manifests = token_manifests(config)
    if not manifests:
        raise UserError(
            f"config.data.path={config.data.path!r} names no folder of tokens, written by lumos tokenize; clips in pixels may stand beside one, "
            "which says the grids"
        )
    config = with_grids_of_tokens(config, manifests)
    if encoder_of(config):  # tokens that were made elsewhere do not say how
        config = dataclasses.replace(config, tokenizer=pretrained.load(config.tokenizer_workdir).config)
    if config.train.num_samples and not config.tokenizer_workdir:
        raise UserError(
            f"config.train.num_samples={config.train.num_samples} needs config.tokenizer_workdir, the workdir of the tokenizer that "
            "made the tokens; set it, or config.train.num_samples=0"
        )
    if config.tokenizer_workdir:
        loaded = pretrained.load(config.tokenizer_workdir)
        for path, manifest in manifests.items():
            if manifest["tokenizer"]["fingerprint"] not in (None, loaded.fingerprint):  # None: made elsewhere
                raise UserError(
                    f"{path} was made by tokenizer {manifest['tokenizer']['fingerprint']}, but {config.tokenizer_workdir} holds "
                    f"{loaded.fingerprint}; run `lumos tokenize` again, or point config.tokenizer_workdir to the right one"
                )
    rates = {path: manifest_fps(manifest) for path, manifest in manifests.items()}
    for path, manifest in manifests.items():
        found = streams.tokens_of(manifest)
        comes_with_tokens = config.sequence.streams and not config.actions.weight
        if comes_with_tokens and found and found != config.sequence.streams:
            raise UserError(
                f"{path} holds streams of {found} (codes, tokens of a latent frame), but config.sequence.streams={config.sequence.streams}; set it "
                "to them, or to () to train without"
            )
    config = with_rate_of_tokens(config, rates | _rates_of_clips(config))
    model, text_size = config.model, TextTokenizer(config.text.model).vocab_size
    text_vocab = model.text_vocab or text_size
    codebook = max(int(manifest["codebook_size"]) for manifest in manifests.values())
    visual_vocab = model.visual_vocab or codebook
    if visual_vocab < codebook:
        raise UserError(
            f"config.model.visual_vocab={visual_vocab} is smaller than the codebook of {config.data.path}: {codebook}"
        )
    model = dataclasses.replace(model, text_vocab=text_vocab, visual_vocab=visual_vocab)
    config = dataclasses.replace(config, model=model)
    room = config.sequence.layout.visual_start if config.sequence.layout.name == "lumos1" else text_vocab
    if text_size > room:
        name = "sequence.layout.visual_start" if config.sequence.layout.name == "lumos1" else "model.text_vocab"
        raise UserError(f"config.{name}={room} is smaller than the text vocabulary: {text_size}")
    return config
