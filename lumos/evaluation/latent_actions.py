"""What a latent action model is worth: what its codes tell of the next frame, how many it uses, and what they have to do with real actions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from lumos import sharding
from lumos.config import Config
from lumos.data.pipeline import make_pipeline
from lumos.evaluation import metric
from lumos.evaluation.metric import Metric
from lumos.latent_actions.mapping import Mapping
from lumos.latent_actions.objective import ActionsObjective
from lumos.latent_actions.trained import Labeller
from lumos.sequence import streams
from lumos.tokenizers.quantizers import codebook_usage, perplexity
from lumos.training.match_data import token_manifests


def measure(config: Config, workdir: Path) -> dict[str, Metric]:
    """Measure the run of a workdir on `evaluate.num_clips` clips of `evaluate.split`.

    Where the tokens have streams, the first one is taken for the real actions: a mapping is learnt from as many clips of `data.split` (the
    small labelled set) and scored on the others.
    """
    labeller, objective = Labeller.load(workdir), ActionsObjective(config)
    (manifest, *_) = token_manifests(config).values()
    found = streams.tokens_of(manifest)
    clips = list(_clips(config, config.evaluate.split, found))
    with sharding.on_one_device():
        rows = jax.jit(objective.evaluate_rows)
        parts = [jax.device_get(rows(labeller.params, {"tokens": tokens})) for tokens, _ in clips]
    sums = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    protocol = f"next latent frame from {config.actions.history} before it and the action, tokens of split {config.evaluate.split}"
    metrics = {
        "nll": metric.ratio(sums["nll"], sums["count"], f"nats a token; {protocol}", "low"),
        "nll_shuffled": metric.ratio(
            sums["nll_shuffled"], sums["count"], f"with the actions of other clips; {protocol}"
        ),
        "accuracy": metric.ratio(sums["correct"], sums["count"], f"share of tokens; {protocol}", "high"),
        **_of_codes(sums["codes"], protocol),
    }
    return metrics | (_mapping(config, labeller, found, clips) if found else {})


def _of_codes(codes_NK: np.ndarray, protocol: str) -> dict[str, Metric]:
    of = lambda function: lambda count_N: function((codes_NK * count_N[:, None]).sum(0))
    number = f"of {codes_NK.shape[1]} latent actions; {protocol}"
    return {
        "use": metric.statistic(of(codebook_usage), (len(codes_NK),), f"share {number}", "high"),
        "perplexity": metric.statistic(of(perplexity), (len(codes_NK),), f"exp(entropy) {number}", "high"),
    }


def _mapping(config: Config, labeller: Labeller, found: tuple[tuple[int, int], ...], clips: list) -> dict[str, Metric]:
    """Learn from clips of training what the codes mean; return how well the actions of the others are read off them."""
    num_actions = found[0][0]  # with null

    def named(pairs):  # codes and actions of all frames but the first, [N, T - 1] each
        codes = [np.stack(labeller(list(tokens)))[:, 1:, 0] for tokens, _ in pairs]
        return np.concatenate(codes), np.concatenate([actions[:, 1:] for _, actions in pairs])

    labelled = named(list(_clips(config, config.data.split, found)))
    mapping = Mapping.learn(*labelled, labeller.num_codes, num_actions)
    codes_NT, actions_NT = named(clips)
    protocol = f"mapping learnt from {len(labelled[0])} labelled clips of split {config.data.split}"
    most_frequent = mapping.counts_KA.sum(0).argmax()

    def shared(count_N):  # of what is to be known of the actions
        rows = np.repeat(np.arange(len(codes_NT)), count_N)
        information, entropy = Mapping.learn(
            codes_NT[rows], actions_NT[rows], labeller.num_codes, num_actions
        ).information
        return information / max(entropy, 1e-9)

    return {
        "action_accuracy": metric.mean(mapping.accuracy(codes_NT, actions_NT).mean(1), f"share of real actions read off; {protocol}", "high"),
        "action_chance": metric.mean((actions_NT == most_frequent).mean(1), "share of the most frequent action"),
        "action_information": metric.statistic(shared, (len(codes_NT),), "mutual information with the actions, share of their entropy", "high"),
    }  # fmt: skip


def _clips(config: Config, split: str, found: tuple[tuple[int, int], ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield tokens [B, T, H, W] and the real actions [B, T] that led to their frames (the newest of each), up to `evaluate.num_clips`."""
    c = config.evaluate
    data = dataclasses.replace(config.data, batch_size=c.batch_size)
    sequence = dataclasses.replace(config.sequence, streams=found)
    config = dataclasses.replace(config, data=data, sequence=sequence)
    with make_pipeline(config, split, process_index=0, process_count=1, train=False) as pipeline:
        for batch in itertools.islice(pipeline, max(1, c.num_clips // c.batch_size)):
            yield batch["tokens"], batch["stream_0"][:, :, -1] if found else batch["tokens"][:, :, 0, 0]
