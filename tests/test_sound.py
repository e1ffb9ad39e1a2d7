"""Sound as a stream: bands of pitch, sounds that follow shapes, and how well both belong together."""

import numpy as np
import pytest

from lumos.data import sound
from lumos.evaluation.sound import beat_alignment, beats, info_nce
from lumos.sequence.streams import StreamConfig

RATE, FPS, FRAMES = 8000, 10.0, 12


def bounces(seed=0):
    """Places of a shape that bounces between two walls, [FRAMES, 2]."""
    rng = np.random.default_rng(seed)
    start, step = rng.uniform(0, 1), rng.uniform(0.15, 0.3)
    return np.stack([np.abs((start + step * np.arange(FRAMES)) % 2 - 1), np.full(FRAMES, 0.5)], axis=1)


@pytest.mark.parametrize("hertz", [100.0, 700.0, 3000.0])
def test_a_tone_is_in_its_band(hertz):
    tone = np.sin(2 * np.pi * hertz * np.arange(int(FRAMES * RATE / FPS)) / RATE)
    bands_FB = sound.mel_bands(tone, RATE, fps=FPS, num_frames=FRAMES, bands=8)
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    want = int((mel(hertz) - mel(60)) / (mel(RATE / 2) - mel(60)) * 8)
    assert (bands_FB[1:].argmax(1) == want).all() and bands_FB.dtype == np.float32
    np.testing.assert_allclose(bands_FB[0], -8)  # nothing is heard before the first frame


def test_no_frame_hears_what_comes_later():
    samples = np.random.default_rng(0).standard_normal(int(FRAMES * RATE / FPS))
    changed = samples.copy()
    changed[int(5 * RATE / FPS) :] = 0
    one, two = (sound.mel_bands(x, RATE, fps=FPS, num_frames=FRAMES) for x in (samples, changed))
    np.testing.assert_array_equal(one[:6], two[:6])
    assert (one[6:] != two[6:]).all()


def test_bands_become_tokens_that_say_them_within_half_a_bin():
    bands_FB = sound.mel_bands(sound.of_places(bounces(), RATE, FPS), RATE, fps=FPS, num_frames=FRAMES)
    stream = StreamConfig(name="sound", codes=32, low=-8.0, high=2.0)
    assert stream.encode(bands_FB, 1).shape == (FRAMES, 8) and bands_FB.max() < 2
    np.testing.assert_array_less(np.abs(stream.values(stream.quantize(bands_FB)) - bands_FB), 10 / 32 / 2 + 1e-5)


def test_the_sound_of_a_shape_follows_its_height_and_its_turns():
    places = bounces()
    bands_FB = sound.mel_bands(sound.of_places(places, RATE, FPS), RATE, fps=FPS, num_frames=FRAMES + 1, bands=24)[1:]
    still = ~sound.turns(places)
    order = np.argsort(places[still, 0])
    assert (np.diff(bands_FB[still].argmax(1)[order]) <= 0).all()  # the higher it stands, the smaller its row
    low = beats(bands_FB[:, 0])
    np.testing.assert_array_equal(low, np.flatnonzero(sound.turns(places)))
    assert beat_alignment(low, np.flatnonzero(sound.turns(places))) == 1


def test_known_measures():
    features = np.eye(4)
    loss, found = info_nce(features, features, temperature=1.0)
    assert found == 1 and loss == pytest.approx(np.log(np.e + 3) - 1)
    assert info_nce(features, np.ones((4, 4))) == pytest.approx((np.log(4), 0.25 * 0.5 + 0.25 * 0.5))
    assert info_nce(features, features[[1, 0, 3, 2]])[1] == 0
    assert beat_alignment(np.array([2, 9]), np.array([2, 6]), width=3.0) == pytest.approx((1 + np.exp(-0.5)) / 2)
    assert beat_alignment(np.array([]), np.array([2])) == 0 and np.isnan(beat_alignment(np.array([2]), np.array([])))
    np.testing.assert_array_equal(beats(np.array([0, 0, 5, 5, 1, 1, 6, 0])), [2, 6])


def test_sounds_find_their_shapes_again():
    """By the height of tones and shapes: far above chance, and not by the sound of another one."""
    paths = [bounces(seed) for seed in range(16)]
    rows_NF = np.stack([path[:, 0] for path in paths])
    heard = [
        sound.mel_bands(sound.of_places(path, RATE, FPS), RATE, fps=FPS, num_frames=FRAMES + 1, bands=24)[1:, 1:]
        for path in paths
    ]
    tones_NF = -np.stack([x.argmax(1) for x in heard]).astype(float)
    centred = lambda x: x - x.mean(1, keepdims=True)
    assert info_nce(centred(rows_NF), centred(tones_NF))[1] > 0.8
    assert info_nce(centred(rows_NF), centred(np.roll(tones_NF, 1, axis=0)))[1] < 0.2
