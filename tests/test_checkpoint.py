"""Checkpoints: what is kept, what a failed save does, and what comes of restoring under other circumstances."""

import dataclasses
import json
import logging
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny
from tokens import one_device, run_config, write_tokens  # noqa: F401

from lumos import sharding
from lumos.checkpoint import Checkpointer, fingerprint
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.runtime import stop_requests
from lumos.training.initialize import initial_state
from lumos.training.loop import train
from lumos.training.optimizer import check_resumed, make_optimizer
from lumos.training.state import abstract_state, create_state
from lumos.training.transformer_objective import TransformerObjective

pytestmark = pytest.mark.usefixtures("one_device")


class Saved:
    """A state on a mesh of the eight test devices, and what it takes to restore it elsewhere."""

    def __init__(self, mesh=None, num_devices=8, **changes):
        self.config = tiny.transformer(model__num_kv_heads=2, **changes)
        self.mesh = sharding.make_mesh(mesh or MeshConfig(), jax.devices()[:num_devices])
        self.objective = TransformerObjective(self.config)
        self.definition = self.objective.definition
        self.optimizer = make_optimizer(self.config.optimizer, 10)
        self.ema = self.config.optimizer.ema_decay > 0

    def state(self, seed=0):
        return create_state(self.definition, self.optimizer, self.mesh, seed=seed, ema=self.ema)

    @property
    def abstract(self):
        return abstract_state(self.definition, self.optimizer, self.mesh, ema=self.ema)


