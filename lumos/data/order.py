"""Which examples make which batch: the plan of a training run's data, and how it goes on when the settings change.

A plan is made of JSON values and saved with every checkpoint:

    first       the batch number at which it begins; batch s is turn s - first of it
    seed, tokenizers, names         (of the sources; of tokens: the fingerprints of their tokenizers)
    kinds       clips and images take turns by `weight`
      buckets     so do the buckets of a kind, each with its batch size
        streams     of a bucket, one for each source of data: endless, shuffled anew each epoch; examples come from them by
                    `share`, beginning with example `start`

So a plan says for every batch number which examples of every stream came before. When a run is resumed with another batch
size, other shares, or other buckets, a new plan begins there, and every stream that both plans have goes on at its own
example: none is missed, none comes twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from lumos.config import DataConfig, TokenizerConfig
from lumos.config_upgrade import upgrade
from lumos.data.buckets import Bucket, assign_all, plan_buckets
from lumos.data.sources import Source, parse_paths
from lumos.errors import UserError

Plan = dict[str, Any]


@dataclasses.dataclass
class Group:
    """The clips of one bucket. For each source: (source, clip) index pairs, and its share of all training examples."""

    bucket: Bucket
    clips_N2: list[np.ndarray]
    shares: list[float]


def group(sources: list[tuple[Source, float]], buckets: list[Bucket], *, images_elsewhere: bool = False) -> list[Group]:
    """Assign every clip to a bucket. Raises UserError when all clips of a source are too short.

    With `images_elsewhere` a source of single frames alone may be there too, which has no clip here; the others share by their weights.
    """
    groups = [Group(bucket, [], []) for bucket in buckets]
    are_images = [images_elsewhere and int(source.sizes[:, 0].max(initial=1)) == 1 for source, _ in sources]
    if all(are_images) and images_elsewhere:
        are_images = [False] * len(sources)  # and the first of them is named as too short
    total_weight = sum(weight for (_, weight), images in zip(sources, are_images) if not images)
    for number, ((source, weight), images) in enumerate(zip(sources, are_images)):
        assigned = np.full(len(source.sizes), -1) if images else assign_all(source.name, source.sizes, buckets)
        kept = max(1, np.count_nonzero(assigned >= 0))
        for index, part in enumerate(groups):
            clips = np.flatnonzero(assigned == index).astype(np.int32)
            part.clips_N2.append(np.stack([np.full_like(clips, number), clips], axis=1))
            part.shares.append(weight / total_weight * len(clips) / kept)
    return [part for part in groups if sum(part.shares)]


def group_kinds(
    sources: list[tuple[Source, float]], data: DataConfig, tokenizer: TokenizerConfig, divisor: int = 1
) -> list[tuple[bool, float, list[Group]]]:
    """Return (whether these are images, share of the steps, groups) of what training alternates between."""
    kinds = ((False, 1 - data.image_fraction), (True, data.image_fraction))
    return [
        (
            images,
            weight,
            group(
                sources,
                plan_buckets(data, tokenizer, images=images, divisor=divisor),
                images_elsewhere=not images and data.image_fraction > 0,
            ),
        )
        for images, weight in kinds
        if weight
    ]


def make_plan(sources: list[tuple[Source, float]], seed: int, kinds: list[tuple[bool, float, list[Group]]]) -> Plan:
    """Return the plan of a run that begins."""

    def bucket(part: Group) -> dict[str, Any]:
        shape = list(part.bucket.key)
        streams = [
            {"source": number, "clips": len(clips_N2), "share": share, "start": 0}
            for number, (clips_N2, share) in enumerate(zip(part.clips_N2, part.shares))
            if len(clips_N2)
        ]
        return {"shape": shape, "batch_size": part.bucket.batch_size, "streams": streams}

    return {
        "first": 0,
        "seed": seed,
        "tokenizers": [_tokenizer(source) for source, _ in sources],
        "names": [source.name for source, _ in sources],
        "kinds": [
            {"images": images, "weight": weight, "buckets": [bucket(part) for part in groups]}
            for images, weight, groups in kinds
        ],
    }


def _tokenizer(source: Source) -> str | None:
    """Return the fingerprint of the tokenizer behind tokens; None where they do not say it, and for what is no tokens."""
    tokenizer = source.facts[0].get("tokenizer")
    return tokenizer.get("fingerprint") if isinstance(tokenizer, dict) else None


def turns(kind: dict[str, Any]) -> list[float]:
    """Return how often each bucket of a kind takes its turn: a clip in any of them is seen once per epoch."""
    return [sum(stream["share"] for stream in bucket["streams"]) / bucket["batch_size"] for bucket in kind["buckets"]]


def plan_of_config(sources: list[tuple[Source, float]], config: dict[str, Any], current: DataConfig) -> Plan | None:
    """Return the plan of a checkpoint that has none yet, from the config in it; None where the data cannot be its own."""
    config = upgrade(config)
    data = {name: config["data"][name] for name in ("batch_size", "image_fraction")}
    data["buckets"] = tuple(map(tuple, config["data"]["buckets"]))
    known = {field.name for field in dataclasses.fields(TokenizerConfig)}
    tokenizer = TokenizerConfig(**{name: value for name, value in config["tokenizer"].items() if name in known})
    weights = [weight for _, weight in parse_paths(config["data"]["path"])]
    if len(weights) == len(sources):
        sources = [(source, weight) for (source, _), weight in zip(sources, weights)]
    try:
        return make_plan(sources, config["seed"], group_kinds(sources, dataclasses.replace(current, **data), tokenizer))
    except UserError as error:
        logging.warning("where the run was in its data cannot be told, its steps are counted on: %s", error)
        return None


def continue_plan(plan: Plan, before: Plan, number: int) -> Plan:
    """Return the plan of a run that is resumed: `before`, up to batch `number`, where `plan` is the same, else a new one.

    What changes is said in the log, in one line.

    Raises:
      UserError: tokens of another tokenizer have taken the place of those before.
    """
    old, new = before["tokenizers"], plan["tokenizers"]
    if any(a != b and a and b for a, b in zip(old, new)):
        raise UserError(
            f"config.data.path: these tokens were made by tokenizer {', '.join(map(str, new))}, those that the run has learnt from by "
            f"{', '.join(map(str, old))}: their codes mean other things; start a new run, or give the old tokens"
        )
    moved = _moved(before.get("names", []), plan["names"])
    if _without_starts(plan) == _without_starts(before) and not moved:
        return before
    seen = dict(_seen(before, number - before["first"]))
    plan = {**plan, "first": number}
    changed, begun = 0, 0
    for key, stream in _streams(plan):
        clips, stream["start"] = seen.get(key, (0, 0))
        changed += key in seen and (clips != stream["clips"] or moved)
        begun += key not in seen
    outcome = "every stream of clips goes on at its own example, none is missed and none comes twice"
    if before["seed"] != plan["seed"] or changed:
        outcome = "the clips are shuffled in another order, so some of this epoch may come twice or not at all"
    if begun:
        outcome += f"; {begun} of {len(list(_streams(plan)))} streams are new and begin at their first example"
    logging.warning(
        "the batches from here on are others than at the checkpoint (%s): %s; the learning rate and config.train.num_steps count "
        "steps, as before",
        "; ".join(_changes(before, plan)),
        outcome,
    )
    return plan


def _moved(before: list[str], now: list[str]) -> bool:
    """Return whether a source has another place among the sources than before: its clips are shuffled by its place."""
    return any(name in now and now[number : number + 1] != [name] for number, name in enumerate(before))


def _streams(plan: Plan) -> Iterator[tuple[tuple, dict[str, Any]]]:
    for kind in plan["kinds"]:
        for bucket in kind["buckets"]:
            for stream in bucket["streams"]:
                yield (kind["images"], *bucket["shape"], stream["source"]), stream


def _without_starts(plan: Plan) -> list:
    """Return all of a plan but where it begins. Tokenizers may be unknown."""
    kinds = [
        (
            kind["images"],
            kind["weight"],
            [
                (b["shape"], b["batch_size"], [(s["source"], s["clips"], s["share"]) for s in b["streams"]])
                for b in kind["buckets"]
            ],
        )
        for kind in plan["kinds"]
    ]
    return [plan["seed"], kinds]


def _seen(plan: Plan, num_batches: int) -> Iterator[tuple[tuple, tuple[int, int]]]:
    """Yield the (clips, examples so far) of every stream after so many batches of a plan."""
    of_kinds = drawn(num_batches, [kind["weight"] for kind in plan["kinds"]])
    for kind, batches in zip(plan["kinds"], of_kinds):
        for bucket, steps in zip(kind["buckets"], drawn(batches, turns(kind))):
            examples = drawn(steps * bucket["batch_size"], [stream["share"] for stream in bucket["streams"]])
            for stream, number in zip(bucket["streams"], examples):
                key = (kind["images"], *bucket["shape"], stream["source"])
                yield key, (stream["clips"], stream["start"] + number)


def drawn_by_source(plan: Plan, num_batches: int) -> list[dict[str, tuple[int, int]]]:
    """Return for every source, of "video" and "image" batches, (its clips, the examples drawn from it) after so many batches."""
    found: list[dict[str, tuple[int, int]]] = [{} for _ in plan["names"]]
    for (images, *_, number), (clips, examples) in _seen(plan, num_batches):
        kind = "image" if images else "video"
        before = found[number].get(kind, (0, 0))
        found[number][kind] = before[0] + clips, before[1] + examples
    return found


def drawn(number: int, weights: Sequence[float]) -> list[int]:
    """Return how many of the first `number` elements of `grain.MapDataset.mix` come from each of its parts."""
    if len(weights) == 1:
        return [number]
    # Grain's rule, in closed form: whole proportions, and each part takes its share of what those before it leave.
    proportions = [int(weight * (100 / min(weights))) for weight in weights]
    remaining, left, counts = sum(proportions), number, []
    for proportion in proportions:
        rest = left * (remaining - proportion) // remaining
        counts.append(left - rest)
        remaining, left = remaining - proportion, rest
    return counts


def _changes(before: Plan, plan: Plan) -> Iterator[str]:
    """Yield what differs between two plans, in words."""

    def sizes(plan: Plan) -> dict[str, int]:
        return {
            "x".join(map(str, bucket["shape"])): bucket["batch_size"]
            for kind in plan["kinds"]
            for bucket in kind["buckets"]
        }

    def clips(plan: Plan) -> dict[tuple, int]:
        return {key: stream["clips"] for key, stream in _streams(plan)}

    old, new = sizes(before), sizes(plan)
    if old.keys() != new.keys():
        yield f"buckets {', '.join(old)}, now {', '.join(new)}"
    for shape in old:
        if old[shape] != new.get(shape, old[shape]):
            yield f"batch size of {shape} {old[shape]}, now {new[shape]}"
    weights = [[(kind["images"], kind["weight"]) for kind in p["kinds"]] for p in (before, plan)]
    if weights[0] != weights[1]:
        yield "another share of images"
    if before["seed"] != plan["seed"]:
        yield f"seed {before['seed']}, now {plan['seed']}"
    if _moved(before.get("names", []), plan["names"]):
        yield "the sources of config.data.path stand in another order"
    old, new = clips(before), clips(plan)
    if sum(old.values()) != sum(new.values()) or (old.keys() == new.keys() and old != new):
        yield f"{sum(old.values())} clips in all buckets, now {sum(new.values())}"
    if old == new and [s["share"] for _, s in _streams(before)] != [s["share"] for _, s in _streams(plan)]:
        yield "other weights of the sources"
