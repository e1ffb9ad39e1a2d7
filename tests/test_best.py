"""The best cell against the run's own settings, and what trackers get of a sweep."""

import json
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from lumos import cli
from lumos.config import Config
from lumos.evaluation import best, curves, metric, rows
from lumos.evaluation.cells import Cell
from lumos.leases import Leases
from lumos.runtime import metrics_writer


def write(folder, scale, seed, values, better="high", is_default=False, **cell):
    folder = folder / f"{scale}-{seed}-{cell}"
    folder.mkdir(parents=True)
    found = {"m/score": metric.mean(values, "clips", better), "m/count": metric.mean(np.ones(4), "")}
    row = rows.Row({"run": "r", "step": 1, "generate.scale": scale, **cell, "seed": seed}, found, {}, is_default)
    rows.write(folder, row, [], 8.0, {})


@pytest.fixture
def folder(tmp_path):
    """Own settings at 0.5; scale 2 is better by 0.2 everywhere, scale 3 is lucky on the seeds that choose."""
    rng = np.random.default_rng(0)
    for seed in range(4):
        noise = rng.normal(0, 1, 64)  # the prompts of a seed, which all cells share
        write(tmp_path, 1, seed, 0.5 + noise, is_default=True)
        write(tmp_path, 2, seed, 0.7 + noise + rng.normal(0, 0.1, 64))
        write(tmp_path, 3, seed, (0.9 if seed < 2 else 0.3) + noise)
    return tmp_path


def compare(folder, wanted=""):
    return best.compare(rows.read_all([folder]), wanted)


def test_seeds_that_did_not_choose_show_what_was_luck(folder):
    found = compare(folder)
    assert (found["chosen_on"], found["compared_on"], found["cells"]) == ([0, 1], [2, 3], 3)
    assert found["best"]["cell"]["generate.scale"] == 3 and found["difference"]["value"] == pytest.approx(-0.2)
    text = best.sentence(found)
    assert "scale 3. On seeds 2, 3, which did not choose" in text and "difference -0.2" in text


def test_cells_are_compared_clip_by_clip(folder):
    """Clips differ by 1, cells by 0.2: only pairs of clips can tell."""
    for path in folder.glob("3-*"):
        (path / "row.json").unlink()
    found = compare(folder)
    assert found["metric"] == "m/score" and found["best"]["cell"]["generate.scale"] == 2 and not found["is_default"]
    difference = found["difference"]
    assert 0.15 < difference["low"] < difference["value"] < difference["high"] < 0.25 and difference["n"] == 128
    assert found["best"]["low"] < found["default"]["high"]  # side by side they could not be told apart


def test_less_may_be_better_and_the_own_settings_best(tmp_path):
    for seed in (0, 1):
        for scale, value in ((1, 0.2), (2, 0.4)):
            write(tmp_path, scale, seed, np.arange(4) + value, "low", is_default=scale == 1)
    found = compare(tmp_path)
    assert found["is_default"] and found["better"] == "low" and found["difference"] is None
    assert "the run's own settings" in best.sentence(found)


def test_one_seed_chooses_and_compares_nothing(folder):
    for seed in (1, 2, 3):
        for path in folder.glob(f"*-{seed}-*"):
            (path / "row.json").unlink()
    found = compare(folder)
    assert found["difference"] is None and found["compared_on"] == [] and found["best"]["cell"]["generate.scale"] == 3
    assert "partly luck" in best.sentence(found)


def test_the_newest_checkpoint_is_the_default_and_sets_of_prompts_are_pooled(tmp_path):
    for step, value in ((1, 0.0), (2, 0.5)):
        for prompts in ("a", "b"):
            for seed in (0, 1):
                write(tmp_path, 1, seed, np.arange(8) + value, is_default=True, step=step, prompts=prompts)
                write(tmp_path, 2, seed, np.arange(8) + value + 1, step=step, prompts=prompts)
    found = compare(tmp_path)
    assert found["default"]["cell"]["step"] == 2 == found["best"]["cell"]["step"] and found["difference"]["n"] == 16
    assert compare(tmp_path, "m/absent") is None
    write(tmp_path, 5, 0, np.arange(8), is_default=True, step=2, prompts="a")  # of another sweep
    assert compare(tmp_path) is None


def test_the_page_says_what_was_compared(folder, tmp_path, capsys):
    assert cli.main(["report", str(folder), f"--out={tmp_path}/page", "--best=m/score"]) == 0
    assert json.loads((tmp_path / "page" / "best.json").read_text())["metric"] == "m/score"
    assert "chosen on seeds 0, 1" in (tmp_path / "page" / "index.html").read_text()
    assert cli.main(["report", str(folder), f"--out={tmp_path}/page", "--best=m/count"]) == 2
    assert "--best=m/count: no row has this metric" in capsys.readouterr().err


def scalars(folder):
    """Return (tag, step, value) of all scalars in the event files of a folder."""
    found = []
    for path in folder.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)  # then its checksum, the record, and a checksum
            event, at = Event.FromString(data[at + 12 : at + 12 + size]), at + 16 + size
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_trackers_get_each_number_once_at_the_step_of_its_checkpoint(tmp_path):
    cells = [Cell("r", step, seed, (("generate.steps", "8"),)) for step in (20, 10) for seed in (0, 1)]
    for cell in cells:
        (tmp_path / "cells" / cell.name).mkdir(parents=True)
        found = {"m/score": metric.mean([cell.step, cell.step + 2.0], ""), "m/frames": metric.mean(np.ones((2, 3)), "")}
        rows.write(tmp_path / "cells" / cell.name, rows.Row(cell.to_dict(), found), [], 8.0, {})
    leases = Leases(tmp_path / "leases")
    curves.write(tmp_path, cells[:1], leases, Config())
    for _ in range(2):
        curves.write(tmp_path, cells, leases, Config())
    folders = sorted(path for path in (tmp_path / "curves").iterdir())
    assert len(folders) == 2 and [path.name[:13] for path in folders] == ["steps=8-seed0", "steps=8-seed1"]
    for path in folders:
        assert metrics_writer.read(path, "sweep") == [
            {"step": step, "kind": "sweep", "m/score": step + 1.0} for step in (10, 20)
        ]
        assert sorted(scalars(path / "tensorboard")) == [("sweep/m/score", 10, 11.0), ("sweep/m/score", 20, 21.0)]
