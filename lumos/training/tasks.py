"""From a config to what is trained: fill in vocabulary sizes, check the data against them, build the task."""

from __future__ import annotations

import dataclasses

import optax

from lumos.config import Config
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


def resolve(config: Config) -> Config:
    """Return the config with the vocabulary sizes of its text model and its tokens, refusing what does not fit.

    Raises UserError if a transformer shall train on something else than tokens, the token grid is not `sequence.grid`, the
    tokens were made by another tokenizer than the one in `tokenizer_workdir`, or samples are wanted without a tokenizer.
    """
    if config.task != "transformer":
        return config
    if config.data.source != "tokens":
        raise UserError(
            f"config.data.source={config.data.source!r}: a transformer trains on tokens; make them with lumos tokenize, then set "
            "config.data.source=tokens and config.data.path to their folder"
        )
    from lumos.tokenizers import pretrained
    from lumos.tokenizers.tokenize import read_manifest

    manifest = read_manifest(config.data.path)
    frames, *size = manifest["grid"]
    if size != list(config.sequence.grid[1:]) or frames < config.sequence.grid[0]:  # longer clips are cut
        raise UserError(
            f"{config.data.path} holds token grids {tuple(manifest['grid'])} (frames, rows, columns) but "
            f"config.sequence.grid={tuple(config.sequence.grid)}; set it to {tuple(manifest['grid'])}"
        )
    if config.train.num_samples and not config.tokenizer_workdir:
        raise UserError(
            f"config.train.num_samples={config.train.num_samples} needs config.tokenizer_workdir, the workdir of the tokenizer that "
            "made the tokens; set it, or config.train.num_samples=0"
        )
    if config.tokenizer_workdir:
        loaded = pretrained.load(config.tokenizer_workdir)
        if manifest["tokenizer"]["fingerprint"] not in (None, loaded.fingerprint):  # None: made elsewhere
            raise UserError(
                f"{config.data.path} was made by tokenizer {manifest['tokenizer']['fingerprint']}, but {config.tokenizer_workdir} "
                f"holds {loaded.fingerprint}; run `lumos tokenize` again, or point config.tokenizer_workdir to the right one"
            )
    model = config.model
    text_vocab = model.text_vocab or TextTokenizer(config.text.model).vocab_size
    visual_vocab = model.visual_vocab or int(manifest["codebook_size"])
    if visual_vocab < manifest["codebook_size"]:
        raise UserError(
            f"config.model.visual_vocab={visual_vocab} is smaller than the codebook of {config.data.path}: "
            f"{manifest['codebook_size']}"
        )
    model = dataclasses.replace(model, text_vocab=text_vocab, visual_vocab=visual_vocab)
    return dataclasses.replace(config, model=model)
