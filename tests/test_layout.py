import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos.data.text import instruct
from lumos.errors import UserError
from lumos.layouts import make_layout
from lumos.sequence import lumos1, vocabulary
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import StageCausal, compile_rule, count_pairs, layout_ranges, visible
from lumos.slots import slot


@pytest.mark.parametrize("name", ["compact", "lumos1"])
def test_grid_to_sequence_to_grid_is_the_identity(name):
    config = tiny.transformer(sequence__layout=slot(name))
    plan, batch = make_layout(config), tiny.token_batch(config)
    ids = plan.assemble(jnp.asarray(batch["text"]), jnp.asarray(batch["tokens"]))
    assert ids.shape == (8, plan.length)
    np.testing.assert_array_equal(plan.codes(ids), batch["tokens"])
    np.testing.assert_array_equal(ids[:, : plan.num_text], batch["text"])


def test_lumos1_layout_equals_the_official_sequence(golden):
    """Our right-aligned layout with exactly as many text slots as text tokens is the released models' sequence."""
    data = golden("mmrope.npz")
    case = "g3x4x8_L5"
    ids = data[f"{case}/input_ids"]
    start = int(np.flatnonzero(ids == 9004)[0])
    # Text slots for everything before the separator; duration and fps are whatever the case says.
    plan = lumos1.build(
        vocabulary.lumos1(), start - 1, (3, 4, 8), fps=ids[start + 2] - 8804, duration=ids[start + 1] - 8804
    )
    np.testing.assert_array_equal(plan.visual_index, np.flatnonzero(ids >= 65_536))
    markers = np.setdiff1d(np.arange(start - 1, len(ids)), plan.visual_index)
    np.testing.assert_array_equal(plan.template[markers], ids[markers])
    for name in ("text", "t", "h", "w"):
        np.testing.assert_array_equal(getattr(plan.positions, name), data[f"{case}/pos_{name}"])
    np.testing.assert_array_equal(plan.positions.is_content, data[f"{case}/content_flag"])


def test_key_ranges_equal_the_official_mask(golden):
    data = golden("attention_mask.npz")
    ids = data["video3_text5/input_ids"][0]
    allow = np.unpackbits(data["video3_text5/allow"], axis=-1, count=len(ids))[0].astype(bool)
    start = int(np.flatnonzero(ids == 9004)[0])
    plan = lumos1.build(vocabulary.lumos1(), start - 1, (3, 4, 4), fps=0, duration=0)
    keys = KeyRanges.of(layout_ranges(plan, StageCausal()), jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(keys.dense(plan.length)[0], allow)


@pytest.mark.parametrize("name", ["compact", "lumos1"])
def test_key_ranges_equal_the_predicate(name):
    plan = make_layout(tiny.transformer(sequence__layout=slot(name)))
    index, rule = np.arange(plan.length), StageCausal()
    group = np.where(plan.tokens.group < 0, -1 - index, plan.tokens.group)  # what is in no group is one of its own
    causal = (index[None, :] <= index[:, None]) | (group[None, :] == group[:, None])
    for first in (0, 3, plan.drop_to):
        keys = plan.tokens._replace(valid=(index >= first).astype(np.int32))
        expected = visible(rule, plan.tokens, keys)
        np.testing.assert_array_equal(expected, causal & (index >= first))
        got = KeyRanges.of(layout_ranges(plan, rule), jnp.array([first])).dense(plan.length)[0]
        np.testing.assert_array_equal(got, expected)
        assert count_pairs(plan, rule, plan.num_text - first) == expected[first:].sum()


def test_keys_that_lie_scattered_are_refused():
    plan = make_layout(tiny.transformer())
    scattered = plan.tokens._replace(stage=np.arange(plan.length) % 2)
    with pytest.raises(
        UserError, match="attention='causal' gives 27 ranges of keys to one query in this layout, at most 4"
    ):
        compile_rule(StageCausal(), scattered, scattered)


def test_text_drop_hides_all_text_and_nothing_else():
    plan = make_layout(tiny.transformer())
    first = plan.first_key(jnp.array([4, 4]), jnp.array([False, True]))
    np.testing.assert_array_equal(first, [plan.num_text - 4, plan.num_text])


def test_lumos1_refuses_grids_it_cannot_write():
    layout, ids = lumos1.Lumos1(), vocabulary.lumos1()
    with pytest.raises(ValueError, match="multiples of 4"):
        layout.layout(ids, 3, (2, 4, 6), timing=(12, 2))
    with pytest.raises(UserError, match=r"config.sequence.layout='lumos1': grid \(2, 4, 6\).*multiples of 4"):
        make_layout(tiny.transformer(sequence__layout=slot("lumos1")), (2, 4, 6))


def _header(config, grid):
    """Return (duration, fps) as the sequence of a lumos1 layout writes them."""
    plan = make_layout(config, grid)
    at = int(np.flatnonzero(plan.template == plan.vocabulary.video_start)[0])
    return tuple(int(x) - plan.vocabulary.number_zero for x in plan.template[at + 1 : at + 3])


@pytest.mark.parametrize(
    "frames, want",
    [(7, (2, 12)), (1, (1, 1)), (4, (1, 12)), (13, (4, 12)), (2, (1, 12)), (10, (3, 12)), (19, (6, 12))],
)
def test_the_lumos1_header_says_how_long_a_clip_is(frames, want):
    """Two seconds at 12 fps are 7 latent frames (25 frames); 13 are 49 frames, 4.1 seconds; a single one is an image."""
    config = tiny.transformer(sequence__layout=slot("lumos1"), sequence__grid=(7, 4, 4))
    assert _header(config, (frames, 4, 4)) == want
    derived = tiny.transformer(sequence__layout=slot("lumos1"), sequence__grid=(7, 4, 4), sequence__duration=0)
    assert _header(derived, (frames, 4, 4)) == want


def test_the_instruction_says_how_many_frames_a_clip_has():
    template = "{frames} frames at {fps}: {caption}"
    config = tiny.transformer(sequence__layout=slot("lumos1"), sequence__grid=(7, 4, 4), text__template=template)
    for frames, want in ((7, "24 frames at 12: a dog"), (13, "48 frames at 12: a dog"), (1, "1 frames at 1: a dog")):
        assert instruct(config, "a dog", (frames, 4, 4)) == want
