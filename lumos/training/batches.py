"""Opens a split of the data for the devices of this process."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from lumos import sharding
from lumos.config import Config
from lumos.data.pipeline import Pipeline, make_pipeline
from lumos.errors import UserError
from lumos.training.match_data import encoder_of


def open_split(config: Config, mesh: Mesh, split: str, saved: dict[str, Any] | None = None) -> Pipeline:
    """Open a split: for training, from where `saved` says ("data_step", "data_plan" of a checkpoint), or for evaluation."""
    index, count = sharding.batch_part(mesh)
    return make_pipeline(
        config,
        split,
        process_index=index,
        process_count=count,
        start_step=saved["data_step"] if saved else 0,
        saved=saved,
        train=saved is not None,
        divisor=sharding.num_batch_shards(mesh) * (config.train.accumulation if saved else 1),
        encode=encoder_of(config),
    )


def check_batch_size(config: Config, mesh: Mesh) -> None:
    """Raise UserError unless the mesh and the microbatches split a batch evenly."""
    shards, accumulation = sharding.num_batch_shards(mesh), config.train.accumulation
    if config.data.batch_size % (shards * accumulation):
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} must be a multiple of the batch shards of the mesh "
            f"({shards}) times config.train.accumulation={accumulation}"
        )
