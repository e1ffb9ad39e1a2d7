"""How a run begins: from its own checkpoint, from another run's weights, or from random ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from lumos.checkpoint import Checkpointer
from lumos.config import Config
from lumos.errors import UserError
from lumos.objective import Objective
from lumos.training.optimizer import check_resumed
from lumos.training.state import TrainState, abstract_state, create_state

_log = logging.getLogger(__name__)


def initial_state(
    config: Config,
    objective: Objective,
    optimizer,
    mesh,
    checkpointer: Checkpointer,
    init_from: str | Path = "",
    fresh: tuple[str, ...] = (),
    step: int | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state, and {"step", "data_step"}: the finished updates and the batch that comes next. When a run is
    resumed, the rest of what its checkpoint says is there too ("data_plan", "config", "provenance").

    A run that has a checkpoint resumes from it (the latest, or `step`), whatever `init_from` says: the same command
    starts and resumes. One that has only weights, without optimizer state, starts from them. See
    `lumos.training.loop.train` for the other arguments.
    """
    definition, extra = objective.definition, objective.extra_state()
    kinds = {"ema": config.optimizer.ema_decay > 0, "offload": config.optimizer.offload}
    if checkpointer.latest_step() is not None and not checkpointer.has_optimizer():
        params = checkpointer.restore_params(abstract_state(definition, optimizer, mesh, ema=False).params)
        _log.info("fine-tuning the weights in %s", checkpointer.directory)
        state = create_state(definition, optimizer, mesh, seed=config.seed, **kinds, params=params, extra=extra)
        return state, {"step": 0, "data_step": 0}
    if checkpointer.latest_step() is not None:
        began = checkpointer.read_meta(step).get("config")
        if began:  # the weights that a run starts from have none
            check_resumed(config.optimizer, began["optimizer"], str(checkpointer.directory))
        abstract = abstract_state(definition, optimizer, mesh, **kinds, extra=extra)
        state, meta = checkpointer.restore(abstract, step)
        begun = meta.get("init_from", ""), meta.get("fresh", list(fresh))
        if meta["step"] == 0 and init_from and begun != (str(init_from), list(fresh)):
            raise UserError(
                f"{checkpointer.directory} already begins with the weights of {begun[0]} (--fresh={','.join(begun[1])}); delete it, or "
                "choose another --workdir"
            )
        return state, {"data_step": meta["step"], **meta}
    if fresh and not init_from:
        raise UserError(f"--fresh={','.join(fresh)} says what --init_from leaves out; give --init_from too")
    if config.freeze_encoder and not init_from:
        raise UserError(
            "config.freeze_encoder=True without --init_from would keep a random encoder; give it a trained run"
        )
    state = create_state(definition, optimizer, mesh, seed=config.seed, **kinds, extra=None if init_from else extra)
    if init_from:
        source = Checkpointer(init_from, read_only=True)
        try:
            params, state = source.restore_params(state.params, fresh=fresh), None  # two states may not fit
            _log.info("starting from the weights in %s (step %d)", init_from, source.latest_step())
        finally:
            source.close()
        state = create_state(definition, optimizer, mesh, seed=config.seed, **kinds, params=params, extra=extra)
        begun = {"data_step": 0, "init_from": str(init_from), "fresh": list(fresh), "config": config.to_dict()}
        begun["objective"] = objective.facts
        checkpointer.save(0, state, begun)
        jax.block_until_ready(state)
    return state, {"step": 0, "data_step": 0}
