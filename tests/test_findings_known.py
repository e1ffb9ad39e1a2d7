"""Mechanisms behind findings, on cases whose answer is known before anything is trained."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from lumos.config import TokenizerConfig
from lumos.generation.released import Released
from lumos.generation.sampler import Confidence
from lumos.slots import slot
from lumos.tokenizers.holistic import HolisticVAE
from lumos.training.transformer_objective import TransformerObjective

CODES = 4


def descend(loss, params, steps, rate=1e-2):
    """Return the losses of a run of Adam; `loss(params, key)` draws its own batch."""
    optimizer = optax.adam(rate)

    @jax.jit
    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(jax.random.key(1), steps)
    return np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys)[1])(params))


@pytest.mark.parametrize("block, free", [((1, 1, 1), 1), ((1, 0, 0), 2)])
def test_codes_of_a_block_do_not_know_of_each_other(block, free):
    """Of two equal cells one is free: codes one by one have its entropy as their loss, a block has it for every cell."""
    first = {} if free == 1 else {"first": "block"}
    config = tiny.transformer(
        sequence__grid=(1, 1, 2), sequence__text_length=4, sequence__layout=slot("compact", block=block),
        sequence__targets=slot("next", **first), corruption__level=slot("constant", ratio=0.0), corruption__text_drop=0.0,
        loss__weights=slot("all"), model__visual_vocab=CODES, data__batch_size=32,
    )  # fmt: skip
    objective = TransformerObjective(config)
    text = {"text": jnp.full((32, 4), 5), "text_length": jnp.full(32, 4)}

    def loss(params, key):
        one, other = jax.random.split(key)
        tokens = jnp.broadcast_to(jax.random.randint(one, (32, 1, 1, 1), 0, CODES), (32, 1, 1, 2))
        out = objective.loss(params, text | {"tokens": tokens}, other)
        return out.sum / out.weight

    losses = descend(loss, objective.definition.init(jax.random.key(0)), 100)
    assert losses[-20:].mean() == pytest.approx(free * np.log(CODES) / 2, rel=0.05)


def test_codes_learn_to_be_what_the_prior_expects():
    """With the prior's loss alone, tokens whose gradient is stopped stay as hard as they are; the others become easy."""
    config = TokenizerConfig(
        body="holistic", clip=(5, 16, 32), num_queries=6, channels=32, quantizer="svq", levels=(16,), code_dim=4, prior_weight=1.0
    )  # fmt: skip
    graph, params = nnx.split(HolisticVAE(config, nnx.Rngs(0)))
    clips = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 5, 16, 32, 3)), jnp.float32)

    def run(codes_of):
        def loss(params, key):
            vae = nnx.merge(graph, params)
            made = vae.quantizer(vae.latents(clips), key)
            return vae.prior.loss(codes_of(made.codes[:, 0, 0]), made.indices[:, 0, 0], vae.quantizer.table())

        return descend(loss, params, 100, rate=3e-3)[-20:].mean()

    assert run(lambda codes: codes) < run(jax.lax.stop_gradient) - 0.3 < np.log(16)


def test_a_power_law_is_found():
    path = Path(__file__).parents[1] / "configs" / "findings" / "scale.py"
    spec = importlib.util.spec_from_file_location("scale", path)
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    sizes = np.array([1e4, 5e4, 2e5, 1e6])
    finding = scale.get_finding()
    least = finding.world.entropy  # what no model can do without is no part of the law
    found = finding.derived({str(n): {"parameters": n, "nll": least + 3.0 * n**-0.25} for n in sizes})
    assert found["exponent"] == pytest.approx(0.25) and found["r2"] == pytest.approx(1)
    noisy = finding.derived({str(n): {"parameters": n, "nll": x} for n, x in zip(sizes, (1.0, 3.0, 0.5, 2.0))})
    assert noisy["r2"] < 0.1


def test_temperatures_fall_to_nothing_and_the_released_ones_at_once():
    """In four passes; those of the released code are a running product, and only in the first frame."""
    np.testing.assert_array_equal(Confidence(temperature=8.0).temperatures(4, True), [6, 4, 2, 0])
    released = Released(temperature=8.0)
    np.testing.assert_array_equal(released.temperatures(4, jnp.bool_(True)), [6, 3, 0.75, 0])
    np.testing.assert_array_equal(released.temperatures(4, jnp.bool_(False)), 0)


def test_a_temperature_decides_how_often_the_least_probable_cell_is_kept():
    """Never at 0; at a high one as often as any other, which is one in four."""
    log_p = jnp.broadcast_to(jnp.log(jnp.array([0.7, 0.5, 0.3, 0.1])), (4000, 4))
    gumbel = jax.random.gumbel(jax.random.key(0), (4000, 4))
    kept = lambda temperature: np.asarray(
        Confidence().score(gumbel, log_p, temperature, None).argmax(axis=1) == 3
    ).mean()
    assert (
        kept(0.0) == 0 and kept(1.0) == pytest.approx(1 / 16, abs=0.015) and kept(1e4) == pytest.approx(1 / 4, abs=0.03)
    )
