"""`lumos evaluate` with everything that can be chosen, and what stands beside its numbers."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from runs import write_runs

from lumos import cli, config_loading
from lumos.errors import UserError
from lumos.evaluation import distribution, evaluate, i3d, measures, metric
from lumos.evaluation.subject import Subject, shrink
from lumos.videos.generator import Generator
from lumos.videos.progress import progress


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"), evaluate__num_prompts=2)


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """Three checkpoints on two prompts of a file, two clips of each; and how often the tokenizer was evaluated."""
    out, calls = tmp_path_factory.mktemp("report"), []
    (out / "p.txt").write_text("red <b>\nblue\n")
    reconstruction = evaluate.reconstruction
    flags = [f"--prompts={out}/p.txt", "--step=all", "--weights=raw", "--dtype=bfloat16", "--samples_per_prompt=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "reconstruction", lambda *a: calls.append(a) or reconstruction(*a))
        assert cli.main(["evaluate", f"--workdir={run}", f"--out={out}/r", "--seed=3", *flags]) == 0
    return out / "r", calls


def test_every_checkpoint_is_a_row_of_one_page(evaluated):
    out, calls = evaluated
    rows = json.loads((out / "rows.json").read_text())
    assert [row["cell"] for row in rows] == [
        {"run": "transformer", "step": step, "weights": "raw", "prompts": "p", "seed": 3} for step in (1, 2, 3)
    ]
    assert len(calls) == 1 and (out / "index.html").exists() and (out / "step_00000002" / "index.html").exists()
    assert len({row["metrics"]["likelihood/nll"]["value"] for row in rows}) == 3
    videos = [video for video in rows[0]["videos"] if video["group"] == "prompts"]
    assert [(video["caption"], video["seed"]) for video in videos] == [
        ("red <b>", "3"), ("red <b>", "4"), ("blue", "5"), ("blue", "6"),
    ]  # fmt: skip


def test_every_number_says_what_it_was_measured_on(evaluated):
    out, _ = evaluated
    for row in json.loads((out / "rows.json").read_text()):
        for name, found in row["metrics"].items():
            assert found["n"] and found["protocol"] and np.all(np.array(found["low"]) <= np.array(found["high"])), name
            if name.split("/")[0] in ("tokens", "drift"):
                what = "4 clips of 9 frames of 32x32 at 8 frames a second (2 given prompts, 2 of each), seeds 3 to 6"
                assert what in found["protocol"] and found["n"] == (4 if "usage" in name else 2)
        psnr = row["metrics"]["reconstruction/psnr"]
        assert psnr["low"] < psnr["value"] < psnr["high"] and psnr["n"] == 8
        usage = row["metrics"]["reconstruction/usage"]
        assert usage["low"] < usage["value"] < usage["high"] and usage["n"] == 8


def test_chosen_weights_and_precision_are_those_that_generate(run, evaluated):
    out, _ = evaluated
    rows = json.loads((out / "rows.json").read_text())
    config = json.loads((run.parent / "tokenizer" / "config.json").read_text())
    overrides = {"model.param_dtype": "bfloat16", "evaluate.samples_per_prompt": "2"}
    generator = Generator.load(run, overrides, 2, "raw")
    found, _ = measures.tokens(Subject(generator, config_loading.parse(config), 3, ("red <b>", "blue")))
    assert found["motion"].value == rows[1]["metrics"]["tokens/motion"]["value"]


def test_what_a_tokenizer_has_no_use_for_is_refused(run, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a\n")
    for flag in (f"--prompts={tmp_path}/p.txt", "--step=best", "--weights=raw"):
        command = ["evaluate", f"--workdir={run}", f"--out={tmp_path}/r", "--what=tokenizer", flag]
        assert cli.main(command) == 2
        assert f"{flag.split('=')[0]} is for the generator" in capsys.readouterr().err
    for flag, message in (
        ("--samples_per_prompt=-1", "samples_per_prompt=-1 must be at least 1"),
        ("--what=short", "what='short'; allowed: all, tokenizer, world, long"),
        ("--what=long", "'long' needs config.evaluate.long_seconds"),
        ("--what=long --config.evaluate.long_seconds=2", "long_seconds=2 is too short for ten parts"),
    ):
        assert cli.main(["evaluate", f"--workdir={run}", f"--out={tmp_path}/r", *flag.split()]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_long_videos_are_measured_alone(run, tmp_path):
    changes = {"generate.cache": "fifo", "generate.positions": "relative", "evaluate.long_seconds": "10"}
    results = evaluate.evaluate(run, tmp_path, changes, what="long")
    assert {"sharpness_vde", "colour_last"} <= set(results["long"]) and "generate" not in results
    assert (tmp_path / "index.html").exists()


def test_samples_of_a_prompt_are_one_observation(run):
    config = json.loads((run.parent / "tokenizer" / "config.json").read_text())
    changes = {"evaluate.samples_per_prompt": "3", "evaluate.num_given": "1", "evaluate.num_clips": "4"}
    changes |= {"evaluate.frame_size": "16", "evaluate.num_frames": "8"}
    subject = Subject(Generator.load(run, changes), config_loading.parse(config), seed=5)
    np.testing.assert_array_equal(subject.by_prompt([1, 2, 3, 4, 4, 4]), [2, 4])
    (part,) = subject.continued
    assert part.made.shape == (4, 3, 8, 16, 16, 3) and part.truth.shape == (4, 8, 16, 16, 3)
    found, clips = measures.continuation(subject)
    each = found["psnr_new_frames"]
    assert each.n == 4 and "3 continuations of each, seeds 5 to 16" in each.protocol and "16x16" in each.protocol
    assert found["psnr_new_frames_best"].value > each.value and [clip.seed for clip in clips] == [5, 8, 11, 14]
    settings = dataclasses.replace(subject.settings, num_frames=1)
    generator = subject.generator.with_settings(dataclasses.replace(subject.generator.config, evaluate=settings))
    with pytest.raises(UserError, match="num_frames=1 counts none of the frames behind the 1 given"):
        measures.continuation(dataclasses.replace(subject, generator=generator))


def test_clips_are_cut_and_halved_as_the_protocols_have_it():
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 8, 12, 3), np.uint8)
    middle = video[:, :, :, 2:10].astype(float).reshape(1, 2, 4, 2, 4, 2, 3).mean((3, 5))
    np.testing.assert_allclose(shrink(video, 4), middle, atol=0.5)


def test_counts_are_copies():
    """A clip that counts three times is a clip that is there three times, in both distances."""
    rng = np.random.default_rng(0)
    a, b, a_N, b_M = rng.normal(0, 1, (6, 3)), rng.normal(1, 1, (5, 3)), [3, 0, 1, 1, 0, 2], [1, 1, 0, 2, 1]
    copies = a.repeat(a_N, axis=0), b.repeat(b_M, axis=0)
    assert i3d.frechet_distance(a, b, a_N, b_M) == pytest.approx(i3d.frechet_distance(*copies))
    counted = distribution.kernel_distances(a, b)(np.array(a_N), np.array(b_M))
    assert counted == pytest.approx(distribution.kernel_distance(*copies))
    assert metric.usage([np.array([0, 1]), np.array([1, 2]), np.array([3])], 8)(np.array([2, 1, 0])) == 3 / 8


def test_intervals_of_distances_hold_what_other_clips_give():
    """Of 60 pairs of sets, the mean over many such sets lies within nearly all intervals, and each holds its own value."""
    rng = np.random.default_rng(0)
    draw = lambda: (rng.normal(0, 1, (50, 4)), rng.normal(0.5, 1, (50, 4)))
    for call, name in ((i3d.frechet_distance, "fvd"), (distribution.kernel_distance, "kvd")):
        expected = np.mean([call(*draw()) for _ in range(300)])
        found = [distribution.both("", *draw(), "", "low")[name] for _ in range(60)]
        assert all(m.low < m.value < m.high and m.n == 50 for m in found)
        assert np.mean([m.low <= expected <= m.high for m in found]) > 0.85
    a, _ = draw()
    pairs = [distribution.both("", a, a + 0.1, "", paired=paired)["fvd"] for paired in (True, False)]
    assert pairs[0].high - pairs[0].low < (pairs[1].high - pairs[1].low) / 10  # the same clips, moved


def test_progress_is_shown_on_a_terminal_alone(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    batches = [np.arange(3), np.arange(3)]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert [len(rows) for rows in progress(batches, "clips", 5)] == [3, 3]
    assert "0/5" in terminal.getvalue() and "clips" in terminal.getvalue()
    quiet = io.StringIO()
    monkeypatch.setattr(sys, "stderr", quiet)
    assert len(list(progress(batches, "clips", 5))) == 2 and not quiet.getvalue()
