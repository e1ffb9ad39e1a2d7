"""Checkpoints: the only file that imports Orbax.

A workdir holds `config.json` and `checkpoints/<step>/` with one Orbax item each for params, optimizer state and EMA,
and a small JSON item (step, position in the data, versions). Saves are asynchronous and atomic: a killed save leaves
a temporary folder that is never taken for a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

import lumos
from lumos.errors import UserError
from lumos.training.state import TrainState

logging.getLogger("orbax").setLevel(logging.WARNING)

_ARRAYS = ("params", "opt_state", "ema")


class Checkpointer:
    """Saves and restores the training state of one workdir."""

    def __init__(self, workdir: str | Path, *, keep: int = 2):
        self.directory = Path(workdir).absolute() / "checkpoints"
        handlers = {name: ocp.PyTreeCheckpointHandler() for name in _ARRAYS} | {"meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers=handlers,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Start an asynchronous save; a failed earlier save raises here."""
        if step in self._manager.all_steps():
            return
        items = {name: getattr(state, name) for name in _ARRAYS}
        args = {name: ocp.args.PyTreeSave(value) for name, value in items.items() if value is not None}
        meta = {"step": step, "lumos": lumos.__version__, "jax": jax.__version__, **meta}
        self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args))

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Return the state at `step` (the latest by default), placed as `abstract` says, and its meta item."""
        step = self._resolve(step)
        items = {name: getattr(abstract, name) for name in _ARRAYS}
        args = {name: _restore_args(value) for name, value in items.items() if value is not None}
        out = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args))
        number = jax.device_put(jax.numpy.asarray(step, jax.numpy.int32), abstract.step.sharding)
        return TrainState(number, out["params"], out["opt_state"], out.get("ema")), out["meta"]

    def has_optimizer(self) -> bool:
        """Return whether the latest checkpoint can be resumed: converted weights come without optimizer state."""
        return (self.directory / str(self._resolve(None)) / "opt_state").exists()

    def restore_params(self, abstract_params: Any, step: int | None = None) -> Any:
        """Return only the weights to use (the EMA where there is one)."""
        step = self._resolve(step)
        name = "ema" if (self.directory / str(step) / "ema").exists() else "params"
        return self._manager.restore(step, args=ocp.args.Composite(**{name: _restore_args(abstract_params)}))[name]

    def _resolve(self, step: int | None) -> int:
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are {sorted(steps)}")
        return max(steps) if step is None else step

    def wait(self) -> None:
        """Block until pending saves are on disk; raise what they raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def fingerprint(params: Any) -> str:
    """Return a hash of names, shapes, dtypes and values: the identity of a set of weights, whatever their sharding."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        host = jax.device_get(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {host.shape} {host.dtype}".encode())
        digest.update(host.tobytes())
    return digest.hexdigest()[:16]


def read_config(workdir: str | Path) -> dict[str, Any]:
    """Return the resolved config that a training run stored in its workdir."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} is not a training workdir: no config.json in it")
    return json.loads(path.read_text())
