"""Search over candidates: a branch alone is the baseline, more of them are no worse, and what they cost."""

import copy

import jax
import numpy as np
import pytest
import small

from lumos.errors import UserError
from lumos.generation.sampler import row_keys
from lumos.generation.search import BestOf, Tree, _branch, find_score
from lumos.generation.session import Session


def brightness(candidates):
    """A score from outside: the mean code of the frames so far."""
    return candidates.codes_NTHW.mean((1, 2, 3))


BRIGHTNESS = f"{__name__}:brightness"


@pytest.fixture(scope="module")
def begin():
    _, _, params, batch = small.model()
    session = Session(small.engine(search=BestOf()), params)

    def begin():
        own = copy.copy(session)
        own.prefill(*small.text(), row_keys(1, 2))
        return own

    return begin


def test_one_branch_is_the_baseline_and_two_are_no_worse(begin):
    """Also where the best of two stays behind the first frame, and goes on alone."""
    plain = small.baseline()[0]
    one, cost = Tree(branches=(1, 1), prune=(1,), score=BRIGHTNESS)(begin(), 4)
    np.testing.assert_array_equal(one.reshape(plain.shape), plain)
    assert cost == 4
    two, cost = BestOf(num=2, score=BRIGHTNESS)(begin(), 4)
    gain = two.mean((1, 2, 3)) - plain.mean((1, 2))
    assert cost == 8 and (gain >= 0).all() and gain.max() > 0
    first, cost = Tree(branches=(2,), prune=(1,), score=BRIGHTNESS)(begin(), 2)
    assert cost == 2 + 1
    np.testing.assert_array_equal(first[:, :1], BestOf(num=2, score=BRIGHTNESS)(begin(), 1)[0])


def test_the_best_of_more_is_no_worse():
    """The candidates of a smaller search are among those of a larger one: their keys are, and the first one is the row's."""
    keys = jax.random.key_data(_branch(row_keys(1, 2), 8)).reshape(2, 8, -1)
    for num in (1, 3):
        some = jax.random.key_data(_branch(row_keys(1, 2), num)).reshape(2, num, -1)
        np.testing.assert_array_equal(some, keys[:, :num])
    np.testing.assert_array_equal(keys[:, 0], jax.random.key_data(row_keys(1, 2)))
    assert len(np.unique(keys.reshape(16, -1), axis=0)) == 16


class Counted:
    """A session that makes nothing, and counts."""

    def __init__(self, rows=3):
        self.keys_B, self.text, self.log_p = row_keys(0, rows), (np.zeros((rows, 1)), np.ones(rows)), None
        self.log_p = np.zeros(rows), None

    def fork(self, rows, keys_B=None):
        return Counted(len(rows))

    def advance(self):
        return np.zeros((len(self.keys_B), 1, 1), int)


def test_what_a_tree_costs():
    """Five candidates over 16 frames: all to the end are 80 frames, pruned behind 4 they are 32 (Video-T1, O(TN) and O(T + N))."""
    cost = lambda search, num=16: search(Counted(), num)[1]
    assert cost(BestOf(num=5)) == 80 and cost(Tree(branches=(5,), prune=(4,))) == 32
    assert cost(Tree(branches=(5, 2), prune=(2, 4), keep=3)) == 5 + 10 + 3 * 2 + 3 * 12
    assert Tree(branches=(2, 2), prune=())(Counted(), 3)[0].shape == (3, 3, 1, 1)


def test_what_scores_there_are(begin):
    with pytest.raises(ValueError, match="score='taste': allowed: likelihood, text_ratio, or module:function"):
        BestOf(score="taste")
    with pytest.raises(ValueError, match="score='no.such:thing'"):
        find_score("no.such:thing")
    with pytest.raises(UserError, match="needs a branch without text"):
        BestOf(num=2, score="text_ratio")(begin(), 1)
