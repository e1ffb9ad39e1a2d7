import contextlib
import json

import numpy as np
import pytest

from lumos.data import games
from lumos.errors import UserError


def test_test_clips_come_from_levels_that_training_never_sees():
    for places in (games._LEVELS, games._GAMES):
        assert not set(places["train"]) & set(places["test"])
    splits = [games.split_of(i) for i in range(16)]
    assert splits.count("train") == 12 and splits.count("test") == splits.count("validation") == 2


def test_bad_requests_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="allowed: vizdoom, ale"):
        games.record("chess", tmp_path, 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lumos-video\[games\]"):
        games.record("ale", tmp_path, 1)


@pytest.mark.parametrize("game, package", [("ale", "ale_py"), ("vizdoom", "vizdoom")])
def test_a_clip_depends_on_its_seed_and_number_alone(tmp_path, monkeypatch, game, package):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    made = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        row = games._record_one(games.Job(game, tmp_path / folder, 7, 33, seed))
        path = tmp_path / folder / row["path"]
        with np.load(path.with_suffix(".npz")) as columns:
            assert [columns[name].shape for name in ("action", "reward", "done")] == [(33,)] * 3
            made.append((path.read_bytes(), columns["action"].tolist(), columns["reward"].tolist()))
        assert row["split"] == "test" and json.dumps(row)
    assert made[0] == made[1] and made[0][0] != made[2][0] and made[0][1] != made[2][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # the engines leave nothing behind


def test_turns_of_an_angle_make_a_full_circle(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    with games._start_vizdoom("my_way_home", 3, turn=45.0) as (engine, names):
        assert names == ("none", "turn left", "turn right", "move forward", "move left", "move right")
        engine.act(0, 12)  # until the weapon is up
        frames = [engine.frame()]
        for action in (1,) * 8 + (2, 1):
            engine.act(action, 1)
            frames.append(engine.frame())
    np.testing.assert_array_equal(frames[8], frames[0])
    np.testing.assert_array_equal(frames[10], frames[0])
    assert all((frame != frames[0]).mean() > 0.5 for frame in (*frames[1:8], frames[9]))
    np.testing.assert_array_equal(frames[9], frames[7])  # right is back where left came from
    with pytest.raises(UserError, match="--turn=3 is an angle"):
        games.record("ale", tmp_path, 1, turn=3.0)


@contextlib.contextmanager
def counting_game(level, seed):
    """A game whose frames count; action 1 is worth a point, and every tenth frame begins an episode."""

    class Engine:
        number = 0

        def frame(self):
            return np.full((16, 16, 3), self.number, np.uint8)

        def act(self, action, skip):
            self.number += 1
            return float(action == 1), self.number % 10 == 0

    yield Engine(), ("none", "left", "right")


def test_frames_are_taken_in_order_with_the_actions_that_led_to_them(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(games, "_start_ale", counting_game)
    monkeypatch.setattr(games, "write_video", lambda path, video, fps: written.update({path: (video, fps)}))
    row = games._record_one(games.Job("ale", tmp_path, 0, 25, 0, "pong", 3, ("none", "right", "left")))
    ((video, fps),) = written.values()
    numbers = video[:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(np.diff(numbers), 1)
    assert fps == 20 and row["actions"].endswith(".npz:action[0:25]")
    with np.load(next(tmp_path.rglob("*.npz"))) as columns:
        action = columns["action"]
        assert set(action[1:]) <= {0, 1, 2} and len(set(action)) > 1  # held for a few frames each
        np.testing.assert_array_equal(columns["reward"], action == 2)  # "left" is the second of those played
        np.testing.assert_array_equal(columns["done"], numbers % 10 == 0)


def test_what_cannot_be_played_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr(games, "_start_ale", counting_game)
    with pytest.raises(UserError, match="--level='pingpong'.*pong"):
        games.record("ale", tmp_path, 1, level="pingpong")
    with pytest.raises(UserError, match="'jump' is none of pong"):
        games.record("ale", tmp_path, 1, level="pong", actions=("none", "jump"))
    with pytest.raises(UserError, match="needs --level"):
        games.record("ale", tmp_path, 1, actions=("none",))
