"""Extra state: in order through microbatches, past bad steps, sharded, saved and restored. The objective is a toy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lumos import sharding
from lumos.checkpoint import Checkpointer
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.objective import ExtraState, Loss, Objective
from lumos.training.initialize import initial_state
from lumos.training.step import make_train_step

ROWS, DECAY = 8, 0.25


class Model:
    abstract = {"w": jax.ShapeDtypeStruct((), jnp.float32)}
    axes = {"w": ()}

    def init(self, key):
        return {"w": jnp.ones(())}


class Toy(Objective):
    """Squares of w x. Beside them it counts microbatches, keeps a running mean of them, and a bank of the latest rows."""

    definition = Model()

    def extra_state(self):
        shapes = {"count": ((), jnp.int32), "mean": ((), jnp.float32), "rows": ((ROWS, 2), jnp.float32)}
        abstract = {"bank": {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}}
        axes = {"bank": {"count": (), "mean": (), "rows": ("embed", None)}}
        start = lambda places: jax.tree.map(
            lambda x, place: jax.device_put(jnp.zeros(x.shape, x.dtype), place), abstract, places
        )
        return ExtraState(abstract, axes, start)

    def loss(self, params, batch, key, step=0, extra=None, totals=None):
        bank, x = extra["bank"], batch["x"]
        new = {
            "count": bank["count"] + 1,
            "mean": DECAY * bank["mean"] + (1 - DECAY) * x.mean(),
            "rows": jnp.roll(bank["rows"], 1, axis=0).at[0].set(jnp.stack([params["w"], x.sum()])),
        }
        total = jnp.square(params["w"] * x).sum()
        return Loss(total, jnp.float32(x.shape[0]), {"seen": bank["count"] * x.shape[0]}, {"bank": new})


class Run:
    def __init__(self, workdir, num_micro=1, num_devices=1, objective=None):
        self.config = tiny.transformer(
            data__batch_size=ROWS, train__accumulation=num_micro, optimizer__ema_decay=0.0
        )  # fmt: skip
        self.mesh = sharding.make_mesh(MeshConfig(fsdp=num_devices), jax.devices()[:num_devices])
        self.objective, self.optimizer = objective or Toy(), optax.sgd(0.125)
        self.checkpointer = Checkpointer(workdir)
        with jax.set_mesh(self.mesh):
            self.step = make_train_step(self.objective, self.optimizer, self.config, self.mesh)
        self.restore()

    def restore(self):
        with jax.set_mesh(self.mesh):
            self.state, _ = initial_state(self.config, self.objective, self.optimizer, self.mesh, self.checkpointer)

    def steps(self, *batches):
        with jax.set_mesh(self.mesh):
            for x in batches:
                self.state, self.metrics = self.step(self.state, sharding.put_batch(self.mesh, {"x": x}))
        return jax.device_get(self.state)

    def save(self, step):
        self.checkpointer.save(step, self.state, {})
        self.checkpointer.wait()


def _batches(num):
    return np.random.default_rng(0).normal(size=(num, ROWS)).astype(np.float32)


@pytest.mark.parametrize("num_micro", [1, 2, 4])
def test_extra_state_goes_through_microbatches_in_order(tmp_path, num_micro):
    batches, mean, weight, rows = _batches(3), 0.0, 1.0, []
    run = Run(tmp_path, num_micro)
    for batch in batches:
        state = run.steps(batch)
        for part in (batch[i::num_micro] for i in range(num_micro)):
            mean = DECAY * mean + (1 - DECAY) * part.mean()
            rows.append((weight, part.sum()))
        weight -= 0.125 * 2 * weight * np.square(batch).mean()
    bank = state.extra["bank"]
    assert bank["count"] == 3 * num_micro
    assert run.metrics["seen"] == np.mean(np.arange(2 * num_micro, 3 * num_micro))
    np.testing.assert_allclose(bank["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(bank["rows"], rows[::-1][:ROWS] + [(0, 0)] * (ROWS - len(rows)), rtol=1e-5)


@pytest.mark.parametrize("num_micro", [1, 2])
def test_a_step_that_is_not_finite_keeps_the_extra_state(tmp_path, num_micro):
    good, bad = _batches(2)
    run = Run(tmp_path, num_micro)
    before = run.steps(good)
    bad[-1] = np.nan
    after = run.steps(bad)
    assert run.metrics["skipped"] == 1 and after.step == 2
    jax.tree.map(np.testing.assert_array_equal, (after.extra, after.params), (before.extra, before.params))


def test_extra_state_is_sharded_saved_and_resumed_bit_for_bit(tmp_path):
    batches = _batches(4)
    whole = Run(tmp_path / "whole", num_devices=2)
    want = whole.steps(*batches)
    first = Run(tmp_path / "parts", num_devices=2)
    first.steps(*batches[:2])
    first.save(2)
    second = Run(tmp_path / "parts", num_devices=2)
    got = second.steps(*batches[2:])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    for state in (whole.state, first.state, second.state):
        assert state.extra["bank"]["rows"].addressable_shards[0].data.shape == (ROWS // 2, 2)
    second.restore()  # a rewind
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(second.state), jax.device_get(first.state))
    one = Run(tmp_path / "parts").steps(*batches[2:])  # another mesh goes on from the same
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one.extra, want.extra)


def test_extra_state_that_only_the_config_or_only_the_checkpoint_has_is_refused(tmp_path):
    class Plain(Toy):
        def extra_state(self):
            return None

        def loss(self, params, batch, key, step=0, extra=None, totals=None):
            return Loss(jnp.square(params["w"] * batch["x"]).sum(), jnp.float32(ROWS), {})

    for name, objective, other in (("with", Toy(), Plain()), ("without", Plain(), Toy())):
        run = Run(tmp_path / name, objective=objective)
        run.steps(_batches(1)[0])
        run.save(1)
        have, want = ("bank", "no extra state") if name == "with" else ("no extra state", "bank")
        with pytest.raises(UserError, match=f"/1 has {have}, but the config asks for {want}: [^\\n]*$"):
            Run(tmp_path / name, objective=other)
