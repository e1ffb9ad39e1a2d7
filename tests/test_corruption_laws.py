"""Laws of corruptions: their distributions, against enumeration, arithmetic or the papers' figures."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.config import CorruptionConfig
from lumos.sequence import vocabulary
from lumos.sequence.corruption import (
    CleanPrefix,
    Clip,
    Constant,
    Cosine,
    Counts,
    Independent,
    Mask,
    NonDecreasing,
    PerFrame,
    Ramp,
    Replace,
    Shared,
    Tube,
    Uniform,
)
from lumos.sequence.given import Segments

NUM = 40_000


def _steps(num_frames, num_levels=50, num=NUM):
    return np.asarray(
        jax.jit(NonDecreasing(num_levels=num_levels).steps, static_argnums=(1, 2))(jax.random.key(0), num, num_frames)
    )


def _assert_frequencies(found, want):
    """Chi-square with a margin of five standard deviations; `want` are probabilities."""
    total = found.sum()
    chi = ((found - total * want) ** 2 / (total * want)).sum()
    degrees = len(want) - 1
    assert chi < degrees + 5 * math.sqrt(2 * degrees), chi


def test_levels_of_non_decreasing_frames_are_those_of_the_definition():
    """Three frames, four levels: a frame and its level are drawn, then one of all non-decreasing sequences through it."""
    sequences = list(itertools.combinations_with_replacement(range(4), 3))
    want = dict.fromkeys(sequences, 0.0)
    for frame, level in itertools.product(range(3), range(4)):
        through = [s for s in sequences if s[frame] == level]
        for s in through:
            want[s] += 1 / 12 / len(through)
    found = dict.fromkeys(sequences, 0)
    drawn, counts = np.unique(_steps(3, 4), axis=0, return_counts=True)
    for steps, count in zip(drawn.tolist(), counts):
        found[tuple(steps)] += count  # a KeyError is a sequence that falls
    _assert_frequencies(np.array(list(found.values())), np.array(list(want.values())))


def test_non_decreasing_frames_have_the_marginals_of_fopp():
    steps = _steps(7)
    assert (np.diff(steps, axis=1) >= 0).all() and steps.min() == 0 and steps.max() == 49
    share = steps / 50
    np.testing.assert_allclose(share.mean(0), [0.18, 0.30, 0.40, 0.49, 0.58, 0.67, 0.80], atol=0.01)
    assert (share.std(0).round(2) >= 0.22).all() and (share.std(0).round(2) <= 0.28).all()
    ratio = np.asarray(NonDecreasing()(jax.random.key(0), NUM, 7, Uniform()))
    np.testing.assert_allclose(ratio, (steps + 1) / 50, rtol=1e-6)


def test_the_anchor_of_non_decreasing_frames_is_uniform():
    """The mean over frames of the marginals holds the anchor with probability 1/F: one frame alone is the anchor."""
    for num_levels in (1, 4, 50):
        found = np.bincount(_steps(1, num_levels)[:, 0], minlength=num_levels)
        if num_levels > 1:
            _assert_frequencies(found, np.full(num_levels, 1 / num_levels))
    ratio = np.asarray(NonDecreasing(num_levels=4)(jax.random.key(0), 1000, 1, Uniform()))
    assert set(np.unique(ratio).tolist()) == {0.25, 0.5, 0.75, 1.0}


def test_counts_are_each_as_likely():
    for cells, frames in ((PerFrame(), Independent()), (Tube(), Shared()), (Clip(), Shared())):
        config = CorruptionConfig(level=Counts(), frames=frames, cells=cells)
        drawn = jax.tree.map(np.asarray, config.draw(jax.random.key(3), NUM, 2, 5))
        hidden = drawn.mask_BTC.sum((1, 2)) if isinstance(cells, Clip) else drawn.mask_BTC[:, 0].sum(-1)
        total = 10 if isinstance(cells, Clip) else 5
        _assert_frequencies(np.bincount(hidden, minlength=total + 1)[1:], np.full(total, 1 / total))
        np.testing.assert_allclose(drawn.ratio_BT[:, 0], hidden / total, rtol=1e-6)


def test_ramps_end_at_one():
    ratio = np.asarray(Ramp()(jax.random.key(0), 1000, 5, Uniform()))
    np.testing.assert_allclose(ratio[:, -1], 1)
    np.testing.assert_allclose(np.diff(ratio, axis=1), np.tile(np.diff(ratio, axis=1)[:, :1], 4), atol=1e-6)
    np.testing.assert_allclose(ratio[:, 0].mean(), 0.5, atol=5 * 12**-0.5 / 1000**0.5)


@pytest.mark.parametrize("least", [0, 1, 3])
def test_a_prefix_is_clean_and_every_length_as_likely(least):
    ratio = np.asarray(CleanPrefix(least=least)(jax.random.key(0), NUM, 5, Uniform(floor=0.1)))
    length = (ratio > 0).argmax(1)
    _assert_frequencies(np.bincount(length, minlength=5)[least:], np.full(5 - least, 1 / (5 - least)))
    assert all((row[n:] > 0).all() and (row[:n] == 0).all() for row, n in zip(ratio[:200], length))
    np.testing.assert_allclose(ratio[length < 4, -1], 1)
    image = np.asarray(CleanPrefix(least=least)(jax.random.key(0), 64, 1, Uniform(floor=0.1)))
    assert image.shape == (64, 1) and (image >= 0.1).all()  # nothing of an image is clean


def test_a_share_of_independent_frames_is_clean():
    config = CorruptionConfig(level=Constant(ratio=0.5), frames=Independent(clean=0.3), cells=PerFrame())
    drawn = jax.tree.map(np.asarray, config.draw(jax.random.key(1), NUM, 3, 8))
    clean = drawn.ratio_BT == 0
    np.testing.assert_allclose(clean.mean(), 0.3, atol=5 * (0.21 / clean.size) ** 0.5)
    assert not drawn.mask_BTC[clean].any() and (drawn.mask_BTC[~clean].sum(-1) == 4).all()


def test_segments_are_hidden_whole_and_only_the_current_one_has_a_loss():
    config = CorruptionConfig(
        given=Segments(sizes=(2, 3, 1), past_drop=0.5, future_drop=0.25), level=Constant(ratio=0.5)
    )
    drawn = jax.tree.map(np.asarray, config.draw(jax.random.key(1), NUM, 6, 4))
    np.testing.assert_array_equal(drawn.predicted_BT, np.tile([0, 0, 1, 1, 1, 0], (NUM, 1)))
    past, future = drawn.mask_BTC[:, :2], drawn.mask_BTC[:, 5:]
    for part, share in ((past, 0.5), (future, 0.25)):
        assert (part.all((1, 2)) | ~part.any((1, 2))).all()
        np.testing.assert_allclose(part.mean(), share, atol=5 * (share * (1 - share) / NUM) ** 0.5)
    both = (past.any((1, 2)) & future.any((1, 2))).mean()  # four tasks: independent
    np.testing.assert_allclose(both, 0.125, atol=5 * (0.125 / NUM) ** 0.5)
    np.testing.assert_array_equal(drawn.ratio_BT[:, 0], past.any((1, 2)))
    assert (drawn.mask_BTC[:, 2:5].sum(-1) == 2).all() and (drawn.ratio_BT[:, 2:5] == 0.5).all()
    with pytest.raises(ValueError, match="are 6 frames of 5"):
        config.draw(jax.random.key(0), 2, 5, 4)


def test_replaced_tokens_are_any_code_and_no_other_token():
    ids = vocabulary.compact(20, 12, start=True, streams=(5,))
    before = jnp.full((1, NUM), ids.start)
    chosen = jnp.arange(NUM)[None] % 2 == 0
    after = np.asarray(Replace()(jax.random.key(0), before, chosen, ids))
    assert (after[~np.asarray(chosen)] == ids.start).all()
    drawn = after[np.asarray(chosen)] - ids.visual_start
    assert drawn.min() == 0 and drawn.max() == 11
    _assert_frequencies(np.bincount(drawn, minlength=12), np.full(12, 1 / 12))
    np.testing.assert_array_equal(Mask()(None, before, chosen, ids), np.where(chosen, ids.mask, before))


LEAKS = {  # earlier frames: the probability of the docstring of sequence/corruption.py
    "clip": dict(zip((1, 2, 3, 4, 5, 6, 9), (0.18, 0.32, 0.42, 0.49, 0.55, 0.59, 0.68))),
    "frame": dict(zip((1, 2, 3, 4, 5, 6, 9), (0.20, 0.36, 0.49, 0.59, 0.67, 0.74, 0.87))),
    "tube": dict.fromkeys((1, 2, 3, 4, 5, 6, 9), 0.0),
}


@pytest.mark.parametrize(
    "name, config",
    [
        ("clip", dict(cells=Clip())),
        ("frame", dict(cells=PerFrame(), frames=Independent())),
        ("tube", dict(cells=Tube())),
    ],
)
def test_the_leak_is_what_the_docstring_says(name, config):
    """Of the masked tokens of a frame, the share with the same cell visible in one of f earlier frames."""
    config = CorruptionConfig(level=Cosine(), **config)
    mask = np.asarray(config.draw(jax.random.key(0), 6000, 10, 100).mask_BTC)
    for earlier, want in LEAKS[name].items():
        seen = ~mask[:, :earlier].all(axis=1)
        now = mask[:, earlier]
        np.testing.assert_allclose((seen & now).sum() / now.sum(), want, atol=0.01)
