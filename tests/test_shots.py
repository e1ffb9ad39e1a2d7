"""The policy of videos with several shots: the first frames of the current one stay."""

import numpy as np
import pytest
from test_cache_policies import begin
from test_laws_generation import setup

from lumos.errors import UserError
from lumos.generation.policy import EMPTY, Window
from lumos.generation.positions import Absolute
from lumos.generation.shots import Shots


@pytest.fixture(scope="module")
def run():
    return setup(model__init_std=0.3)


def cached(session):
    """Frames in the cache that the next frame sees."""
    view, cache = session._engine.view, session.state.cache
    frame_S = np.asarray(view.frames(cache.tokens, cache.used_S))
    seen_S = np.asarray(view.seen(cache, session.frame))
    return sorted(set(frame_S[(frame_S >= 0) & seen_S].tolist()))


def test_without_cuts_it_is_a_window():
    """It sees the same of every cache that a window has kept."""
    shots, window = Shots(width=5, sink=0, pin=2), Window(width=5, sink=2)
    for now in range(1, 12):
        frames = np.array([-1, -1, *range(min(now, 2)), *range(max(2, now - 5), now), EMPTY])
        np.testing.assert_array_equal(shots.sees(frames, now), window.sees(frames, now))


def test_the_first_frames_of_the_current_shot_stay(run):
    session = begin(run, Shots(width=4, sink=1, pin=1, offset=8))
    sizes = set()
    for frame in range(12):
        if frame == 5:
            session.cut()
        if frame > 1:
            assert cached(session) == sorted({0, 5 if frame > 5 else 0, frame - 2, frame - 1})
        session.advance()
        sizes.add(session.num_bytes)
    times = np.asarray(session.state.cache.tokens.t)
    assert set(times[times >= 0].tolist()) == {0, 5 + 8, 10 + 8, 11 + 8}
    assert len(sizes) == 1 and session.num_programs == 1
    seen = cached(session)
    session.recache()
    assert cached(session) == seen == [0, 5, 10, 11]
    again = np.asarray(session.state.cache.tokens.t)
    assert set(again[again >= 0].tolist()) == {0, 5 + 8, 10 + 8, 11 + 8}


def test_the_first_frame_of_a_shot_sees_the_one_before():
    frames, cuts = np.array([0, 3, 6, 7, EMPTY, -1]), np.array([0, 8, 8, 8, 0, 0])
    policy = Shots(width=5, sink=1, pin=1)
    np.testing.assert_array_equal(policy.sees(frames, 8, cuts), [1, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(policy.sees(frames, 10, cuts), [1, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(policy.sees(frames, 10, np.array([0, 8, 8, 16, 0, 0])), [1, 0, 0, 1, 0, 1])


def test_what_shots_need_is_said(run):
    with pytest.raises(ValueError, match="fewer together than width=4"):
        Shots(width=4, sink=2, pin=2)
    with pytest.raises(UserError, match="cut needs a number of frames, which the cache 'window' does not say"):
        begin(run, Window(width=3, sink=1), Absolute()).cut()
