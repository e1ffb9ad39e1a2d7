"""The level "endless" of moving_shapes: objects that go to and fro for ever, and how that is read from pixels."""

import dataclasses

import numpy as np
import pytest

from lumos.data import moving_shapes, shapes_motion
from lumos.data.shapes_caption import Prompt, test_prompts, write_caption
from lumos.data.shapes_scene import MOTIONS, ROUTES, sample_scene

test_prompts.__test__ = False  # a function of the library
CLIP = (65, 48, 48)


def clip_and_prompt(index, clip_shape=CLIP):
    clip = moving_shapes.make_clip("endless", clip_shape, 0, "train", index)
    return clip["video"], Prompt(clip["caption"], clip["colour"], clip["shape"], clip["direction"])


def test_a_cut_of_a_long_clip_looks_like_any_other():
    """Every place and heading is the first one of some clip, all as often, and what follows a place and a heading is always the
    same: so there is nothing in a long video that training does not show."""
    firsts, follows = {}, {}
    for index in range(360):
        main = sample_scene("endless", CLIP, 0, "train", index).main
        axis = int(np.argmax(np.abs(MOTIONS[main.direction])))
        along = main.centre_F2[::4, axis]
        assert np.ptp(main.centre_F2[:, 1 - axis]) == 0 and main.bounces
        states = [(axis, a, np.sign(b - a)) for a, b in zip(along, along[1:])]
        firsts[states[0]] = firsts.get(states[0], 0) + 1
        for state, after in zip(states, states[1:]):
            assert follows.setdefault(state, after) == after
    assert len(firsts) == 2 * 6 and min(firsts.values()) > 12  # of 30 expected
    np.testing.assert_array_equal(np.abs(np.diff(main.centre_F2[:, axis])), 2.0)


def test_captions_name_the_route_and_never_a_first_direction():
    for index in range(100):
        scene = sample_scene("endless", CLIP, 0, "train", index)
        caption = write_caption(scene, 0, "train", index)
        across, along = (
            set(words) & set(caption.split()) for words in (("left", "right"), ("up", "down", "upwards", "downwards"))
        )
        named = {"left and right": across, "up and down": along}
        assert len(named.pop(scene.main.direction)) == 2 and not any(named.values()), caption
        assert "bounc" not in caption and len(caption.split()) <= 16


@pytest.mark.parametrize("clip_shape", [CLIP, (33, 64, 64), (33, 32, 32)])
def test_true_clips_are_right(clip_shape):
    for index in range(12):
        video, prompt = clip_and_prompt(index, clip_shape)
        assert moving_shapes.score(video, prompt) == dict.fromkeys(("colour", "shape", "direction"), True)
        other = dataclasses.replace(prompt, direction=next(r for r in ROUTES if r != prompt.direction))
        assert not moving_shapes.score(video, other)["direction"]


def test_what_goes_wrong_is_seen():
    video, prompt = clip_and_prompt(3)
    right = lambda video: moving_shapes.score(np.ascontiguousarray(video), prompt)["direction"]
    assert right(video) and right(video[::-1])  # to and fro is the same backwards
    assert not right(np.repeat(video[:1], len(video), axis=0))  # it stands still
    assert not right(np.concatenate([video[:20], np.repeat(video[20:21], 45, axis=0)]))  # from some moment on
    assert not right(
        np.concatenate([part[::-1] if i % 2 else part for i, part in enumerate(np.split(video[:64], 8))])
    )  # turns anywhere


def test_every_kind_of_step_is_judged():
    """Places in cells from the low edge: 0, 1, 2, 3 are all there are in frames of 48."""

    def legal(*cells, across=24.0):
        centre = np.full((4 * len(cells), 2), across)
        centre[::4, 0] = 12 + 8 * np.array(cells, float)
        return shapes_motion.legal_steps(centre, (48, 48), "left and right", "circle").tolist()

    assert legal(0, 1, 2, 3, 2, 1, 0, 1) == [True] * 6
    assert legal(0.2, 1.1, 2.2, 2.8, 2.1) == [True] * 3  # a little off
    assert legal(0, 1, 0) == [False]  # turns in the middle
    assert legal(2, 3, 3) == [False]  # stays at the edge
    assert legal(0, 1, 3) == [False]  # too far
    assert legal(1, 2, 3, 4) == [True, False]  # through the edge
    assert legal(0, 1, np.nan, 3, 2) == [False] * 3
    assert legal(1, 1, 2) == [False]  # it stood still before
