"""Policy gradients on own clips: log-probabilities of the sampler, their gradient, groups, clipping, and a reward that rises."""

import dataclasses
import functools
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos import sharding
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.generation import rollouts
from lumos.generation.rollouts import Reward
from lumos.slots import slot
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step

# A module of rewards.
sys.modules["rewards_of_test"] = SimpleNamespace(threes=lambda codes, text, length: (codes == 3).mean((1, 2, 3)))


def _config(**changes):
    defaults = {
        "train__rollout": slot("reward", function="rewards_of_test:threes", samples=4, updates=2), "model__num_layers": 1, "model__scan_layers": False, "model__attention": "dense",
        "sequence__grid": (2, 2, 2), "model__visual_vocab": 8, "generate__steps": 2, "generate__history_ratio": 0.5,
        "optimizer__ema_decay": 0.0, "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 0, "optimizer__weight_decay": 0.0,
    }  # fmt: skip
    return tiny.transformer(**defaults | changes)


@functools.cache
def _objective():
    objective = make_objective(_config())
    return (
        objective,
        objective.definition.init(jax.random.key(0)),
        jax.tree.map(jnp.asarray, tiny.token_batch(objective.config)),
    )


def test_replayed_log_probabilities_are_those_of_the_sampler():
    objective, params, batch = _objective()
    engine, prompts = objective.engine, (batch["text"], batch["text_length"])

    @jax.jit
    def both(params):
        state = rollouts.start(engine, params, jax.random.key(1), prompts)
        codes, kept, log_p = rollouts.watch(engine, params, state)
        features = rollouts.replay(engine, params, state, codes, kept)
        model, flat = objective.definition.bind(params), lambda x: x.reshape(8, 8, *x.shape[3:])
        ones = jnp.ones((8, 8))
        again = -objective.config.model.head.loss(model, flat(features), flat(codes), ones, chunk=64).loss
        return kept, flat(log_p), again

    kept, log_p, again = both(params)
    np.testing.assert_allclose(again, log_p, rtol=1e-5, atol=1e-6)
    counts = engine.settings.sampler.counts(4, 2)
    np.testing.assert_array_equal((kept == 1).sum(-1), np.full((8, 2), counts[0]))
    assert kept.max() == 1 and log_p.max() < 0


def test_advantages_and_clipping_are_those_of_the_definition():
    reward, group = jnp.array([1.0, 2.0, 3.0, 5.0, 5.0, 5.0]), Reward(samples=3, clip=0.2)
    np.testing.assert_allclose(group.advantages(reward), [-(1.5**0.5), 0, 1.5**0.5, 0, 0, 0], atol=1e-5)
    log_ratio = jnp.log(jnp.array([0.5, 0.9, 1.0, 1.1, 1.5]))
    for advantage in (1.0, -1.0):
        gain = lambda log_p, advantage=advantage: group.gains(
            log_p[None], jnp.zeros((1, 5)), jnp.array([advantage])
        ).sum()
        ratio = np.exp(log_ratio)
        is_free = np.array([advantage > 0, True, True, True, advantage < 0])
        np.testing.assert_allclose(jax.grad(gain)(log_ratio), np.where(is_free, advantage * ratio, 0), rtol=1e-6)


RATE = 0.5


class Run:
    """Steps of plain gradient descent, so that the parameters tell the gradient."""

    def __init__(self):
        plain = {"optimizer__name": "sgd", "optimizer__clip_norm": 0.0, "optimizer__schedule": "constant"}
        self.config = _config(data__batch_size=32, optimizer__learning_rate=RATE, **plain)
        objective, self.rewards = make_objective(self.config), []
        optimizer = make_objective_optimizer(objective, self.config)
        self.mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
        with jax.set_mesh(self.mesh):
            self.step = make_train_step(objective, optimizer, self.config, self.mesh)
            kinds = {"seed": 0, "ema": False, "extra": objective.extra_state()}
            self.start = create_state(objective.definition, optimizer, self.mesh, **kinds)
        self.places = jax.tree.map(lambda x: x.sharding, self.start)
        self.start = jax.device_get(self.start)

    def steps(self, state, first, last):
        """From and to the host: nothing but the state goes on."""
        state = jax.device_put(state, self.places)
        with jax.set_mesh(self.mesh):
            for seed in range(first, last):
                state, metrics = self.step(
                    state, sharding.put_batch(self.mesh, tiny.token_batch(self.config, seed=seed))
                )
                self.rewards.append(float(metrics["reward"]))
        self.loss = float(metrics["loss"])
        return jax.device_get(state)


@pytest.fixture(scope="module")
def run():
    return Run()


@pytest.mark.slow
def test_a_step_has_the_gradient_of_the_clips_that_it_rolled(run):
    """Rolled clips stay as they are for two updates, so differences of the loss along a line say what the gradient is."""
    after = run.steps(run.start, 0, 1)
    clips, batch, params = after.extra["rollout"], tiny.token_batch(run.config, seed=0), run.start.params
    assert clips["used"] == 1 and abs(run.loss) < 1e-6  # all ratios are 1, and advantages add up to 0
    np.testing.assert_array_equal(clips["text"], batch["text"][np.arange(32) // 4 * 4])
    np.testing.assert_allclose(clips["reward"], (clips["codes"] == 3).mean((1, 2)))
    np.testing.assert_allclose(clips["advantage"], Reward(samples=4).advantages(clips["reward"]), atol=1e-5)
    gradient = jax.tree.map(lambda before, now: (before - now) / RATE, params, after.params)
    norm, losses = sum(np.square(g).sum() for g in jax.tree.leaves(gradient)) ** 0.5, []
    for size in (0.004, -0.004):
        moved = jax.tree.map(lambda p, g, size=size: p + np.float32(size / norm) * g, params, gradient)
        run.steps(dataclasses.replace(after, params=moved), 1, 2)
        losses.append(run.loss)
    np.testing.assert_allclose((losses[0] - losses[1]) / 0.008, norm, rtol=0.01)


@pytest.mark.slow
def test_a_known_reward_rises_and_a_resumed_run_is_the_same_bit_for_bit(run):
    run.rewards.clear()
    early = run.steps(run.start, 0, 3)  # between two updates from the same clips
    late = run.steps(early, 3, 6)
    assert early.extra["rollout"]["used"] == 1 and run.rewards[2] == run.rewards[3] != run.rewards[4]
    with jax.set_mesh(run.mesh):
        state = jax.device_put(run.start, run.places)
        for seed in range(6):
            state, _ = run.step(state, sharding.put_batch(run.mesh, tiny.token_batch(run.config, seed=seed)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), late)
    run.steps(late, 6, 24)
    assert np.mean(run.rewards[:4]) < 0.2 and np.mean(run.rewards[-4:]) > 0.9


def test_what_rewards_need_is_said():
    def refused(message, **changes):
        with pytest.raises(UserError, match=message + "[^\n]*$"):
            make_objective(_config(**changes))

    named = {"function": "rewards_of_test:threes"}
    refused("samples=3 must divide the 8 rows", train__rollout=slot("reward", samples=3, **named))
    refused("samples=1 must be at least 2", train__rollout=slot("reward", samples=1, **named))
    refused("function='' must be the reward", train__rollout=slot("reward"))
    refused("function='nowhere:f' must be module:function", train__rollout=slot("reward", function="nowhere:f"))
    refused("needs config.generate.top_k=0, not 5", generate__top_k=5)
    refused("needs groups of one size", sequence__layout=slot("planes"))
