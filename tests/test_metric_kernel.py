"""The kernel "metric": its probabilities against enumeration, its ends, and one draw for a token on any device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos import sharding
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.sequence import vocabulary
from lumos.sequence.corruption import Context
from lumos.sequence.metric import Metric
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective

IDS = vocabulary.compact(10, 7)
TABLE = jax.random.normal(jax.random.key(5), (IDS.size, 3))
NUM = 40_000


@functools.cache
def _drawn(level, num_devices=1, rows=8):
    """All codes in turn, and two text tokens, at one level."""
    row = np.concatenate([[3, 4], IDS.visual_start + np.arange(NUM // rows) % 7])
    ids = jnp.broadcast_to(jnp.asarray(row), (rows, len(row)))
    levels = jnp.broadcast_to(jnp.where(jnp.arange(len(row)) < 2, 0.0, level), ids.shape)
    draw = jax.jit(
        lambda ids, levels: Metric()(jax.random.key(1), ids, None, IDS, Context(None, levels, lambda: TABLE))
    )
    with jax.set_mesh(sharding.make_mesh(MeshConfig(fsdp=num_devices), jax.devices()[:num_devices])):
        return np.asarray(ids), np.asarray(draw(ids, levels))


def test_no_level_leaves_every_token_and_text_is_never_changed():
    before, after = _drawn(0.0)
    np.testing.assert_array_equal(after, before)
    for level in (0.5, 1.0):
        before, after = _drawn(level)
        np.testing.assert_array_equal(after[:, :2], before[:, :2])
        assert after[:, 2:].min() == IDS.visual_start and after[:, 2:].max() == IDS.visual_end - 1


@pytest.mark.parametrize("level", [0.3, 0.5, 0.8, 1.0])
def test_codes_are_replaced_by_the_softmax_of_their_distances(level):
    table = np.asarray(TABLE, np.float64)[IDS.visual_start : IDS.visual_end]
    distance = np.square(table[:, None] - table[None]).sum(-1)
    beta = 3 * ((1 - level) / level) ** 0.9
    p = np.exp(-beta * distance / distance.mean())
    p /= p.sum(1, keepdims=True)
    if level == 1.0:
        np.testing.assert_allclose(p, 1 / 7)
    before, after = (x[:, 2:].reshape(-1) - IDS.visual_start for x in _drawn(level))
    for code in range(7):
        found = np.bincount(after[before == code], minlength=7)
        num = found.sum()
        # Five standard deviations, and five more where hardly any come.
        assert (abs(found - num * p[code]) <= 5 * (num * p[code]) ** 0.5 + 5).all()


def test_a_token_draws_the_same_on_any_device():
    np.testing.assert_array_equal(_drawn(0.5, 4)[1], _drawn(0.5)[1])


def test_a_run_draws_by_the_model_s_embeddings_at_the_levels_of_frames():
    method = {"corruption__kernel": slot("metric"), "loss__weights": slot("all"), "corruption__level": slot("uniform")}
    method |= {"generate__sampler": slot("jumps"), "generate__history_ratio": 0.0}
    method |= {"model__scan_layers": False, "model__attention": "dense"}
    config = tiny.transformer(model__num_layers=1, corruption__frames=slot("independent", clean=0.5), **method)
    objective = TransformerObjective(config)
    seen = []

    class Spy(Metric):
        def __call__(self, key, ids_BL, chosen_BL, ids, context):
            seen.append((ids_BL, super().__call__(key, ids_BL, chosen_BL, ids, context), context))
            return seen[-1][1]

    object.__setattr__(config.corruption, "kernel", Spy())
    batch, params = jax.tree.map(jnp.asarray, tiny.token_batch(config)), objective.definition.init(jax.random.key(0))

    def loss(params):
        return objective.loss(params, batch, jax.random.key(0)).sum, *seen[-1][:2], seen[-1][2].level_BL

    total, before, after, level = jax.jit(loss)(params)
    changed = np.asarray(before != after)
    assert changed[np.asarray(level) > 0.5].mean() > 0.5 and not changed[np.asarray(level) == 0].any()
    assert np.isfinite(total)


def test_what_does_not_go_with_the_metric_path_is_refused():
    with pytest.raises(UserError, match=r"changes every code: set config.loss.weights='all' \(now 'masked'\)"):
        tiny.transformer(corruption__kernel=slot("metric"))
    with pytest.raises(UserError, match="draws by the student's embeddings"):
        tiny.transformer(corruption__kernel=slot("metric"), loss__weights=slot("all"), loss__teacher="x")
    with pytest.raises(UserError, match="scale=0.0 and power=0.9 must be positive"):
        tiny.transformer(corruption__kernel=slot("metric", scale=0.0))
