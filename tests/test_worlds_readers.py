"""What is read off the frames of a world: actions, rewards, and whether it has collapsed."""

import types

import numpy as np
import pytest

from lumos.errors import UserError
from lumos.evaluation import distribution
from lumos.evaluation import world as measures
from lumos.evaluation.frames import frame_statistics
from lumos.worlds.readers import ActionReader, Rewards


def scrolled(num, frames, seed):
    """Textures that an action scrolls: 1 to the left, 2 to the right, by four pixels; 0 leaves them."""
    rng = np.random.default_rng(seed)
    led = rng.integers(3, size=(num, frames))
    offset = np.cumsum(np.array([0, 4, -4])[led] * (np.arange(frames) > 0), axis=1)
    texture = rng.integers(256, size=(num, 16, 64, 3), dtype=np.uint8).repeat(2, axis=1)
    video = np.stack([[np.roll(t, -o, axis=1)[:, :32] for o in row] for t, row in zip(texture, offset)])
    return video, led


def test_an_inverse_model_reads_what_was_done():
    reader = ActionReader.learn(*scrolled(64, 9, 0), 3, steps=150)
    video, led = scrolled(16, 9, 1)
    assert (reader(video) == led[:, 1:]).mean() > 0.9
    assert (reader(video[:, ::-1]) == led[:, 1:]).mean() < 0.6  # backwards, left is right


def test_rewards_are_learnt_from_recordings(tmp_path):
    rng = np.random.default_rng(0)
    light = rng.integers(3, size=(64, 9))
    video = (60 * light[..., None, None, None] + rng.integers(60, size=(64, 9, 16, 16, 3))).astype(np.uint8)
    done = light == 2
    Rewards.learn(video, light == 1, done, steps=150).save(tmp_path / "rewards.npz")
    rewards, ended = Rewards.load(tmp_path / "rewards.npz")(video[:, 0], None, video[:, 1])
    np.testing.assert_array_equal(ended, done[:, 1])
    assert np.abs(rewards - (light[:, 1] == 1))[~ended].max() < 0.5
    with pytest.raises(UserError, match="holds no network"):
        Rewards.load(tmp_path / "nothing.npz")


def test_smears_and_noise_are_no_living_world():
    video, _ = scrolled(4, 33, 0)
    means = lambda video: {name: frame_statistics(video)[name].mean(1) for name in measures._WEAR}
    usual = {name: np.median(values) for name, values in means(video).items()}
    smeared, still = np.full_like(video, 90), np.repeat(video[:, :1], 33, axis=1)
    dim = (video / 10).astype(np.uint8)
    for shown, alive in ((video, True), (smeared, False), (still, False), (dim, False)):
        assert measures._alive(means(shown), usual).tolist() == [alive] * 4


def test_a_perfect_world_is_as_the_truth_and_needs_the_true_actions(monkeypatch):
    """Beside it one that shows the given frame for ever, whose actions say nothing and which uses few codes."""
    video, led_NT = scrolled(24, 16, 2)
    led_NT[:, 0] = 3  # null
    codes = lambda video: video[:, :, ::8, ::8, 0].astype(int)
    held = measures._Held(video, codes(video), led_NT[..., None], ["a"] * 24, np.minimum(video, 200))
    right = types.SimpleNamespace(codebook_size=256, config=types.SimpleNamespace(temporal_compression=1))
    settings = types.SimpleNamespace(networks=("i3d",), split="test")
    subject = types.SimpleNamespace(generator=types.SimpleNamespace(tokenizer=right), settings=settings, seed=0)
    player, reader = types.SimpleNamespace(num_actions=3), lambda video: np.zeros(video[:, 1:].shape[:2], int)
    monkeypatch.setattr(distribution, "features", lambda video: video.mean((3, 4)).reshape(len(video), -1)[:, ::97])

    def perfect(subject, held, led, seed):
        shift = np.cumsum(np.array([0, 4, -4, 0])[led[..., 0]], axis=1)
        wide = np.concatenate([held.video[:, 0]] * 2, axis=2)  # only what is in the given frame can come into view
        made = np.stack([[np.roll(w, -o, axis=1)[:, :32] for o in row] for w, row in zip(wide, shift)])
        exact = (led[..., 0] == led_NT).all(1)
        made[exact] = held.video[exact]
        return made, codes(made)

    still = lambda subject, held, led, seed: (made := held.video[:, :1].repeat(16, axis=1), codes(made))
    found = {}
    for make in (perfect, still):
        monkeypatch.setattr(measures, "_make", make)
        found[make] = measures._against_truth(subject, held, reader, player)[0]
    best, worst = found[perfect], found[still]
    assert best["fvd"].value == pytest.approx(0, abs=1e-3) and best["fvd"].value < best["fvd_of_tokenizer"].value
    assert worst["fvd"].value == pytest.approx(worst["fvd_of_still"].value) and worst["fvd"].value > 10
    assert best["delta4_psnr_random"].low > 1 and worst["delta4_psnr_random"].value == 0
    used = lambda codes: len(np.unique(codes)) / 256
    assert best["code_usage"].value == best["code_usage_real"].value == used(held.codes[:, 1:])
    assert worst["code_usage"].value == used(held.codes[:, :1])
