"""A sweep: its cells, the programs that cells share, and what stopped, failed and slow workers leave."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from runs import write_runs

from lumos import cli
from lumos.errors import UserError
from lumos.evaluation import measures, sweep
from lumos.evaluation.cells import Cell, expand, own_first, parse_settings, parse_shard, split_values
from lumos.evaluation.sweep import Sweep, Worker
from lumos.videos import generator

REPO = Path(__file__).resolve().parents[1]
TWELVE = ("generate.guidance.scale=1.5,3", "generate.sampler.temperature=0.5,1,2", "generate.steps=2,3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs with three checkpoints; the tokenizer's path is absolute, so that other processes find it."""
    return write_runs(tmp_path_factory.mktemp("runs"), evaluate__num_prompts=2, evaluate__num_clips=8)


def test_cells_are_a_product_or_side_by_side():
    product = parse_settings(["generate.steps=4, 8", "evaluate.networks=(),('i3d','alex')"])
    assert product == [
        (("generate.steps", steps), ("evaluate.networks", networks))
        for steps in ("4", "8")
        for networks in ("()", "('i3d','alex')")
    ]
    assert parse_settings(["generate.steps=4,8", "generate.top_p=1,0.9"], zipped=True) == [
        (("generate.steps", "4"), ("generate.top_p", "1")),
        (("generate.steps", "8"), ("generate.top_p", "0.9")),
    ]
    assert parse_settings([]) == parse_settings([], zipped=True) == [()]
    assert split_values("a,(1, 2),'b,c',[3,4]") == ["a", "(1, 2)", "'b,c'", "[3,4]"]
    cells = expand("run", [1, 2], product, [0, 1], {"a": ["x"], "b": ["y"]}, [])
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 4 * 2 * 2
    assert [cell.step for cell in cells] == sorted(cell.step for cell in cells)
    other = expand("run", [1, 2], product, [0, 1], {"a": ["z"], "b": ["y"]}, [])
    assert sum(a.name == b.name for a, b in zip(cells, other)) == len(cells) / 2  # other prompts are other cells
    assert cells[0].to_dict() == {
        "run": "run", "step": 1, "generate.steps": 4, "evaluate.networks": "()", "prompts": "a", "seed": 0,
    }  # fmt: skip
    for words, message in (
        (["model.num_layers=1"], "generate.NAME or evaluate.NAME"), (["generate.steps"], "no value"), (["generate.steps=,"], "no value"),
        (["generate.steps=1", "generate.steps=2"], "there twice"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            parse_settings(words)
    with pytest.raises(UserError, match="generate.steps has 1, generate.top_p has 2"):
        parse_settings(["generate.steps=1", "generate.top_p=1,2"], zipped=True)


def test_every_part_begins_elsewhere_and_sees_all():
    cells = [Cell("run", step) for step in range(7)]
    orders = [own_first(cells, (i, 3)) for i in range(3)]
    assert all(sorted(order, key=lambda cell: cell.step) == cells for order in orders)
    assert [[cell.step for cell in order][:2] for order in orders] == [[0, 3], [1, 4], [2, 5]]
    slurm = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10"}
    assert parse_shard("", slurm) == (2, 4) and parse_shard("1/3", slurm) == (1, 3)
    both = slurm | {"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2"}
    assert parse_shard("", both) == (5, 8)  # two processes in each job of an array
    assert parse_shard("", {"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2"}) == (1, 2)
    assert parse_shard("", {}) == (0, 1)
    with pytest.raises(UserError, match="0 <= i < n"):
        parse_shard("3/3", {})


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    """A finished sweep of twelve cells, and how often a program of clips was traced for it."""
    out, traced = tmp_path_factory.mktemp("sweep"), []
    make_engine = generator.make_engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            generator, "make_engine", lambda *a, **k: traced.append(k["settings"].steps) or make_engine(*a, **k)
        )
        worker = Worker(
            Sweep(
                workdir=str(run),
                out=str(out),
                step="best",
                settings=TWELVE,
                measure=("prompts", "tokens", "likelihood"),
            )
        )
        worker.run()
    return out, worker, traced


def test_twelve_cells_compile_once_for_each_number_of_steps(undisturbed):
    out, worker, traced = undisturbed
    assert sorted(traced) == [2, 3]
    rows = json.loads((out / "rows.json").read_text())
    assert len(rows) == 12 and {row["cell"]["step"] for row in rows} == {2}
    assert len({json.dumps(row["metrics"]["tokens/motion"]) for row in rows}) > 6  # settings make a difference
    assert len({row["metrics"]["likelihood/nll"]["value"] for row in rows}) == 1
    assert all(metric["protocol"] and metric["n"] for row in rows for metric in row["metrics"].values())


def test_a_second_run_does_nothing(undisturbed, capsys):
    out, worker, _ = undisturbed
    log = (out / "log.jsonl").read_text()
    worker.run()
    assert (out / "log.jsonl").read_text() == log and log.count('"begin"') == log.count('"done"') == 12
    text = sweep.dry_run(worker)
    assert text.count("done ") >= 12 and "12 cells, 0 to do; about 0 s of one worker, as 12 done cells took" in text


def test_dry_run_says_what_there_is_to_do(run, tmp_path, capsys):
    command = [
        "sweep",
        f"--workdir={run}",
        f"--out={tmp_path}/s",
        "--set=generate.steps=2,3",
        "--seeds=0,1",
        "--dry_run",
    ]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert text.count("to do  step_") == 3 * 2 * 2 and "12 cells, 12 to do; at least" in text and "FLOP/s" in text
    for more, message in (("--set=generate.stepz=1", "unknown config field"), ("--measure=x", "unknown measure 'x'"), ("--step=9", "no checkpoint of step 9")):  # fmt: skip
        assert cli.main([*command, more]) == 2
        assert message in capsys.readouterr().err


def test_a_failed_cell_is_listed_and_the_sweep_goes_on(run, tmp_path, monkeypatch):
    def broken(subject):
        if subject.seed == 1:
            raise RuntimeError("no <b>space</b> left")
        return {}, []

    monkeypatch.setitem(measures.MEASURES, "tokens", broken)
    options = {"workdir": str(run), "out": str(tmp_path), "step": "best", "seeds": (0, 1, 2), "measure": ("tokens",)}
    page = Worker(Sweep(**options)).run().read_text()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row.get("reason") for row in rows] == [None, None, "RuntimeError: no <b>space</b> left"]
    assert "<b>" not in page and "no &lt;b&gt;space" in page
    assert not list((tmp_path / "partial").iterdir())
    monkeypatch.setitem(measures.MEASURES, "tokens", lambda subject: ({}, []))
    Worker(Sweep(**options)).run()
    assert len(list((tmp_path / "cells").iterdir())) == 2  # failed cells rest until they are asked for
    Worker(Sweep(**options, retry=True)).run()
    assert len(list((tmp_path / "cells").iterdir())) == 3 and not list((tmp_path / "failed").iterdir())


