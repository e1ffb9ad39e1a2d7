"""Drafts change nothing, shared noise gives the same clip in the same context, and what both of them count."""

import copy
import itertools

import numpy as np
import pytest
import small
import tiny

from lumos.errors import UserError
from lumos.generation.draft import Drafts
from lumos.generation.noise import Own, Repeated
from lumos.generation.plan import Diagonal
from lumos.generation.policy import Fifo
from lumos.generation.positions import Relative
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine


@pytest.fixture(scope="module")
def make():
    """Sessions of one model, whose noise repeats with every second frame."""
    sessions, usual = {}, {"cache": Fifo(width=1), "positions": Relative(horizon=1), "noise": Repeated(frames=2)}

    def make(given=None, **settings):
        if str(settings) not in sessions:
            engine = small.engine(undo=2, **(usual | settings))
            sessions[str(settings)] = Session(engine, small.model()[2])
        session = copy.copy(sessions[str(settings)])
        session.prefill(*small.text(), row_keys(1, 2), given)
        return session

    return make


@pytest.mark.parametrize("stream", ["AAAAAA", "AABABB", "BABABA"])
def test_drafts_change_nothing(make, stream):
    text, length = make().text
    prompts = {"A": (text, length), "B": (np.roll(text, 1, axis=0), np.roll(length, 1))}
    session, want = make(), []
    for n, name in enumerate(stream):
        if name != (stream[n - 1] if n else "A"):
            session.switch(*prompts[name], how="keep")
        want.append(np.asarray(session.advance()))
    drafts = Drafts(make(), lambda frame: prompts[stream[frame]], ahead=3)
    np.testing.assert_array_equal(list(drafts.frames(6)), want)
    runs = [len(list(group)) for _, group in itertools.groupby(stream)]
    assert drafts.kept == 6 and drafts.rounds == sum(-(-num // 3) for num in runs) and drafts.drafted >= drafts.kept


class Recorded:
    """A session that makes nothing, and writes down what is taken back."""

    def __init__(self):
        self.frame, self.text, self.most_rewind, self.taken_back = 0, (np.array(0),), None, []

    def advance(self):
        self.frame += 1
        return self.frame - 1

    def switch(self, text, how):
        self.text = (text,)

    def rewind(self, frames):
        self.frame -= frames
        self.taken_back.append(frames)


@pytest.mark.parametrize("p, want", [(0.9, 3.439), (0.5, 1.875)])
def test_how_many_drafts_are_kept(p, want):
    """Over all streams of conditions, a first round of four keeps 1 + p + p^2 + p^3 frames (NFD: 3.44 and 1.88)."""
    mean = 0.0
    for stays in itertools.product([True, False], repeat=3):
        conditions = [(number,) for number in np.cumsum([0, *(not stay for stay in stays)])]
        session = Recorded()
        frames = list(Drafts(session, conditions.__getitem__, ahead=4).frames(4))
        assert frames == [0, 1, 2, 3]
        mean += np.prod([p if stay else 1 - p for stay in stays]) * (4 - session.taken_back[1])  # the first asks only
    assert mean == pytest.approx(want) and want == pytest.approx(sum(p**k for k in range(4)))


def test_what_cannot_be_drafted_is_said(make):
    for session, ahead, message in (
        (make(), 4, "need an engine with undo=3"),
        (make(), 0, "ahead=0 must be at least 1"),
        (make(plan=Diagonal(passes=1)), 3, "2 frames are in flight together"),
    ):
        with pytest.raises(UserError, match=message):
            Drafts(session, lambda frame: None, ahead)


def test_the_same_noise_in_the_same_context_gives_the_same_clip(make):
    """Three frames behind five given ones, and behind seven: all that they see is the last one, which is the same."""
    given = lambda num: np.concatenate([np.full((2, num - 1, 2, 2), 7), np.full((2, 1, 2, 2), 3)], axis=1)
    one, other = (np.stack(list(make(given(num)).frames(3))) for num in (5, 7))
    np.testing.assert_array_equal(one, other)
    numbers = np.arange(6)  # of groups, two a frame
    assert Own()(numbers, 2).tolist() == [0, 1, 2, 3, 4, 5] and Repeated(frames=2)(numbers, 2).tolist() == [
        0,
        1,
        2,
        3,
        0,
        1,
    ]
    planes = tiny.transformer(sequence__layout=slot("planes"), generate__noise=slot("repeated"))
    with pytest.raises(UserError, match="noise 'repeated' counts frames"):
        make_engine(planes, TransformerObjective(planes).definition)
