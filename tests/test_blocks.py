"""Blocks of attention compute every visible pair, and fewer hidden ones where they end with frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumos.model import attention
from lumos.sequence.blocks import Blocks, Ranges, best_blocks, equal_blocks
from lumos.sequence.key_ranges import KeyRanges, StaticRanges

TEXT, FRAMES, CELLS = 7, 5, 24
LENGTH = TEXT + FRAMES * CELLS + 2  # and two tokens behind the last frame


def _frames(sink=False):
    """Causal text and end; a frame sees everything so far, or the text and itself."""
    query = np.arange(LENGTH)
    frame = (query - TEXT) // CELLS
    is_cell = (query >= TEXT) & (frame < FRAMES)
    end = np.where(is_cell, TEXT + (frame + 1) * CELLS, query + 1)
    if not sink:
        return StaticRanges(np.zeros((1, LENGTH), int), end[None])
    own = np.where(is_cell, TEXT + frame * CELLS, end)
    return StaticRanges(np.stack([0 * end, own]), np.stack([np.where(is_cell, TEXT, end), np.where(is_cell, end, own)]))


@pytest.mark.parametrize("static", [_frames(), _frames(sink=True)], ids=["frames", "own frame"])
@pytest.mark.parametrize("blocks", [Blocks(32, 16), Blocks(32, 16, 31), Blocks(24, 24, 17), Blocks(LENGTH, 40, 0)])
def test_any_blocks_equal_dense_with_gradients(static, blocks):
    keys = KeyRanges.of(static, jnp.array([0, 3]))
    random = jax.random.split(jax.random.key(0), 5)
    q, weight = (jax.random.normal(key, (2, LENGTH, 4, 8)) for key in random[:2])
    k, v = (jax.random.normal(key, (2, LENGTH, 2, 8)) for key in random[2:4])
    bias = jax.random.normal(random[4], (1, LENGTH))
    flash = lambda q, k, v, bias: attention._flash(q, k, v, keys.start_RBQ, keys.end_RBQ, bias, blocks)
    dense = lambda q, k, v, bias: attention.dense(q, k, v, KeyRanges.of(static, jnp.array([0, 3]), bias))

    def run(attend):
        loss = lambda *x: (attend(*x) * weight).sum()
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(q, k, v, bias))

    for got, want in zip(run(flash), run(dense)):
        np.testing.assert_allclose(got, want, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", [Blocks(32, 16), Blocks(32, 16, 31), Blocks(24, 24, 17)])
def test_blocks_are_counted_as_they_are_computed(blocks):
    static = _frames(sink=True)
    seen = np.asarray(KeyRanges.of(static, None).dense(LENGTH))[0]
    edges = range(-blocks.queries_before, LENGTH, blocks.queries)
    parts = [seen[max(edge, 0) : edge + blocks.queries] for edge in edges]
    count = sum(part[:, key : key + blocks.keys].any() for part in parts for key in range(0, LENGTH, blocks.keys))
    assert Ranges(static.start_RQ, static.end_RQ).num_blocks(blocks) == count


def test_the_best_blocks_end_with_frames_where_that_pays():
    """Seven frames of 276 tokens, as in Lumos-1 at 16x16: blocks across frames compute 28 % more pairs than are visible."""
    ends = np.concatenate([np.arange(1, 36), np.repeat(35 + 276 * np.arange(1, 8), 276), [1968, 1969]])[None]
    static = StaticRanges(0 * ends, ends)
    ranges, found = Ranges(static.start_RQ, static.end_RQ), best_blocks(static, 512, 256)
    equal = equal_blocks(1969, 1969, 512, 256)
    assert found.queries <= 512 and found.keys <= 256 and ranges.cost(found) < ranges.cost(equal)
    assert ranges.num_computed(equal) / ranges.num_pairs > 1.28
    assert ranges.num_computed(found) / ranges.num_pairs < 1.14
    assert best_blocks(_frames(), 512, 256) == Blocks(LENGTH, LENGTH)  # one block
