"""Codes that are given in any place of a clip are kept, and what is generated depends on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from recompute import Recompute

from lumos.errors import UserError
from lumos.generation.sampler import row_keys
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

LAYOUTS = {
    "clip": dict(sequence__layout=slot("compact", block=(0, 0, 0)), sequence__attention=slot("full")),
    "ranks": dict(sequence__layout=slot("ranks", order=(0, 2, 1))),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def run(request):
    config = tiny.transformer(
        **LAYOUTS[request.param], sequence__grid=(3, 2, 3), data__batch_size=2, model__init_std=0.3,
        generate__history_ratio=0.0,
    )  # fmt: skip
    definition = TransformerObjective(config).definition
    params, batch = definition.init(jax.random.key(0)), tiny.token_batch(config)
    decode = jax.jit(make_engine(config, definition).decode, static_argnums=5)
    arguments = (params, batch["text"], batch["text_length"], batch["tokens"], row_keys(2, 2))
    return config, definition, batch["tokens"], decode, arguments


@pytest.mark.fast("clip")
def test_first_frames_are_kept_where_they_are_part_of_a_group(run):
    config, definition, given, decode, arguments = run
    codes = np.asarray(decode(*arguments, 2))
    np.testing.assert_array_equal(codes[:, :2], given[:, :2])
    np.testing.assert_array_equal(codes, Recompute(config, definition)(*arguments, 2))


def test_a_future_is_kept_and_what_comes_before_depends_on_it(run):
    _, _, given, decode, arguments = run
    kept = np.zeros(given.shape, bool)
    kept[:, [0, 2]] = True
    codes = np.asarray(decode(*arguments, 0, kept))
    np.testing.assert_array_equal(codes[kept], given[kept])
    other = given.copy()
    other[:, 2] = (other[:, 2] + 11) % 30
    changed = np.asarray(decode(*arguments[:3], other, arguments[4], 0, kept))
    assert (changed[:, 1] != codes[:, 1]).mean() > 0.2


def test_single_cells_are_kept(run):
    _, _, given, decode, arguments = run
    kept = np.random.default_rng(0).random(given.shape) < 0.4
    codes = np.asarray(decode(*arguments, 0, kept))
    np.testing.assert_array_equal(codes[kept], given[kept])
    assert (codes[~kept] != given[~kept]).mean() > 0.7


def test_all_kept_are_returned_as_they_are_and_none_changes_nothing(run):
    _, _, given, decode, arguments = run
    np.testing.assert_array_equal(decode(*arguments, 0, np.ones(given.shape, bool)), given)
    np.testing.assert_array_equal(decode(*arguments, 0, np.zeros(given.shape, bool)), decode(*arguments, 0))


def test_next_tokens_cannot_be_given_in_any_place():
    config = tiny.transformer(
        sequence__layout=slot("compact", block=(1, 1, 1)), sequence__targets=slot("next"),
        corruption__level=slot("constant", ratio=0.0), loss__weights=slot("all"),
    )  # fmt: skip
    objective, batch = TransformerObjective(config), tiny.token_batch(config)
    engine = make_engine(config, objective.definition)
    arguments = (objective.definition.abstract, batch["text"], batch["text_length"], batch["tokens"], row_keys(2, 8))
    with pytest.raises(UserError, match="cannot be given in any place; give the first frames"):
        jax.eval_shape(lambda *a: engine.decode(*a, 0, jnp.ones(batch["tokens"].shape, bool)), *arguments)
