"""Factors of the learning rate for parts of a model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos.config import OptimizerConfig
from lumos.errors import UserError
from lumos.training.from_config import make_objective_optimizer
from lumos.training.optimizer import check_rates, make_optimizer
from lumos.training.transformer_objective import TransformerObjective

PARAMS = {
    "vae": {
        "prior": {"head": {"kernel": jnp.ones((4, 6))}, "start": jnp.ones(3)},
        "prior2": {"kernel": jnp.ones((4, 6))},
    }
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_updates_of_a_part_are_multiplied_and_the_longest_path_counts(name):
    plain = OptimizerConfig(name=name, warmup_steps=0, clip_norm=0)
    rated = dataclasses.replace(plain, rates=(("vae/prior", 50.0), ("vae/prior/start", 0.0)))
    grads = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)), PARAMS)
    (want, state), (got, other) = (
        make_optimizer(config, 10).update(grads, make_optimizer(config, 10).init(PARAMS), PARAMS)
        for config in (plain, rated)
    )
    jax.tree.map(np.testing.assert_array_equal, state, other)  # so a run may go on with other factors
    want["vae"]["prior"]["head"]["kernel"] *= 50.0
    want["vae"]["prior"]["start"] *= 0.0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    assert np.abs(got["vae"]["prior2"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"rates": (("vae/prio", 2.0),)},
            r"names 'vae/prio', of which the model has no parameter; near it: vae/prior.*parts: vae$",
        ),
        ({"rates": (("vae", -1.0),)}, "the factor of 'vae' is -1.0; it must be at least 0"),
        ({"rates": (("vae", 2.0),), "name": "schedule_free_adamw"}, "does not go with schedule_free_adamw"),
    ],
)
def test_factors_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check_rates(OptimizerConfig(**changes), PARAMS)


def test_a_run_checks_the_names_on_its_model():
    config = tiny.transformer(optimizer__rates=(("lm_head", 2.0), ("layers/self_attn", 0.5)))
    objective = TransformerObjective(config)
    make_objective_optimizer(objective, config)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, rates=(("head", 2.0),)))
    with pytest.raises(UserError, match="names 'head'.*whole parts: .*lm_head"):
        make_objective_optimizer(objective, config)
