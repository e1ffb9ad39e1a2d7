"""Findings: verdicts from known gaps, worlds that know their own rules, runs that go on, and the training of `lumos train`."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from tokens import one_device  # noqa: F401  (a fixture)

from lumos import cli
from lumos.errors import UserError
from lumos.findings import docs, load, report, results, run, unit, verdict
from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.measures import CrossEntropy
from lumos.findings.place_world import PlaceWorld
from lumos.findings.training import Training, config_of
from lumos.findings.worlds import World
from lumos.runtime import metrics_writer
from lumos.sequence.corruption import CorruptionConfig
from lumos.slots import slot
from lumos.training import loop
from lumos.training.match_data import match_data

SEEDS = (0, 1, 2, 3)
ABOVE = Above(text="a is above b", high="a:x", low="b:x", expected=0.5)


def judged(check, a, b=(0.0,) * 4):
    rows = {("a", seed): {"x": x} for seed, x in enumerate(a)} | {("b", seed): {"x": x} for seed, x in enumerate(b)}
    return verdict.judge(check, rows, SEEDS)


@pytest.mark.parametrize(
    "a, word",
    [
        ((0.9, 1.0, 1.1, 1.0), "reproduced"),
        ((-0.9, -1.0, -1.1, -1.0), "contradicted"),
        ((0.01, -0.01, 0.01, -0.01), "not shown"),  # there is no effect of 0.5, and that is certain
        ((1.0, -1.0, 1.2, -1.0), "underpowered"),
        ((0.1, 0.1, 0.1, 0.1), "reproduced"),  # small, and the same with every seed
    ],
)
def test_a_gap_of_two_deviations_decides(a, word):
    assert judged(ABOVE, a).word == word


def test_differences_are_taken_seed_by_seed():
    """Seeds that differ more than the arms do are no noise of the difference."""
    b = np.array([1.0, 5.0, -3.0, 2.0])
    found = judged(ABOVE, b + 0.1, b)
    assert found.word == "reproduced" and found.deviation < 1e-9 < found.one.std()


def test_an_interval_is_that_of_student_s_t_and_says_how_many_seeds_it_takes():
    found = judged(ABOVE, (1.0, -1.0, 1.2, -1.0))
    assert found.high - found.gap == pytest.approx(3.1824 * found.deviation / 2, rel=1e-4)
    assert (
        verdict.half_width(found.deviation, found.needed)
        < 0.25
        <= verdict.half_width(found.deviation, found.needed - 1)
    )


@pytest.mark.parametrize(
    "a, word",
    [
        ((0.01, -0.01, 0.02, 0.0), "reproduced"),
        ((0.9, 1.0, 1.1, 1.0), "contradicted"),
        ((0.3, -0.3, 0.3, -0.3), "underpowered"),
    ],
)
def test_equality_is_a_margin(a, word):
    assert judged(Close(text="", one="a:x", other=0.0, margin=0.2), a).word == word


def test_a_verdict_waits_for_two_seeds():
    assert verdict.judge(ABOVE, {("a", 0): {"x": 1.0}, ("b", 0): {"x": 0.0}}, SEEDS) is None


@pytest.mark.parametrize(
    "world",
    [World(), World(motion="diagonal", background="noise"), World(pan=True), World(classes=True, exemplar="class")],
)
def test_worlds_follow_their_own_rules(world):
    clips = world.clips("test", 8)
    again = world.clips("test", 8)
    np.testing.assert_array_equal(clips.codes, again.codes)
    assert clips.codes.shape[1:] == world.grid and clips.codes.min() >= 0 and clips.codes.max() < world.num_codes
    np.testing.assert_array_equal(
        world.find(clips.codes, clips.colour)[:, -world.frames :], clips.corner[:, -world.frames :]
    )
    own = slice(world.grid[0] - world.frames, None)
    np.testing.assert_array_equal(
        world.path(clips.corner[:, own][:, 0], clips.step, world.frames), clips.corner[:, own]
    )
    if world.background == "stripes":
        assert world.in_stripes(clips.codes[:, own]).min() == 1
    is_background = clips.codes[:, own] < world.textures
    np.testing.assert_array_equal(clips.codes[:, own][is_background], clips.background[:, own][is_background])
    assert (world.clips("train", 8).codes != clips.codes).any()


def test_the_entropy_of_places_is_that_of_what_captions_leave_open():
    world = PlaceWorld(side=3, frames=2, places=3)
    drawn = world.clips("train", 20000)
    ofs = [Counter(drawn.captions), Counter(zip(drawn.captions, map(np.ndarray.tobytes, drawn.codes)))]
    (captions, clips) = (-sum(n / 20000 * np.log(n / 20000) for n in counts.values()) for counts in ofs)
    assert (clips - captions) / drawn.codes[0].size == pytest.approx(world.entropy, rel=0.01)


def test_a_broken_block_is_not_found():
    world = World()
    clips = world.clips("test", 4)
    codes = clips.codes.copy()
    codes[:, 0][codes[:, 0] == world.block(0)[0]] = 0
    found = world.find(codes, clips.colour)
    assert (found[clips.colour == 0, 0] == -1).all() and (found[:, 1:] == clips.corner[:, 1:]).all()


def test_the_page_of_findings_is_up_to_date_and_exact_statements_hold():
    page = docs.render()
    assert (docs.RESULTS.parent / "findings.md").read_text() == page, (
        "run: python -m lumos.findings.docs > docs/findings.md"
    )
    assert page.count("| holds |") == 21 and "does not hold" not in page


def test_what_is_doubted_was_checked_on_known_answers():
    """A verdict of "not shown" or "contradicted" needs tests of what is compared."""
    tests = Path(__file__).parent
    for name in load.names():
        found = results.results(name, docs.RESULTS)
        if isinstance(found, results.Results):
            assert found.finding.mechanism or not found.doubted, name
            for test in found.finding.mechanism:
                file, _, function = test.partition("::")
                assert f"\ndef {function}(" in (tests / file).read_text(), test


def test_every_finding_has_configs_and_fits_its_budget():
    for name in load.names():
        finding = load.load(name)
        assert finding.name == name
        if isinstance(finding, Finding):
            assert {arm for one in unit.units(finding) for arm in one.arms} == set(finding.arms)
            for arm in finding.arms.values():
                config_of(finding, arm, "data")
    with pytest.raises(UserError, match="did you mean 'tubes'"):
        load.load("tubs")


SMALL = {"model.num_layers": 1, "model.model_dim": 32, "model.mlp_dim": 32, "optimizer.name": "sgd"}


def small(**changes):
    return Finding(
        name="small", claim="", paper="", published="", world=World(num_train=64, num_test=8), arms={"a": Arm(), "b": Arm()},
        measures=(CrossEntropy("tube"),), checks=(Above(text="", high="a:tube", low="b:tube", expected=0.1),), base=SMALL, steps=3,
        **changes,
    )  # fmt: skip


@pytest.mark.slow
def test_training_is_that_of_lumos_train_and_seeds_share_a_program(tmp_path, one_device):  # noqa: F811
    finding = small()
    config = config_of(finding, Arm(), finding.world.write(tmp_path / "tokens"))
    training = Training(match_data(config))
    found = {seed: training.run(seed)[1] for seed in (0, 1)}
    assert training._update._cache_size() == 1 and found[0] != found[1]
    ordinary = dataclasses.replace(
        config, seed=1, train=dataclasses.replace(config.train, log_every=1, eval_every=0, num_samples=0)
    )
    loop.train(ordinary, tmp_path / "run")
    rows = metrics_writer.read(tmp_path / "run", "train")
    assert [row["loss"] for row in rows] == pytest.approx(found[1], rel=1e-6)


def fake(monkeypatch, finding, fails=()):
    done = []

    def one(this, out):
        done.append((this.arms, this.seed))
        if this.seed in fails:
            raise RuntimeError("broken")
        return [
            {"finding": this.finding, "arm": arm, "seed": this.seed, "digest": this.digest, "seconds": 60.0, "steps": this.steps,
             "metrics": {"tube": 1.0 + (arm == "a") + 0.01 * this.seed, "losses": [2.0, 1.0], "curve": [1.0, 2.0], "clips": finding.world.clips("test", 1).codes.tolist()}}
            for arm in this.arms
        ]  # fmt: skip

    monkeypatch.setattr(load, "load", lambda name: finding)
    monkeypatch.setattr(load, "names", lambda: [finding.name])
    monkeypatch.setattr(unit, "run", one)
    return done


def test_what_is_contradicted_runs_once_more_with_twice_the_steps(tmp_path, monkeypatch):
    """And its arms alone; the first verdict stands, the second one behind it."""
    finding = small()
    finding = dataclasses.replace(
        finding,
        arms=finding.arms | {"c": Arm(train={"train.num_steps": 5})},
        checks=(*finding.checks, Above(text="wrong", high="c:tube", low="a:tube", expected=0.1)),
    )
    done = fake(monkeypatch, finding)
    assert run.run(["small"], tmp_path, workers=0) == [] and len(done) == 8  # a and b share their runs
    found = results.results("small", tmp_path)
    assert found.word == "1 reproduced, 1 contradicted" and not found.longer
    done.clear()
    assert run.run(["small"], tmp_path, workers=0, longer=True) == []
    assert (
        done == [((arm,), seed) for seed in SEEDS for arm in "ac"]
        and finding.longer.arms["c"].train["train.num_steps"] == 10
    )
    found = results.results("small", tmp_path)
    assert found.word == "1 reproduced, 1 contradicted" and found.steps("a") == 3
    assert "contradicted; with twice the steps contradicted: -1.000" in results.lines(found)[1]["verdict"]
    assert run.left(["small"], tmp_path, longer=True) == []


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    finding = small(curve="curve")
    done = fake(monkeypatch, finding, fails=(2,))
    failed = run.run(["small"], tmp_path, workers=0)
    assert len(failed) == 1 and "broken" in failed[0] and done == [(("a", "b"), seed) for seed in SEEDS]
    with (tmp_path / "small.jsonl").open("a") as file:
        file.write('{"finding": "small", "ar')  # killed while it wrote
    done = fake(monkeypatch, finding)
    assert run.run(["small"], tmp_path, workers=0) == [] and done == [(("a", "b"), 2)]
    assert [row["seed"] for row in run.read(tmp_path / "small.jsonl")] == [0, 0, 1, 1, 3, 3, 2, 2]
    found = results.results("small", tmp_path)
    assert found.word == "reproduced" and found.minutes == 4
    page = report.write(tmp_path).read_text()
    assert (
        "reproduced" in page
        and (tmp_path / "small-curves.png").stat().st_size > 2000
        and (tmp_path / "small-frames.png").exists()
    )
    assert "| a 2.015 ± 0.013 > b 1.015 ± 0.013 |" in docs.render(tmp_path)


def test_rows_of_other_settings_do_not_count(tmp_path, monkeypatch):
    fake(monkeypatch, small())
    run.run(["small"], tmp_path, workers=0)
    done = fake(monkeypatch, dataclasses.replace(small(), steps=4))
    assert results.results("small", tmp_path).word == "not run yet"
    assert len(run.left(["small"], tmp_path)) == 4 and not done
    fake(monkeypatch, dataclasses.replace(small(), claim="in other words"))
    assert results.results("small", tmp_path).word == "reproduced"


def test_findings_that_fill_the_workers_go_together_seed_by_seed_the_long_runs_first(tmp_path, monkeypatch):
    findings = {"long": dataclasses.replace(small(), name="long", steps=9), "small": small()}
    monkeypatch.setattr(load, "load", findings.__getitem__)
    order = lambda workers: [(u.finding, u.seed) for u in run.left(["small", "long"], tmp_path, workers=workers)]
    assert order(2) == [(name, seed) for seed in SEEDS for name in ("long", "small")]
    assert order(1) == [(name, seed) for name in ("small", "long") for seed in SEEDS]


def test_cross_entropy_is_that_of_the_mask_it_names():
    frames = CorruptionConfig(**{})
    drawn = frames.draw(jax.random.key(0), 4, 5, 36)
    assert (np.asarray(drawn.mask_BTC) == np.asarray(drawn.mask_BTC)[:, :1]).all()
    assert json.dumps(dataclasses.asdict(CrossEntropy("own", None)))  # what is measured goes into rows
    with pytest.raises(ValueError, match="names no arm"):
        dataclasses.replace(small(), checks=(Above(text="", high="c:x", low="a:x", expected=1.0),))
    with pytest.raises(ValueError, match="deviation"):
        small(seeds=(0, 1))
    assert slot("tube").name == "tube"


def test_the_command_line_refuses_what_it_does_not_know(capsys):
    assert cli.main(["findings", "run", "--out=x"]) == 2
    assert "give names, or all" in capsys.readouterr().err
    assert cli.main(["findings", "list"]) == 0
    assert "tubes " in capsys.readouterr().out


@pytest.mark.slow
def test_every_finding_runs_in_miniature_in_several_processes(tmp_path):
    assert cli.main(["findings", "run", "all", "--smoke", "--workers=2", f"--out={tmp_path}"]) == 0
    for name in load.names():
        finding = load.load(name)
        if isinstance(finding, Finding):
            assert {row["arm"] for row in run.read(tmp_path / f"{name}.jsonl")} == set(finding.arms)
    assert cli.main(["findings", "report", "--smoke", f"--out={tmp_path}"]) == 0