def save(workdir, saved, steps=(1,), good=lambda step: True, **options):
    checkpointer = Checkpointer(workdir, **options)
    state = saved.state()
    for step in steps:
        checkpointer.save(step, state, {"data_step": step}, good=good(step))
    checkpointer.wait()
    return checkpointer, state


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A workdir with one checkpoint, for tests that only read it, and the state in it."""
    folder = tmp_path_factory.mktemp("plain")
    checkpointer, state = save(folder, Saved())
    checkpointer.close()
    return folder, state


def test_newest_multiples_and_the_last_good_checkpoint_are_kept(tmp_path):
    checkpointer, _ = save(tmp_path, Saved(), steps=range(1, 9), good=lambda step: step <= 5, keep=2, keep_every=3)
    assert sorted(checkpointer._manager.all_steps()) == [3, 5, 6, 7, 8]
    assert (checkpointer.latest_step(), checkpointer.last_good_step()) == (8, 5)
    again = Checkpointer(tmp_path, read_only=True)
    assert again.last_good_step() == 5
    checkpointer.delete_after(5)
    assert sorted(checkpointer._manager.all_steps()) == [3, 5]


@pytest.mark.parametrize(
    "mesh, num_devices", [({"fsdp": 4, "tensor": 2}, 8), ({"fsdp": 2, "replica": 2}, 4), ({"fsdp": 1}, 1)]
)
def test_restoring_on_another_mesh_gives_the_same_numbers(plain, mesh, num_devices):
    (folder, state) = plain
    checkpointer = Checkpointer(folder, read_only=True)
    other = Saved(MeshConfig(**{"fsdp": 1, **mesh}), num_devices)
    restored, meta = checkpointer.restore(other.abstract)
    assert (int(restored.step), meta["data_step"]) == (1, 1)
    assert fingerprint(restored.params) == fingerprint(state.params)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, state.opt_state)
    wanted = jax.tree.map(lambda x: x.sharding, other.abstract.params)
    assert jax.tree.map(lambda x: x.sharding, restored.params) == wanted


def test_restoring_in_another_dtype_casts_and_says_so(plain, caplog):
    (folder, state) = plain
    checkpointer = Checkpointer(folder, read_only=True)
    with caplog.at_level(logging.WARNING, logger="lumos"):
        logging.getLogger("lumos").propagate = True
        restored, _ = checkpointer.restore(Saved(model__param_dtype="bfloat16").abstract)
    assert {x.dtype for x in jax.tree.leaves(restored.params)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), restored.params, state.params)
    assert "arrays are cast" in caplog.text


def test_an_ema_that_was_not_saved_starts_as_a_copy(tmp_path):
    checkpointer, state = save(tmp_path, Saved(optimizer__ema_decay=0.0))
    restored, _ = checkpointer.restore(Saved().abstract)
    assert fingerprint(restored.ema) == fingerprint(state.params)


def test_an_ema_switched_on_for_a_bfloat16_run_is_float32(tmp_path):
    checkpointer, state = save(tmp_path, Saved(optimizer__ema_decay=0.0, model__param_dtype="bfloat16"))
    wanted = Saved(model__param_dtype="bfloat16").abstract
    restored, _ = checkpointer.restore(wanted)
    types = lambda state: jax.tree.map(lambda x: (x.dtype, x.sharding), state)
    assert types(restored) == types(wanted)
    assert {x.dtype for x in jax.tree.leaves(restored.params)} == {np.dtype(jnp.bfloat16)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), restored.ema, state.params)


def test_an_ema_that_is_not_wanted_is_left_out(plain):
    (folder, state) = plain
    checkpointer = Checkpointer(folder, read_only=True)
    restored, _ = checkpointer.restore(Saved(optimizer__ema_decay=0.0).abstract)
    assert restored.ema is None and fingerprint(restored.params) == fingerprint(state.params)


def test_weights_alone_are_the_ema_unless_params_are_asked_for(plain, tmp_path):
    saved, state = Saved(), plain[1]
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 1, state.params))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, {})
    checkpointer.wait()
    abstract = saved.abstract.params
    assert fingerprint(checkpointer.restore_params(abstract)) == fingerprint(state.ema)
    assert fingerprint(checkpointer.restore_params(abstract, item="params")) == fingerprint(state.params)
    without, _ = save(tmp_path / "without", Saved(optimizer__ema_decay=0.0))
    with pytest.raises(UserError, match="has no ema; it has params, opt_state"):
        without.restore_params(abstract, item="ema")


def test_a_changed_vocabulary_is_refused_by_name_and_taken_when_named(plain):
    (folder, state) = plain
    checkpointer = Checkpointer(folder, read_only=True)
    larger = Saved(model__visual_vocab=300)
    with pytest.raises(UserError, match=r"lm_head/kernel is \(32, \d+\), the config wants \(32, \d+\)") as caught:
        checkpointer.restore(larger.abstract)
    assert "--fresh" in str(caught.value) and "\n" not in str(caught.value)
    start = larger.state(seed=5)
    changed = [name for name in start.params if name.startswith(("embed", "lm_head"))]
    params = checkpointer.restore_params(start.params, fresh=changed)
    assert fingerprint(params["layers"]) == fingerprint(state.ema["layers"])
    for name in changed:
        assert fingerprint(params[name]) == fingerprint(start.params[name])
    with pytest.raises(UserError, match="no parameter is named 'head'"):
        checkpointer.restore_params(start.params, fresh=["head"])


def test_missing_and_extra_arrays_and_items_are_named(plain, tmp_path):
    checkpointer = Checkpointer(plain[0], read_only=True)
    with pytest.raises(UserError, match="o_proj/bias is missing"):
        checkpointer.restore(Saved(model__attention_bias=True).abstract)
    with pytest.raises(UserError, match="q_norm/.* is not in the model of this config"):
        checkpointer.restore(Saved(model__qk_norm="none").abstract)
    with pytest.raises(UserError, match=r"no checkpoint of step 7 .*there are \[1\]"):
        checkpointer.restore(Saved().abstract, step=7)
    shutil.copytree(plain[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "opt_state")
    with pytest.raises(UserError, match="has no opt_state, only params, ema"):
        Checkpointer(tmp_path, read_only=True).restore(Saved().abstract)
    with pytest.raises(UserError, match="no checkpoint in"):
        Checkpointer(tmp_path / "nothing", read_only=True)


def test_weights_without_optimizer_state_start_a_run_of_their_own(plain, tmp_path):
    saved, state = Saved(), plain[1]
    shutil.copytree(plain[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "opt_state")
    start, meta = initial_state(saved.config, saved.objective, saved.optimizer, saved.mesh, Checkpointer(tmp_path))
    assert meta == {"step": 0, "data_step": 0} and int(start.step) == 0
    assert fingerprint(start.params) == fingerprint(state.ema)


def test_a_reader_leaves_the_unfinished_save_of_a_running_writer_alone(plain, tmp_path):
    shutil.copytree(plain[0], tmp_path, dirs_exist_ok=True)
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    reader = Checkpointer(tmp_path, read_only=True)
    assert reader.latest_step() == 1 and unfinished.exists()
    writer = Checkpointer(tmp_path)
    deadline = time.monotonic() + 60
    while unfinished.exists() and time.monotonic() < deadline:  # a thread of the writer removes it
        time.sleep(0.01)
    assert writer.latest_step() == 1 and not unfinished.exists()


def test_a_kill_while_a_checkpoint_is_deleted_leaves_no_half_of_it(tmp_path, monkeypatch):
    """The files of a deleted checkpoint go after it has lost its name, and at the next start if they have to."""
    kept, deleted = tmp_path / "checkpoints", tmp_path / "checkpoints" / "deleted"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (path / "1" / "meta" / "metadata").unlink())  # then it is killed
        killed, _ = save(tmp_path, Saved(), steps=(1, 2, 3), keep=2)
        killed.close()
    assert not (deleted / "1" / "meta" / "metadata").exists() and (deleted / "1" / "params").exists()
    assert sorted(path.name for path in kept.iterdir()) == ["2", "3", "deleted"]
    after = Checkpointer(tmp_path, keep=2)
    assert [after.read_meta(step)["data_step"] for step in (2, 3)] == [2, 3]
    after.delete_after(2)
    after.close()
    assert [path.name for path in kept.iterdir()] == ["2"]


def test_a_checkpoint_is_linked_as_a_whole_even_after_a_kill(plain, tmp_path):
    source = plain[0] / "checkpoints" / "1"
    left = tmp_path / "checkpoints-unfinished" / "1" / "meta"
    left.mkdir(parents=True)
    (left / "metadata").hardlink_to(source / "meta" / "metadata")  # as far as the killed process had come
    Checkpointer(plain[0], read_only=True).link(1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    names = lambda folder: sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert names(tmp_path / "checkpoints" / "1") == names(source)
    assert Checkpointer(tmp_path, read_only=True).read_meta()["data_step"] == 1


def test_an_asynchronous_save_that_fails_stops_the_run_and_leaves_the_one_before(tmp_path, monkeypatch):
    """The disk is full from the second save on: the error comes up by itself, in one line."""
    import resource

    config = run_config(write_tokens(tmp_path / "tokens"))
    saved_before = Checkpointer.save

    def save(self, step, *args, **kwargs):
        saved_before(self, step, *args, **kwargs)
        if step == 2:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(Checkpointer, "save", save)
    try:
        with pytest.raises(UserError, match="saving a checkpoint in .* failed .the last good one is step 2.") as caught:
            train(config, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    # Threads of the failed save still write for a moment, which in a new process there would not be.
    seen = None
    while (now := sorted((tmp_path / "run" / "checkpoints").rglob("*"))) != seen:
        seen = now
        time.sleep(1)
    train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "runs.jsonl").read_text().splitlines()[-1])["start_step"] == 2
    assert Checkpointer(tmp_path / "run", read_only=True).latest_step() == 6


def test_the_clock_asks_for_checkpoints_too(tmp_path, monkeypatch):
    monkeypatch.setattr(stop_requests, "SAVE_SECONDS", 0.0)
    config = run_config(write_tokens(tmp_path / "tokens"), train__checkpoint_every=10**6, train__keep_checkpoints=9)
    train(config, tmp_path / "run")
    assert len(Checkpointer(tmp_path / "run", read_only=True)._manager.all_steps()) >= 3  # 1 without the clock


def test_every_save_logs_its_size_and_the_host_memory(tmp_path, caplog):
    logging.getLogger("lumos").propagate = True
    with caplog.at_level(logging.INFO, logger="lumos"):
        save(tmp_path, Saved())
    (line,) = [text for text in caplog.messages if text.startswith("saving step 1")]
    size, memory = (float(word) for word in re.findall(r"([\d.]+) GB", line))
    assert size >= 0 and 0.1 < memory < 100


def test_init_from_takes_weights_and_starts_at_step_0(tmp_path):
    config = run_config(write_tokens(tmp_path / "tokens"), train__keep_checkpoints=9)
    train(config, tmp_path / "first")
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, visual_vocab=300))
    with pytest.raises(UserError, match="lm_head"):
        train(wider, tmp_path / "second", init_from=tmp_path / "first")
    train(config, tmp_path / "third", init_from=tmp_path / "first")
    assert sorted(Checkpointer(tmp_path / "third", read_only=True)._manager.all_steps()) == [0, 2, 4, 6]


@pytest.mark.slow
def test_a_run_goes_on_under_the_rule_of_weight_decay_that_it_began_with(tmp_path):
    """Checkpoints of before the rule was a field mean decay of every parameter."""
    config = run_config(write_tokens(tmp_path / "tokens"), train__num_steps=2, optimizer__decay="all")
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=4))
    sparing = dataclasses.replace(longer, optimizer=dataclasses.replace(config.optimizer, decay="matrices"))
    train(config, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    for meta in (tmp_path / "old" / "checkpoints").glob("*/meta/metadata"):
        values = json.loads(meta.read_text())
        del values["config"]["optimizer"]["decay"]
        meta.write_text(json.dumps(values))
    for name in ("run", "old"):
        with pytest.raises(UserError, match="acts on every parameter; set config.optimizer.decay=all to go on"):
            train(sparing, tmp_path / name)
    assert train(longer, tmp_path / "old") == train(longer, tmp_path / "run")  # bit for bit
    plain = dataclasses.replace(config.optimizer, name="sgd")
    with pytest.raises(UserError, match="had no effect on sgd: it cannot go on"):
        check_resumed(plain, {}, "run")
    check_resumed(plain, dataclasses.asdict(plain), "run")
    check_resumed(dataclasses.replace(plain, weight_decay=0.0), {}, "run")
    muon = dataclasses.replace(config.optimizer, name="muon")
    check_resumed(muon, {"beta1": 0.9}, "run")
    with pytest.raises(UserError, match="beta1, there 0.95, was that of Muon's Adam"):
        check_resumed(muon, {"beta1": 0.95}, "run")


def test_a_run_of_before_sgd_had_weight_decay_goes_on_without(tmp_path):
    """Its state has the form that optax gives it: nothing but clipping and sgd."""
    config = run_config(write_tokens(tmp_path / "tokens"), optimizer__name="sgd", optimizer__weight_decay=0.0)
    params = {"w": jnp.ones((2, 2))}
    got, plain = (
        jax.tree.structure(o.init(params))
        for o in (
            make_optimizer(config.optimizer, 4),
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(lambda _: 1)),
        )
    )
    assert got == plain


def test_a_reader_looks_again_when_a_checkpoint_is_deleted_under_its_eyes(plain, monkeypatch):
    folder, _ = plain
    manager, calls = ocp.CheckpointManager, []

    def vanishing(*arguments, **options):
        calls.append(options["options"].read_only)
        if len(calls) < 3:
            raise FileNotFoundError(str(folder / "checkpoints" / "1"))
        return manager(*arguments, **options)

    monkeypatch.setattr(ocp, "CheckpointManager", vanishing)
    assert Checkpointer(folder, read_only=True).latest_step() == 1 and len(calls) == 3
    calls.clear()
    with pytest.raises(FileNotFoundError):  # a writer is alone: there it means damage
        Checkpointer(folder)
