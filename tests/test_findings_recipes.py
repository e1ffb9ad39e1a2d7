"""The recipes that came with the findings: each is the method that its paper describes."""

import jax
import numpy as np
import pytest
import tiny
from tokens import NUM_CODES

from lumos import config_loading, recipes_docs
from lumos.layouts import make_layout
from lumos.sequence.targets import Neighbours
from lumos.sequence.tokens import CODE
from lumos.training.from_config import make_objective


def parts(name):
    config = config_loading.load(
        f"configs/recipes/{name}.py:smoke", {"model.text_vocab": 512, "model.visual_vocab": NUM_CODES}
    )
    return config, make_layout(config)


def test_arlon_sees_wrong_coarse_codes():
    config, layout = parts("arlon")
    sizes = [len(group) for group in layout.groups]
    assert sizes == [1, 3, 12] * 3  # of 4 x 4 cells: every 4th, 2nd, and all others
    codes = np.zeros((4096, 48), int)
    seen = np.asarray(config.corruption.errors(jax.random.key(0), codes, NUM_CODES, 0, {}, None))
    assert 0.4 < (seen == codes).all(1).mean() < 0.6 and (seen != codes).mean(0).min() > 0.02


@pytest.mark.parametrize("name, head", [("dicode", "mixture"), ("unigenx", "flow")])
def test_points_follow_one_another(name, head):
    config, layout = parts(name)
    assert config.model.head.name == head and all(len(group) == 1 for group in layout.groups)
    source, target = config.sequence.targets(layout)
    follows = layout.tokens.kind[source[:, 0]] == CODE
    np.testing.assert_array_equal(target[follows] - source[follows, 0], 1)


def test_dicode_predicts_the_next_of_few_points():
    config, layout = parts("dicode")
    assert layout.grid == (3, 1, 4) and config.model.head.components == 8


def test_unigenx_draws_the_next_point_from_noise():
    config, _ = parts("unigenx")
    assert not config.model.head.has_log_p and not config.generate.sampler.reads_log_p


def test_jpeg_lm_is_next_token_over_one_row_of_bytes():
    config, layout = parts("jpeg_lm")
    assert config.model.rope == "1d" and layout.grid[:2] == (1, 1) and len(layout.groups) == layout.grid[2]


def test_the_survey_s_classes_name_recipes_that_are_there():
    known = {system.name for system in recipes_docs.systems()}
    assert {name for _, _, names in recipes_docs._SURVEY for name in names} <= known


def test_an_axis_alone_predicts_all_that_it_reaches():
    _, layout = parts("nar")
    every = Neighbours()(layout).source
    for arm, axis in enumerate(("column", "row", "time")):
        source, reached = Neighbours(alone=axis)(layout).source, every[:, arm] >= 0
        others = [other for other in range(3) if other != arm]
        np.testing.assert_array_equal(source[reached, arm], every[reached, arm])
        assert reached.mean() > 0.6 and (source[reached][:, others] == -1).all()
        np.testing.assert_array_equal(source[~reached], every[~reached])
    with pytest.raises(ValueError, match="allowed: column, row, time"):
        Neighbours(alone="x")


def test_one_head_for_all_axes_has_a_third_of_their_parameters():
    def head(shared):
        overrides = {"model.text_vocab": 512, "model.visual_vocab": NUM_CODES, "model.head.shared": shared}
        config = config_loading.load("configs/recipes/nar.py:smoke", overrides)
        objective = make_objective(config)
        loss = jax.eval_shape(
            objective.loss, objective.definition.abstract, tiny.token_batch(config), jax.random.key(0)
        )
        return loss, sum(x.size for x in jax.tree.leaves(objective.definition.abstract["lm_head"]))

    (one, num), (three, all_of_them) = head(True), head(False)
    assert all_of_them == 3 * num and jax.tree.structure(one) == jax.tree.structure(three)
