"""`lumos train --dry_run`: all that a run does before its first step, and what the step would take. Nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lumos import files, sharding
from lumos.checkpoint import Checkpointer
from lumos.config import Config
from lumos.data.contact_sheet import contact_sheet
from lumos.data.text import TextTokenizer
from lumos.tokenizers import pretrained
from lumos.training.batches import check_batch_size, open_split
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.match_data import match_data
from lumos.training.state import abstract_state
from lumos.training.step import make_train_step

_SHOWN = 8  # clips of the first batch that are drawn


def dry_run(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Open the data, build the model, compile the step; return the facts, as `lumos info` does.

    Draws the first batch to `workdir/dry_run.png`: clips, or tokens where the tokenizer that made them is known. The compiled step
    stays in the cache of compiled programs, so that the run finds it.

    Raises UserError, as the run would.
    """
    config, workdir = match_data(config), files.path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    check_batch_size(config, mesh)
    objective = make_objective(config)
    with jax.set_mesh(mesh), open_split(config, mesh, config.data.split, {"data_step": 0}) as pipeline:
        rows = next(pipeline)
        facts: dict[str, Any] = {
            "path": str(workdir),
            "what": f"dry run of a {config.task} run: nothing was trained",
            "begins_at_step": _begins_at(workdir),
            "num_steps": config.train.num_steps,
            "clips": pipeline.num_clips,
            "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
            "parameters": objective.definition.num_params,
            "flops_per_step": objective.flops_per_step(),
            "contact_sheet": _draw(config, rows, workdir),
            "batch": {name: {"dtype": str(x.dtype), "shape": x.shape} for name, x in rows.items()},
        }
        with open_split(config, mesh, config.data.eval_split):
            pass
        memory = _memory(config, objective, mesh, rows)
    facts["memory_of_a_device"] = {f"{name}_bytes": size for name, size in memory.items()}
    limit, needed = memory.get("limit"), memory["state"] + memory["step"]
    too_much = [f"the step needs {needed / 1e9:.3g} GB on each device, which has {(limit or 0) / 1e9:.3g} GB"]
    return facts | {"problems": too_much if limit and needed > limit else []}


def _begins_at(workdir: Path) -> int:
    """Return the step from which the run would go on."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    checkpointer = Checkpointer(workdir, read_only=True)
    try:
        resumed = checkpointer.latest_step() is not None and checkpointer.has_optimizer()
        return checkpointer.latest_step() if resumed else 0
    finally:
        checkpointer.close()


def _draw(config: Config, rows: dict[str, np.ndarray], workdir: Path) -> str | None:
    """Write the picture of the first clips of a batch; return its path."""
    if "video" in rows:
        videos = rows["video"][:_SHOWN]
    elif config.tokenizer_workdir:
        videos = pretrained.load(config.tokenizer_workdir).decode(rows["tokens"][:_SHOWN])
    else:
        return None
    captions = [TextTokenizer(config.text.model).decode(ids) for ids in rows["text"][:_SHOWN]]
    path = workdir / "dry_run.png"
    with files.written(path) as local:
        contact_sheet(videos, captions).save(local, format="PNG")
    return str(path)


def _memory(config: Config, objective, mesh, rows: dict[str, np.ndarray]) -> dict[str, int]:
    """Return bytes of one device: of the state, of the step beside it as the compiler says, and of the device itself."""
    optimizer = make_objective_optimizer(objective, config)
    kinds = {"ema": config.optimizer.ema_decay > 0, "offload": config.optimizer.offload}
    state = abstract_state(objective.definition, optimizer, mesh, **kinds, extra=objective.extra_state())
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), sharding.put_batch(mesh, rows)
    )
    program = make_train_step(objective, optimizer, config, mesh).lower(state, batch).compile()
    found = program.memory_analysis()
    memory = {"state": found.argument_size_in_bytes, "step": found.temp_size_in_bytes}
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return memory | ({"limit": limit} if limit else {})
