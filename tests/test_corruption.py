import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.generation import plan
from lumos.sequence import corruption
from lumos.sequence.corruption import Clip, Constant, CorruptionConfig, Cosine, Independent, Normal, PerFrame, Uniform


def _draw(**slots):
    drawn = CorruptionConfig(**slots).draw(jax.random.key(1), 512, num_frames=3, num_cells=36)
    assert drawn.predicted_BT.all()
    return drawn.mask_BTC, drawn.ratio_BT


def test_tube_masks_equal_the_official_ones(golden):
    data = golden("ardf_mask.npz")
    ids, after = data["tube_11/input_ids_before"], data["tube_11/input_ids_after"]
    ratio = Cosine(floor=0.7)(jnp.asarray(data["tube_11/u_timestep"]))
    np.testing.assert_allclose(ratio, data["tube_11/mask_prob"], rtol=1e-6)
    for row in range(2):
        content = (ids[row] >= 65_536) | (ids[row] == 8803)
        mask = corruption.choose(jnp.asarray(data[f"tube_11/u_perm_{row}"]), ratio[row])
        expected = np.where(content, 0, ids[row])
        np.testing.assert_array_equal((after[row] == 9003)[content], np.tile(mask, 3))
        np.testing.assert_array_equal(np.where(content, 0, after[row]), expected)


def test_cosine_level_has_the_law_of_the_paper():
    ratio = Cosine()(jnp.linspace(0, 1, 100_001))
    np.testing.assert_allclose((ratio == 0.7).mean(), 1 - 2 * np.arccos(0.7) / np.pi, atol=1e-3)
    np.testing.assert_allclose(ratio.mean(), 0.800181, atol=1e-4)


@pytest.mark.parametrize("level", [Cosine(floor=0.6), Uniform(floor=0.6), Normal(floor=0.6)])
def test_levels_stay_between_floor_and_one(level):
    ratio = np.asarray(level(jnp.linspace(0, 0.9999, 1000)))
    assert 0.6 - 1e-6 <= ratio.min() < 0.61 and 0.99 < ratio.max() <= 1 + 1e-6


@pytest.mark.parametrize("ratio", [0.0, 0.6, 1.0])
def test_a_constant_level_is_one_number(ratio):
    assert (Constant(ratio=ratio)(jnp.linspace(0, 0.9999, 1000)) == np.float32(ratio)).all()


def test_a_tube_is_the_same_set_in_every_frame_with_exact_counts():
    mask, ratio = _draw()
    assert (mask == mask[:, :1]).all()
    np.testing.assert_array_equal(mask[:, 0].sum(-1), np.round(36 * ratio[:, 0]))


def test_independent_frames_have_their_own_ratio_and_set():
    mask, ratio = _draw(frames=Independent(), cells=PerFrame())
    assert len(np.unique(ratio[0])) > 1
    assert not (mask == mask[:, :1]).all()
    np.testing.assert_array_equal(mask.sum(-1), np.round(36 * ratio))


def test_clip_masks_spread_over_all_frames():
    mask, ratio = _draw(cells=Clip())
    np.testing.assert_array_equal(mask.sum((1, 2)), np.round(108 * ratio[:, 0]))
    assert len(np.unique(mask.sum(-1)[0])) > 1


def test_no_leak_from_earlier_frames_under_tubes():
    """The chance that a masked cell is visible in an earlier frame: 0 for tubes, large for random masks."""

    def leak(mask):
        return float((mask[:, 1] & ~mask[:, 0]).sum() / mask[:, 1].sum())

    assert leak(_draw()[0]) == 0
    assert leak(_draw(cells=Clip())[0]) > 0.15


def test_history_masks_equal_the_official_pattern(golden):
    data = golden("history_pattern.npz")
    for size in (20, 72, 1824):
        for ratio in (0.3, 0.7, 1.0):
            mask = plan.history_mask(size, ratio)
            np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(data[f"n{size}_r{ratio}"]))
    assert not plan.history_mask(20, 0.0).any()


def test_cosine_order_matches_the_published_commit_counts():
    counts = plan.cosine(1792, 50)
    committed = -np.diff(np.concatenate([[1792], counts]))
    assert committed[:8].tolist() == [1, 3, 4, 7, 8, 9, 12, 13]
    assert committed.sum() == 1792 and counts[-1] == 0
