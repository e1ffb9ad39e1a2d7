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
        row = games._record_one((game, tmp_path / folder, 7, 33, seed))
        made.append((tmp_path / folder / row["path"]).read_bytes())
        assert row["split"] == "test" and json.dumps(row)
    assert made[0] == made[1] != made[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # the engines leave nothing behind


def test_frames_are_taken_in_order(tmp_path, monkeypatch):
    def play(place, rng):
        yield from (np.full((16, 16, 3), i, np.uint8) for i in range(200))

    written = {}
    monkeypatch.setattr(games, "_play_ale", play)
    monkeypatch.setattr(games, "write_video", lambda path, video, fps: written.update({path: video}))
    games._record_one(("ale", tmp_path, 0, 5, 0))
    (video,) = written.values()
    np.testing.assert_array_equal(np.diff(video[:, 0, 0, 0].astype(int)), 1)
