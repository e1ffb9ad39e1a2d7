import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.config import CorruptionConfig
from lumos.generation import order
from lumos.sequence import corruption


def _draw(num=512, frames=3, cells=36, **config):
    return corruption.content_mask(jax.random.key(1), num, frames, cells, CorruptionConfig(**config))


def test_tube_masks_equal_the_official_ones(golden):
    data = golden("ardf_mask.npz")
    ids, after = data["tube_11/input_ids_before"], data["tube_11/input_ids_after"]
    ratio = corruption.mask_ratio(jnp.asarray(data["tube_11/u_timestep"]), "cosine", 0.7)
    np.testing.assert_allclose(ratio, data["tube_11/mask_prob"], rtol=1e-6)
    for row in range(2):
        content = (ids[row] >= 65_536) | (ids[row] == 8803)
        mask = corruption.choose(jnp.asarray(data[f"tube_11/u_perm_{row}"]), ratio[row])
        expected = np.where(content, 0, ids[row])
        np.testing.assert_array_equal((after[row] == 9003)[content], np.tile(mask, 3))
        np.testing.assert_array_equal(np.where(content, 0, after[row]), expected)


def test_cosine_level_has_the_law_of_the_paper():
    ratio = corruption.mask_ratio(jnp.linspace(0, 1, 100_001), "cosine", 0.7)
    np.testing.assert_allclose((ratio == 0.7).mean(), 1 - 2 * np.arccos(0.7) / np.pi, atol=1e-3)
    np.testing.assert_allclose(ratio.mean(), 0.800181, atol=1e-4)


@pytest.mark.parametrize("level", ["cosine", "uniform", "constant", "normal", "full"])
def test_levels_stay_between_floor_and_one(level):
    ratio = np.asarray(corruption.mask_ratio(jnp.linspace(0, 0.9999, 1000), level, 0.6))
    assert ratio.min() >= 0.6 - 1e-6 and ratio.max() <= 1 + 1e-6


def test_a_tube_is_the_same_set_in_every_frame_with_exact_counts():
    mask, ratio = _draw()
    assert (mask == mask[:, :1]).all()
    np.testing.assert_array_equal(mask[:, 0].sum(-1), np.round(36 * ratio[:, 0]))


def test_independent_frames_have_their_own_ratio_and_set():
    mask, ratio = _draw(temporal="independent", spatial="frame")
    assert len(np.unique(ratio[0])) > 1
    assert not (mask == mask[:, :1]).all()
    np.testing.assert_array_equal(mask.sum(-1), np.round(36 * ratio))


def test_clip_masks_spread_over_all_frames():
    mask, ratio = _draw(spatial="clip")
    np.testing.assert_array_equal(mask.sum((1, 2)), np.round(108 * ratio[:, 0]))
    assert len(np.unique(mask.sum(-1)[0])) > 1


def test_no_leak_from_earlier_frames_under_tubes():
    """The chance that a masked cell is visible in an earlier frame: 0 for tubes, large for random masks."""

    def leak(mask):
        return float((mask[:, 1] & ~mask[:, 0]).sum() / mask[:, 1].sum())

    assert leak(_draw()[0]) == 0
    assert leak(_draw(spatial="clip")[0]) > 0.15


def test_history_masks_equal_the_official_pattern(golden):
    data = golden("decode_trace.npz")
    for size in (20, 72, 1824):
        for ratio in (0.3, 0.7, 1.0):
            mask = order.history_mask(size, ratio)
            np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(data[f"history_pattern/n{size}_r{ratio}"]))
    assert not order.history_mask(20, 0.0).any()


def test_cosine_order_matches_the_published_commit_counts():
    counts = order.cosine(1792, 50)
    committed = -np.diff(np.concatenate([[1792], counts]))
    assert committed[:8].tolist() == [1, 3, 4, 7, 8, 9, 12, 13]
    assert committed.sum() == 1792 and counts[-1] == 0
