"""Checkpoints: the only file that imports Orbax, with orbax_on_s3.py, which teaches it s3://.

A workdir holds `config.json` and `checkpoints/<step>/` with one Orbax item each for params, optimizer state, EMA
and extra state, and a small JSON item (step, position in the data, whether the run was healthy, versions). Saves are asynchronous and
atomic: a killed save leaves a temporary folder that is never taken for a checkpoint. So are deletions: a checkpoint is
moved away before its files go, for half of one under its number would be taken for a whole. A save that fails raises at
the next step, and whatever was saved before stays.

In a bucket nothing can be moved: there a checkpoint is what has its marker, which is written last and deleted first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

import lumos
from lumos import files, orbax_on_s3
from lumos.config_loading import read_resolved
from lumos.errors import UserError
from lumos.runtime.speed import resident_bytes

if TYPE_CHECKING:
    from lumos.training.state import TrainState

_log = logging.getLogger(__name__)
logging.getLogger("orbax").setLevel(logging.WARNING)
# Orbax prints the traceback of a failed save once per thread before it raises; we report what it raises, in one line.
logging.getLogger("absl").addFilter(lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname)
# It warns of what a reader asks it for.
logging.getLogger("absl").addFilter(lambda record: not str(record.msg).startswith("Given directory is read only"))

_ARRAYS = ("params", "opt_state", "ema", "extra")
_MARKER = "commit_success.txt"  # of Orbax, in buckets
_MAX_ATTEMPTS = 10
_SAVE_ERRORS = (OSError, ValueError, RuntimeError)  # what file systems raise through Orbax and TensorStore


class Checkpointer:
    """Saves and restores the training state of one workdir.

    Args:
      keep: newest checkpoints to keep; the last good one is kept beside them.
      keep_every: checkpoints at multiples of this many steps are kept for ever; 0 = none.
      read_only: look at a workdir that another process may be writing to. Nothing in it is touched.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2, keep_every: int = 0, read_only: bool = False):
        self.directory = files.absolute(files.path(workdir)) / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise UserError(f"no checkpoint in {self.directory}")
        # Host memory of writing and reading: at most a quarter of the machine's in flight, beside the state itself.
        limit = max(1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 // 2**30)
        arrays = {
            name: ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit, restore_concurrent_gb=limit) for name in _ARRAYS
        }
        self._keep, self._keep_every = keep, keep_every
        self._in_bucket = files.is_remote(self.directory)
        orbax_on_s3.prepare(self.directory)
        policies = [preserve.PreserveAll()] if self._in_bucket else [preserve.LatestN(keep), _LastGood(self)]
        if keep_every:
            policies.append(preserve.EveryNSteps(keep_every))
        self._good: dict[int, bool] = {}
        self._saving = False
        self._deleted = self.directory / "deleted"
        self._sweeps = not read_only and jax.process_index() == 0 and not self._in_bucket
        self._sweeper = ThreadPoolExecutor(1)
        self._swept = self._sweeper.submit(self._sweep)
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,  # with another one a reader is warned
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only or self._in_bucket else self._deleted.name,
            preservation_policy=preserve.AnyPreservationPolicy(policies),
        )
        handlers = arrays | {"meta": ocp.JsonCheckpointHandler()}
        for attempt in range(_MAX_ATTEMPTS):
            try:
                self._manager = ocp.CheckpointManager(self.directory, item_handlers=handlers, options=options)
                break
            except FileNotFoundError:  # the process that writes here has just deleted what was being listed
                if not read_only or attempt == _MAX_ATTEMPTS - 1:
                    raise

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def last_good_step(self) -> int | None:
        """Return the newest checkpoint that was saved while the run was healthy."""
        return max((step for step in self._manager.all_steps() if self._is_good(step)), default=None)

    def _is_good(self, step: int) -> bool:
        if step not in self._good:
            self._good[step] = self.read_meta(step).get("good", True)
        return self._good[step]

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """Return the JSON item of a checkpoint (the latest by default)."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(self._resolve(step), args=args)["meta"]

    def read_facts(self) -> dict[str, Any]:
        """Return the `facts` of the objective that the latest checkpoint was trained with; {} where there are none."""
        return {} if self.latest_step() is None else self.read_meta().get("objective", {})

    def save(self, step: int, state: TrainState, meta: dict[str, Any], *, good: bool = True) -> None:
        """Start an asynchronous save, once the one before is on disk. Raises UserError when that one has failed."""
        self.wait()
        if step in self._manager.all_steps():
            return
        self._swept.result()
        items = {name: getattr(state, name) for name in _ARRAYS}
        args = {name: ocp.args.PyTreeSave(value) for name, value in items.items() if value is not None}
        meta = {"step": step, "good": good, "lumos": lumos.__version__, "jax": jax.__version__, **meta}
        try:
            self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args))
        except _SAVE_ERRORS as error:
            raise self._failed(error) from error
        self._good[step], self._saving = good, True
        size = sum(shard.data.nbytes for leaf in jax.tree.leaves(items) for shard in leaf.addressable_shards)
        _log.info("saving step %d: %.3f GB, host memory now %.2f GB", step, size / 1e9, resident_bytes() / 1e9)

    def check(self) -> None:
        """Raise what an asynchronous save that has ended raised; cheap, called every step."""
        if self._saving and not self._manager.is_saving_in_progress():
            self._finish()

    def wait(self) -> None:
        """Block until pending saves are on disk; every process of a run calls it. Raises UserError when one has failed."""
        self._finish()
        if self._in_bucket:
            self._delete_old()

    def _finish(self) -> None:
        self._saving = False
        try:
            self._manager.wait_until_finished()
        except _SAVE_ERRORS as error:
            raise self._failed(error) from error
        self._swept = self._sweeper.submit(self._sweep)

    def _delete_old(self) -> None:
        """Delete from a bucket what the policies of local workdirs do not keep."""
        steps = sorted(self._manager.all_steps())
        stay = {*steps[-self._keep :], self.last_good_step()}
        for step in steps:
            if step not in stay and not (self._keep_every and step % self._keep_every == 0):
                self._delete(step)

    def _delete(self, step: int) -> None:
        if self._in_bucket and jax.process_index() == 0:  # without its marker, half of it is none
            (self.directory / str(step) / _MARKER).unlink(missing_ok=True)
        self._manager.delete(step)
        self._good.pop(step, None)

    def _sweep(self) -> None:
        """Remove the files of deleted checkpoints. Runs in the background: the file system may be slow."""
        if self._sweeps and self._deleted.is_dir():
            try:
                shutil.rmtree(self._deleted)
            except OSError as error:
                _log.warning("%s cannot be removed: %s", self._deleted, error)

    def _failed(self, error: Exception) -> UserError:
        steps = [step for step in self._manager.all_steps() if (self.directory / str(step)).is_dir()]
        left = f"the last good one is step {max(steps)}" if steps else "there is none yet"
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 300 else reason[:140] + " ... " + reason[-140:]
        return UserError(f"saving a checkpoint in {self.directory} failed ({left}): {reason}")

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Return the state at `step` (the latest by default), placed and typed as `abstract` says, and its meta item.

        The mesh and the number of processes may be others than those that saved. Another dtype is cast. An EMA that the
        checkpoint lacks starts as a float32 copy of the parameters; one that `abstract` lacks is left out. Both are logged.

        Raises:
          UserError: missing, superfluous or differently shaped arrays (named), no optimizer state, or another extra state.
        """
        step = self._resolve(step)
        saved = self._items(step)
        wanted = {name: getattr(abstract, name) for name in _ARRAYS if getattr(abstract, name) is not None}
        if "ema" in wanted and "ema" not in saved:
            _log.warning("%s: no EMA at step %d; it starts as a copy of the parameters", self.directory, step)
            abstract = dataclasses.replace(abstract, ema=None)
            state, meta = self.restore(abstract, step)
            # Read once more: a second buffer, in the dtype of the EMA, so that the state can be donated.
            return dataclasses.replace(state, ema=self.restore_params(wanted["ema"], step, item="params")), meta
        have, want = (", ".join(sorted(items.get("extra") or {})) for items in (saved, wanted))
        if have != want:
            raise UserError(
                f"{self.directory}/{step} has {have or 'no extra state'}, but the config asks for {want or 'no extra state'}: use the config of "
                "the run, or start a new one from its weights with lumos train --init_from"
            )
        for name in sorted(set(saved) - set(wanted)):
            _log.warning("%s: the %s of step %d is left out: the config has none", self.directory, name, step)
        for name, value in wanted.items():
            if name not in saved:
                raise UserError(
                    f"{self.directory}/{step} has no {name}, only {', '.join(saved)}: it cannot be resumed; start a new "
                    "run from its weights with lumos train --init_from"
                )
            self._compare(step, name, value, saved[name])
        args = {name: _restore_args(value) for name, value in wanted.items()}
        try:
            out = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args))
        except ValueError as error:  # arrays of the same names and shapes in a tree of another form
            raise UserError(
                f"{self.directory}/{step} does not have the form that this config asks for ({' '.join(str(error).split())[:200]}); use the config of "
                "the run, or start a new one with lumos train --init_from"
            ) from error
        number = jax.device_put(jax.numpy.asarray(step, jax.numpy.int32), abstract.step.sharding)
        arrays = {name: out.get(name) for name in _ARRAYS}
        return dataclasses.replace(abstract, step=number, **arrays), out["meta"]

    def has_optimizer(self) -> bool:
        """Return whether the latest checkpoint can be resumed: converted weights come without optimizer state."""
        return (self.directory / str(self._resolve(None)) / "opt_state").exists()

    def restore_params(
        self, abstract_params: Any, step: int | None = None, *, item="", fresh: Sequence[str] = (), part=""
    ) -> Any:
        """Return only weights, placed and typed as `abstract_params` says.

        Args:
          item: "params" or "ema"; by default the weights to use, which is the EMA where there is one.
          fresh: names of subtrees, such as "lm_head", that are not read. They come back as they are in `abstract_params`, which must
            hold arrays there: a changed vocabulary or head starts anew. What only the checkpoint has is left out.
          part: name of the one subtree that `abstract_params` has; others of the checkpoint are left out.
        """
        step = self._resolve(step)
        saved = self._items(step)
        name = item or ("ema" if "ema" in saved else "params")
        if name not in saved:
            raise UserError(f"{self.directory}/{step} has no {name}; it has {', '.join(saved)}")
        known = {
            part for tree in (abstract_params, saved[name]) for path, _ in _leaves(tree) for part in path.split("/")
        }
        if unknown := sorted(set(fresh) - known):
            raise UserError(f"no parameter is named {unknown[0]!r}; names are {', '.join(sorted(known))}")
        keep = {path: leaf for path, leaf in _leaves(abstract_params) if not set(path.split("/")) & set(fresh)}
        asked = {path: x for path, x in _leaves(saved[name]) if path.startswith(f"{part}/" if part else "")}
        self._compare(step, name, keep, {p: x for p, x in asked.items() if not set(p.split("/")) & set(fresh)})
        wanted = _nest(keep)
        args = ocp.args.PyTreeRestore(
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        read = dict(_leaves(self._manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]))
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: read.get(_name(path), leaf), abstract_params, is_leaf=lambda x: hasattr(x, "shape")
        )

    def _items(self, step: int) -> dict[str, Any]:
        """Return the tree of shapes of every array item of a checkpoint."""
        metadata = self._manager.item_metadata(step)
        return {name: metadata[name].tree for name in _ARRAYS if metadata.get(name) is not None}

    def _compare(self, step: int, name: str, wanted: Any, saved: Any) -> None:
        """Raise UserError unless both trees hold arrays of the same names and shapes."""
        want, have = dict(_leaves(wanted)), dict(_leaves(saved))
        problems = [f"{path} is missing" for path in want if path not in have]
        problems += [f"{path} is not in the model of this config" for path in have if path not in want]
        problems += [
            f"{path} is {tuple(have[path].shape)}, the config wants {tuple(want[path].shape)}"
            for path in want
            if path in have and tuple(have[path].shape) != tuple(want[path].shape)
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise UserError(
                f"{self.directory}/{step}, {name}: {'; '.join(problems[:3])}{more}. Use the config of the run, or start a "
                "new one with lumos train --init_from and --fresh=<the parameters that changed>"
            )
        cast = {path for path in want if have[path].dtype != want[path].dtype}
        if cast:
            first = next(iter(cast))
            _log.warning(
                "%s, %s of step %d: %d arrays are cast, e.g. %s from %s to %s",
                self.directory, name, step, len(cast), first, have[first].dtype, want[first].dtype,
            )  # fmt: skip

    def _resolve(self, step: int | None) -> int:
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are {sorted(steps)}")
        return max(steps) if step is None else step

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: the run goes back to `step`."""
        self.wait()
        self._swept.result()
        for later in [other for other in self._manager.all_steps() if other > step]:
            self._delete(later)

    def link(self, step: int, workdir: Path) -> None:
        """Make the checkpoint of `step` appear in another workdir: of the same file system at no cost in space, in a bucket as a copy."""
        if self._in_bucket:
            files.copy_tree(self.directory / str(step), workdir / "checkpoints" / str(step), last=_MARKER)
            return
        source, unfinished = self.directory / str(step), workdir / "checkpoints-unfinished"
        if unfinished.exists():  # of a process that was killed here
            shutil.rmtree(unfinished)
        try:
            shutil.copytree(source, unfinished / str(step), copy_function=os.link)
        except shutil.Error:  # no hard links here
            shutil.copytree(source, unfinished / str(step), dirs_exist_ok=True)
        unfinished.rename(workdir / "checkpoints")

    def close(self) -> None:
        self._manager.close()
        self._sweeper.submit(self._sweep)
        self._sweeper.shutdown()


class _LastGood(preserve.PreservationPolicy):
    """Keeps the newest good checkpoint, however many bad ones follow it."""

    def __init__(self, checkpointer: Checkpointer):
        self._checkpointer = checkpointer

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        good = [info.step for info in checkpoints if self._checkpointer._is_good(info.step)]
        return [bool(good) and info.step == good[-1] for info in checkpoints]


def _restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return [(_name(path), leaf) for path, leaf in found]


def _name(path) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def read_shapes(item: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return {name of an array: (shape, dtype)} of the folder of an item, `checkpoints/<step>/params`; no array is read.

    Unlike a Checkpointer this looks at nothing else, so a running writer may delete other checkpoints meanwhile.

    Raises UserError when the folder is damaged or gone.
    """
    orbax_on_s3.prepare(item)
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(files.absolute(item)).tree
    except Exception as error:  # Orbax and TensorStore raise of every kind when files are damaged
        raise UserError(f"{item} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _leaves(tree) if leaf.shape is not None}


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
    path = files.path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} is not a training workdir: no config.json in it")
    return read_resolved(path)