def test_sets_of_prompts_seeds_and_weights_are_what_cells_are_made_of(run, tmp_path, monkeypatch, capsys):
    seen = []

    def spy(subject):
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(subject.generator.params)}
        seen.append(
            (subject.prompts, subject.seed, subject.settings.samples_per_prompt, subject.generator.weights, dtypes)
        )
        return {}, []

    monkeypatch.setitem(measures.MEASURES, "tokens", spy)
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.csv").write_text("prompt\nthree\n")
    flags = [
        f"--workdir={run}",
        f"--out={tmp_path}/s",
        "--step=best",
        "--measure=tokens",
        "--weights=raw",
        "--dtype=bfloat16",
    ]
    flags += ["--seeds=0,7", "--set=evaluate.samples_per_prompt=1,3"]
    assert cli.main(["sweep", *flags, f"--prompts={tmp_path}/a.txt", f"--prompts={tmp_path}/b.csv"]) == 0
    expected = [
        (prompts, seed, samples, "raw", {"bfloat16"})
        for samples in (1, 3)
        for prompts in (("one", "two"), ("three",))
        for seed in (0, 7)
    ]
    assert seen == expected
    rows = json.loads((tmp_path / "s" / "rows.json").read_text())
    assert {(row["cell"]["prompts"], row["cell"]["weights"], row["default"]) for row in rows} == {
        (name, "raw", default) for name in "ab" for default in (True, False)
    }
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.txt").write_text("four\n")
    assert cli.main(["sweep", *flags, f"--prompts={tmp_path}/a.txt", f"--prompts={tmp_path}/c/a.txt"]) == 2
    assert "two files are called a" in capsys.readouterr().err


