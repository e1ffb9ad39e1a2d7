"""Dumps of bad steps, and `lumos replay`, which runs one again, bitwise.

A dump under `<workdir>/dumps/<step>/` holds the batch, what the step returned, and the checkpoint before it (as hard
links: no space). Batches are a function of the seed and their number, so running from that checkpoint to the step gives
the very state the step began with, without keeping a second copy of the state while training.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from lumos import config_loading, files, sharding
from lumos.checkpoint import Checkpointer, read_config
from lumos.errors import UserError
from lumos.training.batches import open_split
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.initialize import initial_state
from lumos.training.state import create_state
from lumos.training.step import make_train_step

_log = logging.getLogger(__name__)

MAX_DUMPS = 16  # of one workdir: a run that is bad throughout must not fill the disk


def write_dump(
    workdir: Path, config, checkpointer: Checkpointer, item, values: dict, reason: str, provenance, data_plan
) -> None:
    """Write the dump of a step (`item` has step, batch_number, batch), once per step and at most MAX_DUMPS of them."""
    folder = workdir / "dumps" / f"{item.step + 1:08d}"
    (workdir / "dumps").mkdir(exist_ok=True)
    if len(files.children(workdir / "dumps")) >= MAX_DUMPS and not folder.exists():
        _log.warning("%s holds %d dumps; no more are written", folder.parent, MAX_DUMPS)
        return
    folder.mkdir(exist_ok=True)
    with files.written(folder / f"batch-{jax.process_index()}.safetensors") as path:
        save_file({k: np.ascontiguousarray(v) for k, v in item.batch.items()}, path)
    if jax.process_index():
        return
    from_step = checkpointer.latest_step()
    if from_step is not None and not (folder / "checkpoints").exists():
        checkpointer.link(from_step, folder)
    config.save(folder / "config.json")
    facts = {
        "step": item.step,
        "batch_number": item.batch_number,
        "data_plan": data_plan,
        "reason": reason,
        "from_step": from_step,
        "metrics": {name: float(value).hex() for name, value in values.items()},  # hex: every bit
        "processes": jax.process_count(),
        "provenance": provenance,
    }
    files.write_text(folder / "dump.json", json.dumps(facts, indent=1) + "\n")
    _log.warning("the batch is in %s; run the step again with: lumos replay %s", folder, folder)


def replay(folder: str | Path) -> dict[str, Any]:
    """Run the step of a dump again; return {"metrics", "recorded", "bitwise"}.

    Must run on as many processes and devices as the run did. Raises UserError when this is not a dump, or when its data
    have changed since.
    """
    folder = files.path(folder)
    try:
        dump = json.loads(files.read_text(folder / "dump.json"))
        with files.borrowed(folder / f"batch-{jax.process_index()}.safetensors") as local:
            rows = load_file(local)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not the dump of a step: {error}") from error
    if dump["processes"] != jax.process_count():
        raise UserError(f"{folder} was written by {dump['processes']} processes; these are {jax.process_count()}")
    config = config_loading.parse(read_config(folder))
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        objective, optimizer, state = _before(folder, dump, config, mesh)
        step = make_train_step(objective, optimizer, config, mesh)
        # Batches follow each other from the checkpoint on, wherever a rewind has moved their beginning to.
        first = dump["batch_number"] - (dump["step"] - (dump["from_step"] or 0))
        begin = {"data_step": first, "data_plan": dump.get("data_plan")}
        with open_split(config, mesh, config.data.split, begin) as pipeline:
            for batch in pipeline:
                if pipeline.step > dump["batch_number"]:
                    break
                state, _ = step(state, sharding.put_batch(mesh, batch))
        if any(not np.array_equal(batch[name], rows[name]) for name in rows):
            raise UserError(f"{config.data.path} has changed since {folder} was written: its batch is another one now")
        _, metrics = step(state, sharding.put_batch(mesh, rows))
    got = {name: float(value).hex() for name, value in jax.device_get(metrics).items()}
    return {
        "step": dump["step"] + 1,
        "reason": dump["reason"],
        "metrics": {name: float.fromhex(value) for name, value in got.items()},
        "recorded": {name: float.fromhex(value) for name, value in dump["metrics"].items()},
        "bitwise": got == dump["metrics"],
    }


def _before(folder: Path, dump: dict, config, mesh):
    """Return the objective, the optimizer, and the state of the checkpoint in the dump, or the initial one."""
    if dump["from_step"] is None:
        objective = make_objective(config)
        optimizer = make_objective_optimizer(objective, config)
        kinds = {"ema": config.optimizer.ema_decay > 0, "offload": config.optimizer.offload}
        extra = objective.extra_state()
        return (
            objective,
            optimizer,
            create_state(objective.definition, optimizer, mesh, seed=config.seed, **kinds, extra=extra),
        )
    checkpointer = Checkpointer(folder, read_only=True)
    try:
        objective = make_objective(config, checkpointer.read_facts())
        optimizer = make_objective_optimizer(objective, config)
        return objective, optimizer, initial_state(config, objective, optimizer, mesh, checkpointer)[0]
    finally:
        checkpointer.close()
