"""From a config to what is trained: fill in vocabulary sizes, check the data against them, build the task."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from lumos.config import Config
from lumos.data.buckets import latent_shape
from lumos.data.rates import with_rate_of_tokens
from lumos.data.text import TextTokenizer
from lumos.errors import UserError
from lumos.training.optimizer import make_grouped_optimizer, make_optimizer
from lumos.training.step import Task


def make_task(config: Config) -> Task:
    """Build the task of a resolved config."""
    if config.task == "tokenizer":
        from lumos.tokenizers.task import TokenizerTask

        return TokenizerTask(config)
    from lumos.training.transformer_task import TransformerTask

    return TransformerTask(config)


def make_task_optimizer(task: Task, config: Config) -> optax.GradientTransformation:
    """Return the optimizer of a run: one for all, or one for each of the groups a task divides its parameters into."""
    groups = getattr(task, "groups", None)
    if groups is None:
        return make_optimizer(config.optimizer, config.train.num_steps)
    return make_grouped_optimizer(groups, task.group_optimizers, config.train.num_steps, task.group_starts)


def token_manifests(config: Config) -> dict[str, dict[str, Any]]:
    """Return the manifest of every token folder in `data.path`. Raises UserError where one is missing or unfinished."""
    from lumos.data.sources import parse_paths
    from lumos.tokenizers.tokenize import read_manifest

    return {path: read_manifest(path) for path, _ in parse_paths(config.data.path)}


def resolve(config: Config) -> Config:
    """Return the config with the vocabulary sizes of its text model and its tokens, and their rate; refuse what does not fit.

    Raises UserError if a transformer shall train on something else than tokens, the token grid is not `sequence.grid`, the
    tokens were made by another tokenizer than the one in `tokenizer_workdir`, samples are wanted without a tokenizer, or the
    clips behind the tokens have several rates, or another than `sequence.fps` where that is written into sequences.
    """
    if config.task != "transformer":
        return config
    if config.data.source != "tokens":
        raise UserError(
            f"config.data.source={config.data.source!r}: a transformer trains on tokens; make them with lumos tokenize, then set "
            "config.data.source=tokens and config.data.path to their folder"
        )
    from lumos.data.sources import manifest_fps
    from lumos.tokenizers import pretrained

    manifests = token_manifests(config)
    if not manifests:
        raise UserError("config.data.path is empty; give a folder of tokens, written by lumos tokenize")
    frames, *size = config.sequence.grid
    grids = [tuple(manifest["grid"]) for manifest in manifests.values()]
    if not [grid for grid in grids if list(grid[1:]) == size and grid[0] >= frames]:  # longer clips are cut
        raise UserError(
            f"{config.data.path} holds token grids {grids[0]} (frames, rows, columns) but config.sequence.grid="
            f"{tuple(config.sequence.grid)}; set it to {grids[0]}, and config.data.buckets to the clips behind it"
        )
    trained = latent_shape(config.data.buckets[0], config.tokenizer)
    if trained != tuple(config.sequence.grid):
        raise UserError(
            f"config.data.buckets={config.data.buckets}: the first bucket is a grid of {trained}, but config.sequence.grid="
            f"{tuple(config.sequence.grid)}; training and generation need the same"
        )
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
    config = with_rate_of_tokens(config, {path: manifest_fps(manifest) for path, manifest in manifests.items()})
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
    room = config.sequence.visual_start if config.sequence.style == "lumos1" else text_vocab
    if text_size > room:
        name = "sequence.visual_start" if config.sequence.style == "lumos1" else "model.text_vocab"
        raise UserError(f"config.{name}={room} is smaller than the text vocabulary: {text_size}")
    return config
