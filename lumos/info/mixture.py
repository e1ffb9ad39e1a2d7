"""What a training run will draw from each of its sources of data."""

from __future__ import annotations

import dataclasses
from typing import Any

from lumos.errors import UserError
from lumos.info.reading import reason


def draws(config: Any, problems: list[str]) -> dict[str, Any]:
    """Return for every source its clips, its share of the examples, and how often the run goes through it; {} where the data are not there."""
    from lumos.data import order
    from lumos.data.sources import open_sources

    try:
        if config.data.source == "tokens" and not config.data.buckets:  # a run saves them
            from lumos.training.match_data import token_manifests, with_grids_of_tokens

            manifests = token_manifests(config)
            codebook = max(int(manifest["codebook_size"]) for manifest in manifests.values())
            config = with_grids_of_tokens(config, manifests)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, visual_vocab=codebook))
        sources = open_sources(config, config.data.split)
        kinds = order.group_kinds(sources, config.data, config.tokenizer)
        plan = order.make_plan(sources, config.seed, kinds)
    except (UserError, OSError) as error:
        problems.append(f"what the run will draw cannot be told: {reason(error)}")
        return {}
    found = order.drawn_by_source(plan, config.train.num_steps)
    total = sum(examples for rows in found for _, examples in rows.values())
    rows = {}
    for name, source in zip(plan["names"], found):
        row: dict[str, Any] = {"share": round(sum(examples for _, examples in source.values()) / max(total, 1), 4)}
        for kind, (clips, examples) in source.items():
            row |= {f"{kind}_clips": clips, f"{kind}_examples": examples, f"{kind}_epochs": round(examples / clips, 3)}
        rows[name] = row
    return rows
