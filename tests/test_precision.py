"""Fewer bits and other memory: bfloat16 parameters, 8-bit matmuls, an optimizer state in the memory of the host."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lumos import sharding
from lumos.checkpoint import Checkpointer
from lumos.errors import UserError
from lumos.model import layers, precision
from lumos.training.optimizer import apply_updates, make_optimizer, stochastic_round
from lumos.training.state import abstract_state, create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective

needs_qwix = pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="the extra qwix is not installed")
FIELDS = {"optimizer__learning_rate": 2e-3, "optimizer__warmup_steps": 0}


def _train(steps=1, num_devices=1, **changes):
    """Return losses on one batch, and the state."""
    config = tiny.transformer(**FIELDS, **changes)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:num_devices])
    objective, optimizer = TransformerObjective(config), make_optimizer(config.optimizer, 100)
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=0, ema=True, offload=config.optimizer.offload)
        step = make_train_step(objective, optimizer, config, mesh)
        batch, losses = sharding.put_batch(mesh, tiny.token_batch(config)), []
        for _ in range(steps):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return np.array(losses), state


@pytest.fixture(scope="module")
def reference():
    return _train(steps=30)


def test_stochastic_rounding_is_one_of_two_neighbours_and_right_on_average():
    x = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4096)
    rounded = jax.vmap(lambda key: stochastic_round(x, key))(keys).astype(jnp.float32)
    spacing = 2.0 ** (jnp.floor(jnp.log2(jnp.abs(x))) - 7)  # of bfloat16 numbers around x
    assert (jnp.abs(rounded - x) < spacing).all()
    assert all(len(np.unique(column)) == 2 for column in rounded.T)
    np.testing.assert_array_less(jnp.abs(rounded.mean(0) - x) / spacing, 4 * 0.5 / 4096**0.5)
    exact = x.astype(jnp.bfloat16)
    assert (stochastic_round(exact.astype(jnp.float32), keys[0]) == exact).all()


def test_updates_too_small_for_bfloat16_arrive():
    params, start = {"w": jnp.ones(4096, jnp.bfloat16)}, jnp.ones(4096, jnp.bfloat16)
    for i in range(100):
        params = apply_updates(params, {"w": jnp.full(4096, -1e-4)}, jax.random.key(i))
    assert abs(params["w"].astype(jnp.float32).mean() - 0.99) < 0.001
    assert (optax.apply_updates({"w": start}, {"w": jnp.full(4096, -1e-4)})["w"] == start).all()  # to the nearest


@pytest.mark.slow
def test_bfloat16_parameters_have_float32_moments_and_averages_and_learn(reference):
    losses, state = _train(steps=30, model__param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves((state.ema, optax.tree_utils.tree_get(state.opt_state, "nu")))} == {
        jnp.dtype(jnp.float32)
    }
    assert losses[-1] < reference[0][0] - 0.8 * (reference[0][0] - reference[0][-1])


@needs_qwix
@pytest.mark.parametrize("kind, bits, error", [("int8", "i8", 0.02), ("float8", "f8E4M3FN", 0.08)])
def test_products_in_8_bits_and_their_gradients_are_close(kind, bits, error):
    rng = np.random.default_rng(0)
    x, kernel, dy = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 16, 128), (128, 64), (2, 16, 64)))
    matmul = precision.matmul_in(kind)
    out, pull = jax.vjp(matmul, x, kernel)
    want, exact_pull = jax.vjp(layers.matmul, x, kernel)
    for got, exact in zip((out, *pull(dy)), (want, *exact_pull(dy))):
        assert jnp.linalg.norm(got - exact) < error * jnp.linalg.norm(exact)
    np.testing.assert_array_equal(pull(dy)[1], exact_pull(dy)[1])  # gradients of weights are not rounded
    text = jax.jit(lambda x, kernel, dy: jax.vjp(matmul, x, kernel)[1](dy)).lower(x, kernel, dy).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert sum(f"x{bits}>" in line for line in products) >= 1 and len(products) >= 2


@pytest.mark.slow
@needs_qwix
@pytest.mark.parametrize("kind, margin", [("int8", 0.02), ("float8", 0.05)])
def test_training_in_8_bits_follows_the_losses_of_32(reference, kind, margin):
    losses, state = _train(steps=30, model__matmul_dtype=kind)
    assert np.abs(losses - reference[0]).max() < margin * reference[0][0]
    assert (losses[1:] != reference[0][1:]).all()
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
@needs_qwix
def test_8_bits_on_eight_devices_are_those_of_one():
    one, _ = _train(steps=3, model__matmul_dtype="int8")
    eight, _ = _train(steps=3, num_devices=8, model__matmul_dtype="int8", mesh__fsdp=4, mesh__tensor=1, mesh__replica=2)
    np.testing.assert_allclose(eight, one, rtol=1e-3)


def test_8_bits_need_their_package(monkeypatch):
    precision.matmul_in.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'lumos-video\\[qwix\\]'"):
        TransformerObjective(tiny.transformer(model__matmul_dtype="int8"))


def test_an_offloaded_optimizer_state_changes_nothing_but_where_it_waits(reference, tmp_path):
    losses, state = _train(steps=30, optimizer__offload=True)
    np.testing.assert_array_equal(losses, reference[0])
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state)} == {"pinned_host"}
    assert "pinned_host" not in {x.sharding.memory_kind for x in jax.tree.leaves((state.params, state.ema))}
    config = tiny.transformer(**FIELDS, optimizer__offload=True)
    definition, optimizer = TransformerObjective(config).definition, make_optimizer(config.optimizer, 100)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(30, state, {"data_step": 30})
    checkpointer.wait()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    restored, _ = checkpointer.restore(abstract_state(definition, optimizer, mesh, ema=True, offload=True))
    checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(restored.opt_state)} == {"pinned_host"}


def test_an_offloaded_state_is_sharded_like_its_parameters():
    one, _ = _train(steps=3)
    eight, state = _train(steps=3, num_devices=8, optimizer__offload=True)
    np.testing.assert_allclose(eight, one, atol=1e-5)
    moment = optax.tree_utils.tree_get(state.opt_state, "mu")["lm_head"]["kernel"]
    assert moment.sharding.spec == state.params["lm_head"]["kernel"].sharding.spec