def test_watch_follows_a_run_until_its_last_step(tmp_path, monkeypatch):
    run = write_runs(tmp_path / "runs", steps=(1, 2, 6))  # the run has six steps
    there, monkeyed = [[1], [1, 2], [1, 2, 6]], []
    monkeypatch.setattr(sweep, "saved_steps", lambda _: there[min(len(monkeyed), 2)])
    monkeypatch.setattr(sweep.time, "sleep", lambda seconds: monkeyed.append(seconds))
    monkeypatch.setitem(measures.MEASURES, "tokens", lambda subject: ({}, []))
    Worker(Sweep(workdir=str(run), out=str(tmp_path / "s"), measure=("tokens",), watch=True)).run()
    rows = json.loads((tmp_path / "s" / "rows.json").read_text())
    assert [row["cell"]["step"] for row in rows] == [1, 2, 6] and len(monkeyed) == 2


@pytest.mark.slow
def test_watch_evaluates_each_checkpoint_of_a_run_beside_it_once(tmp_path, monkeypatch):
    """A real run trains in another process: it is followed from before its first checkpoint to its end."""
    made = write_runs(tmp_path / "runs", steps=(1,), evaluate__num_prompts=2)
    run, out, every, last = tmp_path / "live", tmp_path / "s", 100, 500
    changes = {"num_steps": last, "checkpoint_every": every, "keep_checkpoints": 9, "log_every": 50, "eval_every": last}
    command = [sys.executable, "-m", "lumos", "train", f"--config={made}/config.json", f"--workdir={run}"]
    command += [f"--config.train.{name}={value}" for name, value in changes.items()]
    environment = os.environ | {"PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"}
    monkeypatch.setattr(sweep, "_WATCH", 0.1)
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, env=environment, stderr=log) as training:
        limit = time.monotonic() + 60
        while not (run / "config.json").exists():
            assert training.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
        Worker(Sweep(workdir=str(run), out=str(out), measure=("tokens",), watch=True)).run()
        ended = time.time()
        assert training.wait(timeout=120) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    begun = [line for line in lines if line["event"] == "begin"]
    rows = json.loads((out / "rows.json").read_text())
    assert [row["cell"]["step"] for row in rows] == list(range(every, last + 1, every))
    assert len(begun) == len(rows) == sum(line["event"] == "done" for line in lines)
    saved = (run / "checkpoints" / str(last)).stat().st_mtime
    assert begun[0]["time"] < saved < ended  # while it trained, and not before its end


def start_worker(run, out, shard, cache):
    flags = [
        f"--workdir={run}",
        f"--out={out}",
        "--step=best",
        "--measure=prompts,tokens,likelihood",
        f"--shard={shard}",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(REPO), "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "lumos", "sweep", *flags, *(f"--set={word}" for word in TWELVE)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_workers_leave_nothing_broken_and_nothing_twice(run, undisturbed, tmp_path, kills):
    """Two workers; kill -9 of one of them again and again: the rows are those of a sweep that nobody disturbed."""
    rng, out, killed = random.Random(0), tmp_path / "s", 0
    start = lambda i: start_worker(run, out, f"{i}/2", tmp_path / "cache")
    workers = [start(0), start(1)]
    limit = time.monotonic() + 60 + 30 * kills
    begun = lambda: (out / "log.jsonl").read_text().count('"begin"') if (out / "log.jsonl").exists() else 0
    while killed < kills and any(worker.poll() is None for worker in workers):
        seen = begun()
        while begun() == seen and any(worker.poll() is None for worker in workers):
            assert time.monotonic() < limit
            time.sleep(0.005)
        time.sleep(rng.random() * 0.3)
        i = rng.randrange(2)
        workers[i].send_signal(signal.SIGKILL)
        workers[i].wait()
        killed, workers[i] = killed + 1, start(i)
    for worker in workers:
        assert worker.wait(timeout=300) == 0
    whole = undisturbed[0]
    assert sorted(path.name for path in (out / "cells").iterdir()) == sorted(
        path.name for path in (whole / "cells").iterdir()
    )
    for folder in (whole / "cells").iterdir():
        mine = out / "cells" / folder.name
        assert sorted(p.name for p in mine.rglob("*")) == sorted(p.name for p in folder.rglob("*"))
        assert (
            json.loads((mine / "row.json").read_text())["metrics"]
            == json.loads((folder / "row.json").read_text())["metrics"]
        )
    assert (out / "rows.csv").read_text() == (whole / "rows.csv").read_text()
    assert not list((out / "partial").iterdir()) and not list((out / "failed").iterdir())
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    done = [line["cell"] for line in lines if line["event"] == "done"]
    begins = [line["cell"] for line in lines if line["event"] == "begin"]
    assert len(begins) <= 12 + killed and len(done) == len(set(done)) and killed == kills
