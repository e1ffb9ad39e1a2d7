"""Videos that are made while they are watched."""

import itertools
import json

import av
import numpy as np
import pytest
import untrained

from lumos.errors import UserError
from lumos.streaming import script, stream_file
from lumos.streaming.growing_video import GrowingVideo
from lumos.streaming.live import Live, Options
from lumos.streaming.pool import Pool
from lumos.streaming.profile import Profile
from lumos.streaming.script import Part


def test_a_script_is_prompts_with_their_seconds():
    assert script.parse("a red car[5s] | it rains[2.5s#] | night") == (
        Part("a red car", 5.0), Part("it rains", 2.5, True), Part("night", None)
    )  # fmt: skip
    assert script.parse("") == (Part("", None),)
    assert script.parse("either \\| or [ 1 s ]") == (Part("either | or", 1.0),)
    assert script.parse("a [red] car") == (Part("a [red] car", None),)
    assert script.starts(script.parse("a[5s] | b[2.5s#] | c"), 2.0) == (0, 10, 15)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a | b", "part 1, 'a', needs its seconds"),
        ("a[0s] | b", "part 1 lasts 0 seconds"),
        ("a[5s#]", "the first part cannot be a cut"),
        ("a[fives] | b", "part 1, .* ends with no length"),
        ("a[5] | b", "ends with no length|needs its seconds"),
    ],
)
def test_scripts_that_say_nothing_clear_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        script.parse(text)


def test_a_growing_file_plays_before_it_is_closed(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (40, 31, 48, 3)).astype(np.uint8)
    video = GrowingVideo(tmp_path / "a.mp4", 8.0, {"prompt": "x"})
    video.write(frames[:30])
    assert 15 <= _num_frames(tmp_path / "a.mp4") <= 30
    video.write(frames[30:])
    video.close()
    assert _num_frames(tmp_path / "a.mp4") == 40
    with pytest.raises(UserError, match="must end in .mp4"):
        GrowingVideo(tmp_path / "a.gif", 8.0)


def _num_frames(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_profile_counts_what_follows_the_first_frame(monkeypatch):
    from lumos.streaming import profile as module

    clock = iter([0.0, 1.0, 3.0, 10.0, 12.0, 18.0]).__next__
    monkeypatch.setattr(module.time, "perf_counter", clock)
    profile = Profile()
    with profile.timed("decode"):
        pass
    for frames in (1, 4, 4):
        profile.shown(frames)
    summary = profile.summary()
    assert summary["first_frame_s"] == 10 and summary["seconds"] == {"decode": 2.0} and summary["latent_frames"] == 3
    assert summary["pixel_frames_per_s"] == 1.0 and summary["gap_ms"]["max"] == 6000


# Tokens and pixels together.


@pytest.fixture(scope="module")
def generator():
    with untrained.make() as made:
        yield made


def take(live, num):
    return list(itertools.islice(live, num))


def pixels(shown):
    return np.concatenate([frame.pixels for frame in shown], axis=1)


def same(one, two):
    for a, b in zip(one, two, strict=True):
        assert a.number == b.number
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.pixels, b.pixels)


@pytest.fixture(scope="module")
def baseline(generator):
    return take(Live(generator, ["a red circle"], options=Options(seed=3)), 8)


def test_streamed_pixels_are_those_of_the_whole_video(generator, baseline):
    """And its tokens those of `generate`; making tokens ahead of the pixels changes nothing."""
    assert [frame.pixels.shape[1] for frame in baseline] == [1] + [4] * 7
    whole = generator.generate(["a red circle"], seed=3, num_frames=29)
    np.testing.assert_array_equal(np.stack([frame.codes for frame in baseline], axis=1), whole.tokens)
    assert np.abs(pixels(baseline).astype(int) - whole.videos).max() <= 1  # a chunk of another length rounds otherwise
    same(take(Live(generator, ["a red circle"], options=Options(seed=3, ahead=0)), 8), baseline)


def test_what_is_taken_back_comes_again(generator, baseline):
    """Tokens and pixels, also of frames that were made ahead; a fork with another seed shares the past alone."""
    live = Live(generator, ["a red circle"], options=Options(seed=3, undo=3))
    take(live, 5)
    live.rewind(3)
    fork = live.fork(seed=9)
    same(take(live, 6), baseline[2:])
    other = take(fork, 2)
    assert other[0].number == 2 and (other[0].codes != baseline[2].codes).any()
    with pytest.raises(UserError, match="rewind by 4 frames; allowed: 0 to 3"):
        live.rewind(4)


def test_a_saved_stream_goes_on_bit_for_bit(generator, baseline, tmp_path):
    live = Live(generator, ["a red circle"], options=Options(seed=3))
    take(live, 4)
    live.save(tmp_path / "saved")
    take(live, 1)
    live.save(tmp_path / "saved")  # anew
    again = Live(generator, ["another"], options=Options(seed=4))
    again.restore(tmp_path / "saved")
    same(take(again, 3), baseline[5:])
    with pytest.raises(UserError, match="not a saved stream"):
        again.restore(tmp_path)


