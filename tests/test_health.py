"""Bad numbers: skipped on the device, counted, dumped, replayed; too many end the run or take it back."""

import json
from types import SimpleNamespace
from unittest.mock import MagicMock, patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tokens import one_device, run_config, write_tokens  # noqa: F401

from lumos import cli, sharding
from lumos.checkpoint import Checkpointer, fingerprint
from lumos.config import Config
from lumos.data.pipeline import make_pipeline
from lumos.errors import UserError
from lumos.runtime import health, metrics_writer
from lumos.training import bad_steps
from lumos.training.loop import train
from lumos.training.match_data import match_data
from lumos.training.optimizer import make_optimizer
from lumos.training.replay import replay
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


def _identity(tokens):
    """Return a number that differs between batches, in numpy and in jax alike."""
    return (tokens.reshape(-1) * np.arange(tokens.size, dtype=np.int32)).sum()


BAD = (3, 4, 5)  # the batches that `poison` makes infinite


@pytest.fixture
def poison(monkeypatch, folder):
    """Make the loss of the batches BAD infinite."""
    with make_pipeline(match_data(run_config(folder)), "train", process_index=0, process_count=1) as pipeline:
        identities = [int(_identity(next(pipeline)["tokens"])) for _ in range(24)]
    assert len(set(identities)) == len(identities)
    loss, bad = TransformerObjective.loss, jnp.array([identities[number] for number in BAD])

    def poisoned(self, params, batch, *rest):
        out = loss(self, params, batch, *rest)
        return out._replace(sum=out.sum * jnp.where(jnp.isin(_identity(batch["tokens"]), bad), jnp.inf, 1.0))

    monkeypatch.setattr(TransformerObjective, "loss", poisoned)


def test_a_step_that_is_not_finite_changes_nothing_but_the_step():
    class Poisoned(TransformerObjective):
        def loss(self, params, batch, *rest):
            out = super().loss(params, batch, *rest)
            return out._replace(sum=out.sum * jnp.where(batch["tokens"][0, 0, 0, 0] == 7, jnp.nan, 1.0))

    config = tiny.transformer(model__num_layers=1)
    mesh = sharding.make_mesh(config.mesh)
    objective, optimizer = Poisoned(config), make_optimizer(config.optimizer, 10)
    batch = tiny.token_batch(config)
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=0, ema=True)
        step = make_train_step(objective, optimizer, config, mesh)
        for code, skipped in ((0, 0.0), (7, 1.0), (0, 0.0)):
            batch["tokens"][0, 0, 0, 0] = code
            before = [fingerprint(item) for item in (state.params, state.opt_state, state.ema)]
            number = int(state.step)
            state, values = step(state, sharding.put_batch(mesh, batch))
            after = [fingerprint(item) for item in (state.params, state.opt_state, state.ema)]
            assert float(values["skipped"]) == skipped and int(state.step) == number + 1
            assert (before == after) == bool(skipped)


def test_spikes_and_streaks():
    rng = np.random.default_rng(0)
    monitor = health.HealthMonitor()
    assert all(monitor.observe(s, s, 5 + rng.normal() / 10, 1.0) is None for s in range(40))
    assert monitor.observe(40, 40, 5.5, 1.0) is None and monitor.healthy
    assert "loss spike: 9 is" in monitor.observe(41, 41, 9.0, 1.0)
    assert "not finite" in monitor.observe(42, 43, float("nan"), 1.0)
    assert not monitor.healthy and not monitor.hopeless
    assert "2 bad steps in a row (41 to 42, batches 41 to 43)" in monitor.describe()
    assert monitor.observe(43, 44, 5.0, 1.0) is None and monitor.healthy
    for step in range(health.MAX_BAD_STEPS):
        assert monitor.observe(step, step, 5.0, float("inf"))
    assert monitor.hopeless and monitor.num_bad == 2 + health.MAX_BAD_STEPS


@pytest.mark.parametrize("new_terms_at", [{40}, set()])
def test_a_new_term_of_the_loss_is_no_spike(new_terms_at):
    """A discriminator that starts at step 40 adds 1 to a loss of 0.1, for good."""
    judge = bad_steps.BadSteps(Config(), "", MagicMock(), new_terms_at, {})
    with patch.object(bad_steps.replay, "write_dump") as dump:
        for step in range(49):
            values = {"loss": 0.1 + 0.01 * (step % 3) + (step >= 40), "grad_norm": 1.0}
            judge.judge(SimpleNamespace(step=step, batch_number=step), values, None)
    assert (judge.health.num_bad, dump.call_count) == ((0, 0) if new_terms_at else (9, 9))


def test_bad_steps_are_counted_dumped_and_replayed_bitwise(folder, tmp_path, poison, capsys):
    train(run_config(folder, train__num_steps=8, train__keep_checkpoints=1), tmp_path / "run")
    lines = metrics_writer.read(tmp_path / "run", "train")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 1, 0, 0] and lines[-1]["bad_steps"] == 3
    assert sorted(path.name for path in (tmp_path / "run" / "dumps").iterdir()) == ["00000004", "00000005", "00000006"]
    dump = tmp_path / "run" / "dumps" / "00000005"
    facts = json.loads((dump / "dump.json").read_text())
    assert (facts["batch_number"], facts["from_step"]) == (4, 4) and facts["provenance"]["seed"] == 0
    result = replay(dump)
    assert result["bitwise"] and result["metrics"]["loss"] == float("inf")
    assert cli.main(["replay", str(tmp_path / "run" / "dumps" / "00000004")]) == 0
    assert "bitwise equal" in capsys.readouterr().out
    (dump / "dump.json").write_text("{")
    assert cli.main(["replay", str(dump)]) == 2
    assert Checkpointer(tmp_path / "run", read_only=True).last_good_step() == 8


def test_too_many_bad_steps_stop_the_run_with_the_batch_numbers(folder, tmp_path, poison, monkeypatch):
    monkeypatch.setattr(health, "MAX_BAD_STEPS", 3)
    with pytest.raises(UserError, match=r"in a row \(3 to 5, batches 3 to 5\).*good checkpoint is step 2") as caught:
        train(run_config(folder, train__num_steps=8, train__keep_checkpoints=1), tmp_path / "run")
    assert "lumos replay" in str(caught.value) and "\n" not in str(caught.value)
    kept = Checkpointer(tmp_path / "run", read_only=True)
    assert (kept.latest_step(), kept.last_good_step()) == (4, 2)


def test_or_take_it_back_to_the_last_good_checkpoint_without_these_data(folder, tmp_path, poison, monkeypatch):
    monkeypatch.setattr(health, "MAX_BAD_STEPS", 3)
    config = run_config(folder, train__num_steps=8, train__keep_checkpoints=1, train__on_bad_steps="rewind")
    train(config, tmp_path / "run")
    lines = metrics_writer.read(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == list(range(1, 9)) and not any(line["skipped"] for line in lines)
    meta = Checkpointer(tmp_path / "run", read_only=True).read_meta()
    assert meta["step"] == 8 and meta["data_step"] > 8 + len(BAD) and meta["good"]
