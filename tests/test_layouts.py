"""Laws of every arrangement: what goes into a sequence comes out of it, and the table of tokens says where each stands."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos.sequence.arrangement import Compact, Planes, Ranks, Regions, Scales
from lumos.sequence.lumos1 import Lumos1
from lumos.sequence.targets import InPlace, Neighbours, Next
from lumos.sequence.tokens import CODE, LINE_END, START, STREAM, TEXT

TEXT_LENGTH, TEXT_VOCAB, VISUAL_VOCAB = 5, 20, 30


def build(arrangement, grid, *, start="none", copies=1, streams=(), text_length=TEXT_LENGTH):
    """Return a layout; `streams` are (codes, tokens in each frame) pairs."""
    sizes, counts = zip(*streams) if streams else ((), ())
    ids = arrangement.vocabulary(TEXT_VOCAB, VISUAL_VOCAB, start=start != "none", streams=sizes)
    return arrangement.layout(
        ids, text_length, grid, timing=(12, 2), copies=copies, start=start, streams=counts
    )  # fmt: skip


@st.composite
def _cases(draw):
    """An arrangement and a grid that it fits."""
    kind = draw(st.sampled_from([Compact, Planes, Regions, Scales, Ranks, Lumos1]))
    size = st.integers(1, 4)
    if kind is Compact:
        block = draw(st.tuples(*[st.integers(0, 3)] * 3))
        grid = tuple((b or 1) * n for b, n in zip(block, draw(st.tuples(*[st.integers(1, 3)] * 3))))
        return Compact(block=block), grid
    if kind is Regions:
        rows, columns, *sizes = draw(st.tuples(*[st.integers(1, 3)] * 5))
        return Regions(rows=rows, columns=columns), (sizes[0], rows * sizes[1], columns * sizes[2])
    if kind is Lumos1:
        return Lumos1(), (draw(size), 4 * draw(st.integers(1, 2)), 4 * draw(st.integers(1, 2)))
    grid = draw(st.tuples(size, size, size))
    if kind is Ranks:
        order = draw(st.one_of(st.just(()), st.permutations(range(grid[0])).map(tuple)))
        return Ranks(order=order), grid
    return (Scales(num_scales=draw(st.integers(1, 3))) if kind is Scales else Planes()), grid


@st.composite
def _layouts(draw):
    arrangement, grid = draw(_cases())
    if isinstance(arrangement, Lumos1):
        return arrangement, build(arrangement, grid), ()
    streams = draw(st.sampled_from([(), ((7, 1),), ((7, 2), (11, 3))]))
    start = draw(st.sampled_from(["none", "one", "token", "block"]))
    copies = draw(st.integers(1, 2)) if start == "none" else 1
    return arrangement, build(arrangement, grid, start=start, copies=copies, streams=streams), streams


LAWS = settings(max_examples=150, derandomize=True, deadline=None, database=None)


@settings(LAWS, max_examples=8)  # every shape compiles
@given(_layouts(), st.integers(0, 2**31))
def test_grid_to_sequence_to_grid_is_the_identity(case, seed):
    _, layout, streams = case
    rng = np.random.default_rng(seed)
    text = rng.integers(0, TEXT_VOCAB, (2, TEXT_LENGTH))
    codes = rng.integers(0, VISUAL_VOCAB, (2, *layout.grid))
    of_streams = [rng.integers(0, size, (2, layout.grid[0], num)) for size, num in streams]

    @jax.jit
    def there_and_back(text, codes, of_streams):
        ids = layout.assemble(text, codes, of_streams)
        return ids, layout.codes(ids), layout.stream_codes(ids)

    ids, codes_again, streams_again = there_and_back(text, codes, tuple(of_streams))
    assert ids.shape == (2, layout.length)
    np.testing.assert_array_equal(ids[:, :TEXT_LENGTH], text)
    np.testing.assert_array_equal(codes_again, codes)
    for got, want in zip(streams_again, of_streams, strict=True):
        np.testing.assert_array_equal(got, want)
    ids, v = np.asarray(ids), layout.vocabulary
    if layout.clean_index is not None:
        np.testing.assert_array_equal(ids[:, layout.clean_index], ids[:, layout.visual_index])
    # Every id is where its kind says: codes of the video in its range and nowhere else, streams in theirs, starts at starts.
    kind = layout.tokens.kind
    is_code = (ids >= v.visual_start) & (ids < v.visual_end)
    np.testing.assert_array_equal(is_code, np.broadcast_to(kind == CODE, ids.shape))
    assert (ids[:, kind == START] == v.start).all() and v.mask not in ids
    for i, (first, (size, _)) in enumerate(zip(v.stream_starts, streams)):
        of_stream = ids[:, layout.tokens.stream == 1 + i]
        assert (of_stream >= first).all() and (of_stream < first + size).all() and first + size <= v.size


@LAWS
@given(_layouts())
def test_the_table_says_where_every_token_stands(case):
    arrangement, layout, streams = case
    tokens, num_frames = layout.tokens, layout.grid[0]
    cells = np.indices(layout.grid).reshape(3, -1)
    for index, copy in ((layout.visual_index, int(layout.clean_index is not None)), (layout.clean_index, 0)):
        if index is not None:
            assert len(set(index.tolist())) == cells.shape[1]
            np.testing.assert_array_equal((tokens.t[index], tokens.y[index], tokens.x[index]), cells)
            assert (tokens.kind[index] == CODE).all() and (tokens.copy[index] == copy).all()
    copies = 1 + (layout.clean_index is not None)
    assert (tokens.kind == CODE).sum() == copies * cells.shape[1]
    assert (tokens.kind == TEXT).sum() == TEXT_LENGTH and (tokens.kind[:TEXT_LENGTH] == TEXT).all()
    assert (tokens.kind == STREAM).sum() == num_frames * sum(num for _, num in streams)
    assert (tokens.t[np.isin(tokens.kind, (TEXT, START))] == -1).all() and (tokens.t[tokens.is_cell] >= -1).all()
    assert (tokens.valid == 1).all() and (tokens.segment == -1).all()
    for field in tokens:
        assert field.shape == (layout.length,) and field.dtype == np.int32
    content = layout.content_index
    assert set(tokens.kind[content].reshape(-1)) <= {CODE, LINE_END}
    np.testing.assert_array_equal(tokens.t[content], np.arange(num_frames)[:, None] + 0 * content)
    if not isinstance(arrangement, Lumos1):
        # Sequences are stored in the order of their stages, one copy behind the other; the natural index is a permutation.
        for copy in range(copies):
            assert (np.diff(tokens.stage[tokens.copy == copy]) >= 0).all()
        assert len(set(tokens.index[tokens.copy == 0].tolist())) == (tokens.copy == 0).sum()
        for frame, index in enumerate(zip(*layout.stream_index)):
            first = tokens.stage[(tokens.t == frame) & (tokens.kind == CODE)].min()
            assert all((tokens.stage[i] < first).all() for i in index)


@LAWS
@given(_layouts())
def test_groups_are_a_partition_in_the_order_of_stages(case):
    arrangement, layout, _ = case
    tokens, groups = layout.tokens, layout.groups
    # With two copies the last clean stage stands behind the noisy copy, where nothing sees it; what comes with it does not.
    in_one_piece = groups if layout.clean_index is None else groups[:-1]
    assert all((np.diff(group) == 1).all() for group in in_one_piece)
    together = np.concatenate(groups)
    assert (np.diff(together) > 0).all()
    clean = layout.visual_index if layout.clean_index is None else layout.clean_index
    frames = tokens.stage[clean].reshape(layout.grid[0], -1)
    if isinstance(arrangement, Lumos1):
        want = np.flatnonzero(tokens.t >= 0)
    elif (frames == frames[:, :1]).all():  # streams are of the group of their frame, where that is all of it
        want = np.sort(np.concatenate([clean, *(index.reshape(-1) for index in layout.stream_index)]))
    else:
        want = np.sort(clean)
    np.testing.assert_array_equal(together, want)
    stages = [set(tokens.stage[group[tokens.kind[group] != STREAM]].tolist()) for group in groups]
    assert all(len(stage) == 1 for stage in stages)
    assert (np.diff([stage.pop() for stage in stages]) > 0).all()
    assert layout.prefix_length == groups[0][0]
    if not isinstance(arrangement, Lumos1):
        # The stages are those of the arrangement; only a first stage that is spelt out differs.
        want = np.unique(arrangement.stages(layout.grid).reshape(-1), return_inverse=True)[1].reshape(-1)
        extra = len(groups) - want.max() - 1
        assert extra in (0, (want == 0).sum() - 1)
        later = want > 0
        np.testing.assert_array_equal(tokens.group[clean][later], want[later] + extra)


@LAWS
@given(_layouts())
def test_rotary_coordinates_do_not_depend_on_the_stored_order(case):
    arrangement, layout, streams = case
    if isinstance(arrangement, Lumos1):
        return
    num_start = int((layout.tokens.index[layout.tokens.kind == CODE].min()) - TEXT_LENGTH - sum(n for _, n in streams))
    t, y, x = np.indices(layout.grid).reshape(3, -1)
    offset = TEXT_LENGTH + num_start + sum(n for _, n in streams)
    for index in (layout.visual_index, layout.clean_index):
        if index is not None:
            own = layout.positions.at(index)
            np.testing.assert_array_equal((own.t - offset, own.h - offset, own.w - offset), (4 * t, 8 * y, 8 * x))
            assert (own.is_content == 1).all()
    text = layout.positions.at(np.arange(TEXT_LENGTH))
    for axis in text[:4]:
        np.testing.assert_array_equal(axis, np.arange(TEXT_LENGTH))


def test_coordinates_are_those_of_raster_order_in_every_arrangement():
    grid = (2, 4, 4)
    want = build(Compact(block=(1, 1, 1)), grid)
    for arrangement in (Compact(), Compact(block=(0, 2, 2)), Planes(), Regions(), Scales(), Ranks(order=(1, 0))):
        for copies in (1, 2):
            got = build(arrangement, grid, copies=copies)
            for index in (got.visual_index, got.clean_index if copies == 2 else got.visual_index):
                for a, b in zip(got.positions.at(index), want.positions.at(want.visual_index)):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "arrangement, grid, start, num",
    [
        (Compact(block=(0, 0, 0)), (5, 16, 16), "none", 1),  # MaskGIT
        (Compact(), (5, 16, 16), "none", 5),
        (
            Compact(block=(1, 1, 0)),
            (3, 16, 16),
            "none",
            48,
        ),  # NBP on what follows given frames: 768 codes in rows of 16
        (Compact(block=(1, 1, 0)), (5, 16, 16), "token", 16 + 79),  # NBP with its hybrid start
        (Planes(), (4, 16, 16), "one", 4 + 2 * 16 - 2),  # NAR
        (Regions(), (1, 16, 16), "token", 4 + 63),  # PAR 4x
        (Regions(), (5, 16, 16), "token", 323),
        (Regions(rows=4, columns=4), (5, 16, 16), "token", 95),
        (Compact(block=(1, 1, 1)), (2, 3, 3), "token", 18),
        (Scales(num_scales=3), (2, 4, 4), "none", 6),
    ],
)
def test_numbers_of_stages_of_the_papers(arrangement, grid, start, num):
    assert len(build(arrangement, grid, start=start, text_length=0).groups) == num


def test_key_frames_come_first_and_halves_later():
    order = [int(group) for group in np.argsort(Ranks().stages((9, 1, 1)).reshape(-1))]
    assert order == [0, 8, 4, 2, 6, 1, 3, 5, 7]


@pytest.mark.parametrize(
    "rule, arrangement",
    [
        (InPlace(), Ranks()),
        (Next(), Compact(block=(1, 1, 1))),
        (Next(), Compact(block=(1, 1, 0))),
        (Next(), Compact(block=(0, 2, 2))),
        (Next(), Regions()),
        (Next(first="block"), Regions()),
        (Next(first="block"), Compact()),
        (Next(first="block"), Compact(block=(1, 2, 2))),
        (Neighbours(), Planes()),
        (Neighbours(), Compact(block=(1, 1, 1))),
    ],
)
def test_targets_are_predicted_once_by_tokens_of_their_own_and_of_earlier_stages(rule, arrangement):
    layout = build(arrangement, (2, 4, 4), start=rule.start)
    where, tokens = rule(layout), layout.tokens
    np.testing.assert_array_equal(where.target, layout.visual_index)
    assert (where.source >= 0).any(axis=1).all()
    for source in where.source.T:
        used = source >= 0
        assert len(set(source[used].tolist())) == used.sum()
        if rule.name != "in_place":
            assert (tokens.stage[source[used]] < tokens.stage[where.target[used]]).all()
            assert (tokens.kind[source[used]] != TEXT).all()
    if rule.name == "next":  # the same slot of the block before, where there is one of codes
        behind = tokens.at(where.source[:, 0])
        is_block = (tokens.kind[where.source[:, 0]] == CODE) & (np.bincount(behind.group + 1)[behind.group + 1] > 1)
        slot = lambda index: index - np.array([layout.groups[g][0] for g in tokens.group[index]])
        source, target = where.source[is_block, 0], where.target[is_block]
        np.testing.assert_array_equal(slot(source), slot(target))
        np.testing.assert_array_equal(tokens.group[source] + 1, tokens.group[target])


@pytest.mark.parametrize(
    "rule, arrangement, message",
    [
        (Next(), Planes(), "blocks of one size"),
        (Next(), Scales(), "blocks of one size"),
        (Next(), Ranks(order=(1, 0)), None),
        (Neighbours(), Compact(), "cannot predict each other"),
        (Neighbours(), Ranks(order=(1, 0)), "cannot predict each other"),
    ],
)
def test_targets_that_see_their_answer_are_refused(rule, arrangement, message):
    layout = build(arrangement, (2, 4, 4), start=rule.start)
    if message is None:
        assert len(rule(layout).target) == 32
        return
    with pytest.raises(ValueError, match=message):
        rule(layout)


def test_targets_that_would_miss_the_streams_of_a_frame_are_refused():
    for rule, arrangement in ((Next(), Compact(block=(1, 1, 0))), (Neighbours(), Planes())):
        with pytest.raises(ValueError, match="streams of a new frame"):
            rule(build(arrangement, (2, 4, 4), start=rule.start, streams=((7, 2),)))
    layout = build(Compact(block=(1, 1, 1)), (2, 4, 4), start="token", streams=((7, 2),))
    first = Next()(layout).source.reshape(2, 16)[:, 0]
    assert (layout.tokens.kind[first] == STREAM).all()
