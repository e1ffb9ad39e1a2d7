"""Frames that are given in training: how often each is, and that only the others have a loss and see all that is given."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos import config_loading
from lumos.config import CorruptionConfig
from lumos.errors import UserError
from lumos.sequence.corruption import Constant
from lumos.sequence.given import AnySubset, NoneGiven, Segments, Tasks
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective

NUM = 40_000


def _sets(given, num_frames):
    """Draw clips; return how often each set of frames was given, and check what becomes of the frames."""
    config = CorruptionConfig(given=given, level=Constant(ratio=0.5))
    drawn = jax.tree.map(np.asarray, config.draw(jax.random.key(1), NUM, num_frames, 4))
    hidden = drawn.mask_BTC.sum(-1)
    np.testing.assert_array_equal(hidden, np.where(drawn.predicted_BT, 2, 0))
    np.testing.assert_array_equal(drawn.ratio_BT, np.where(drawn.predicted_BT, 0.5, 0.0))
    sets, counts = np.unique(~drawn.predicted_BT, axis=0, return_counts=True)
    return {tuple(np.flatnonzero(s).tolist()): count / NUM for s, count in zip(sets, counts)}


def _assert_shares(found, want):
    assert found.keys() == want.keys()
    for name, share in want.items():
        np.testing.assert_allclose(found[name], share, atol=5 * (share * (1 - share) / NUM) ** 0.5)


def test_any_subset_but_all_frames_may_be_given():
    want = {
        s: 0.9 / 4 / len(list(itertools.combinations(range(4), n)))
        for n in range(4)
        for s in itertools.combinations(range(4), n)
    }
    want[()] += 0.1
    _assert_shares(_sets(AnySubset(none=0.1), 4), want)


def test_tasks_come_in_their_shares():
    frames = ((), (0,), (0, -1), (2,))
    _assert_shares(_sets(Tasks(frames=frames), 4), {(): 0.25, (0,): 0.25, (0, 3): 0.25, (2,): 0.25})
    _assert_shares(_sets(Tasks(frames=frames, shares=(1, 0, 3, 4)), 4), {(): 0.125, (0, 3): 0.375, (2,): 0.5})


def test_images_have_no_context():
    for given in (Segments(sizes=(1, 2, 1)), AnySubset(), Tasks()):
        drawn = CorruptionConfig(given=given).draw(jax.random.key(0), 64, 1, 4)
        assert drawn.predicted_BT.all() and drawn.mask_BTC.any((1, 2)).all()


@pytest.mark.parametrize(
    "method",
    [
        {"sequence__layout": slot("ranks", order=(0, 2, 1))},
        {"sequence__layout": slot("compact", block=(0, 0, 0)), "sequence__attention": slot("full")},
    ],
)
def test_interpolation_sees_both_sides_and_has_its_loss_between_them(method):
    method = method | {"model__scan_layers": False, "model__attention": "dense"}
    config = tiny.transformer(model__num_layers=1, corruption__given=slot("tasks", frames=((0, -1),)), **method)
    objective = TransformerObjective(config)
    params = objective.definition.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, tiny.token_batch(config))
    loss = jax.jit(lambda tokens: objective.loss(params, batch | {"tokens": tokens}, jax.random.key(1)))
    tokens, hidden = batch["tokens"], objective._corruption(objective.layout, batch, jax.random.key(1))[0].mask_BTC
    before = loss(tokens)
    assert before.weight == hidden.sum() == hidden[:, 1].sum() > 0
    for frame in (0, 2):
        other = tokens.at[:, frame].set((tokens[:, frame] + 1) % 30)
        assert abs(loss(other).sum - before.sum) > 1e-3
    seen = jnp.where(hidden[:, 1], (tokens[:, 1].reshape(8, -1) + 1) % 30, tokens[:, 1].reshape(8, -1))
    assert loss(tokens.at[:, 1].set(seen.reshape(8, 4, 4))).sum != before.sum  # its targets


def test_saved_segments_become_a_member(tmp_path):
    def load(**fields):
        values = {"data": {"source": "tokens"}, "sequence": {"grid": [4, 4, 4]}, "corruption": fields}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return config_loading.load(str(tmp_path / "config.json")).corruption.given

    drops = {"past_drop": 0.25, "future_drop": 0.75}
    assert load(segments=[1, 2, 1], **drops) == Segments(sizes=(1, 2, 1), **drops)
    assert load(segments=[], **drops) == load() == NoneGiven()


@pytest.mark.parametrize(
    "given, message",
    [
        (slot("segments", sizes=(1, 1, 2)), r"given='segments': sizes=\(1, 1, 2\) are 4 frames of 3"),
        (slot("segments", sizes=(1, 0, 2)), "and 1 that is predicted"),
        (slot("segments", sizes=(1, 1, 1), past_drop=2.0), "past_drop=2.0 and future_drop=0.5 must lie in"),
        (slot("tasks", frames=((0, 5),)), r"task \(0, 5\) must give some of 3 latent frames"),
        (slot("tasks", frames=((0, 1, -1),)), "and not all of them"),
        (slot("tasks", frames=((0,),), shares=(1.0, 2.0)), "and shares=.* as many"),
        (slot("tasks", frames=((0,),), shares=(0.0,)), "must be at least 0, and not all 0"),
        (slot("subset", none=2.0), "none=2.0 must lie in"),
    ],
)
def test_what_cannot_be_given_is_refused(given, message):
    with pytest.raises(UserError, match=message + "[^\n]*$"):
        tiny.transformer(corruption__given=given)