def test_prompts_change_at_their_frame(generator, baseline):
    """Whether tokens are made ahead or not; the latest wins, and what was shown before stays."""
    text = "a blue square"

    def switched(ahead):
        live = Live(generator, ["a red circle"], options=Options(seed=3, ahead=ahead))
        live.at(4, lambda: live.switch(["never seen"]))
        live.at(4, lambda: live.switch([text]))
        return take(live, 6)

    one = switched(0)
    same(one, switched(1))
    same(one[:4], baseline[:4])
    assert any((a.codes != b.codes).any() for a, b in zip(one[4:], baseline[4:]))
    live = Live(generator, ["a red circle"], options=Options(seed=3, ahead=0))
    take(live, 4)
    live.switch([text])
    same(take(live, 2), one[4:])
    live.cut()
    live.switch([text], "flush")
    assert take(live, 1)[0].number == 6
    with pytest.raises(UserError, match="2 prompts for 1 videos"):
        live.switch([text, text])


def test_given_frames_are_shown_first(generator):
    given = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3)).astype(np.uint8)
    shown = take(Live(generator, ["a", "b"], given=given), 3)
    codes = generator.tokenizer.encode(given[None])
    for number in range(2):
        np.testing.assert_array_equal(shown[number].codes, np.repeat(codes[:, number], 2, axis=0))
    assert shown[2].pixels.shape == (2, 4, 32, 32, 3)


def test_memory_and_programs_do_not_grow(generator):
    live = Live(generator, ["a"], options=Options(settings=None))
    take(live, 8)
    programs, cache = live.session.num_programs, live.session.num_bytes
    decoder = [x.shape for x in live._decoder.to_arrays()]
    take(live, 20)
    assert live.session.num_bytes == cache and [x.shape for x in live._decoder.to_arrays()] == decoder
    assert live.session.num_programs == programs


# Seats.


def test_viewers_join_and_leave_at_any_frame(generator, baseline):
    """What a viewer sees is what it would see alone, whoever sits beside it, and how many programs there are does not change."""
    pool = Pool(generator, 3)
    seat, shown = pool.join("a red circle", seed=3)
    seen = [*shown, *(pool.step()[seat] for _ in range(2))]
    other, first = pool.join("a blue square", seed=5)
    alone = take(Live(generator, ["a blue square"], options=Options(seed=5, ahead=0)), 4)
    theirs = first
    for _ in range(3):
        both = pool.step()
        seen.append(both[seat])
        theirs.append(both[other])
    same(seen, baseline[:6])
    same(theirs, alone)
    pool.leave(seat)
    again, shown = pool.join("a red circle", seed=3)
    assert again == seat and pool.free == [2]
    same([*shown, pool.step()[again]], baseline[:2])
    assert pool._program._cache_size() == 1


def test_an_event_on_a_seat_changes_no_other(generator, baseline):
    pool = Pool(generator, 2)
    (a, first), (b, _) = pool.join("a red circle", seed=3), pool.join("a red circle", seed=3)
    seen, other = first, []
    for step in range(5):
        if step == 3:
            pool.switch(b, "a blue square")
        both = pool.step()
        seen.append(both[a])
        other.append(both[b])
    same(seen, baseline[:6])
    live = Live(generator, ["a red circle"], options=Options(seed=3, ahead=0))
    live.at(4, lambda: live.switch(["a blue square"]))
    same(other, take(live, 6)[1:])
    with pytest.raises(UserError, match="all 2 seats are taken"):
        pool.join("c")
    with pytest.raises(UserError, match="nobody has seat 5"):
        pool.leave(5)


@pytest.mark.slow
def test_seats_pause_go_back_and_fork(generator, baseline):
    pool = Pool(generator, 3, options=Options(undo=3))
    seat, shown = pool.join("a red circle", seed=3)
    idle, _ = pool.join("a blue square", seed=5)
    seen = [*shown, *(pool.step({seat})[seat] for _ in range(4))]
    same(seen, baseline[:5])
    pool.rewind(seat, 3)
    fork = pool.fork(seat, seed=9)
    same([pool.step({seat})[seat] for _ in range(3)], baseline[2:5])
    assert (pool.step({fork})[fork].codes != baseline[2].codes).any()
    same([pool.step()[idle]], take(Live(generator, ["a blue square"], options=Options(seed=5)), 2)[1:])
    with pytest.raises(UserError, match="rewind by 9 frames"):
        pool.rewind(seat, 9)
    assert pool.at(seat).frame == 6 and not pool.step(set())


def test_a_script_becomes_a_file_that_goes_on_in_another(generator, tmp_path, monkeypatch):
    """As long as its seconds, the second part at its frame; what was saved goes on as one stream would have."""
    monkeypatch.setattr(stream_file.Generator, "load", lambda *_: generator)
    run = lambda name, prompt, **more: stream_file.stream(
        tmp_path, stream_file.Request(prompt=prompt, seed=3, **more), tmp_path / name
    )
    saved, profile = str(tmp_path / "saved"), tmp_path / "profile.json"
    made = run("one.mp4", "a red circle[2s] | a blue square[1s#]", save=saved, profile=str(profile))
    assert made["latent_frames"] == 7 and _num_frames(tmp_path / "one.mp4") == 1 + 3 * 8
    assert json.loads(profile.read_text())["passes_per_frame"] == 3  # two, and one that writes
    assert run("two.mp4", "a blue square", seconds=1.0, resume=saved)["latent_frames"] == 2
    assert _num_frames(tmp_path / "two.mp4") == 8
    with pytest.raises(UserError, match="--switch=magic: allowed"):
        run("three.mp4", "a", switch="magic", seconds=1.0)
    assert not (tmp_path / "three.mp4").exists()
