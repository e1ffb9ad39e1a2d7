"""`lumos info`: every kind of thing is told for what it is, also when it is damaged, and nothing is ever changed."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokens
from ml_dtypes import bfloat16
from safetensors.numpy import save_file
from tokens import one_device  # noqa: F401  a fixture

from lumos import cli, provenance
from lumos.checkpoint import Checkpointer
from lumos.config import ShapesConfig
from lumos.data import moving_shapes
from lumos.errors import UserError
from lumos.info.kinds import KINDS, describe
from lumos.info.render import as_json, as_text
from lumos.training.loop import train

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):  # noqa: F811
    """A folder with `tokens` and a finished `run` on them, with checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("info")
    train(tokens.run_config(tokens.write_tokens(folder / "tokens")), folder / "run")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def snapshot(folder):
    """Return everything below a folder with its size and the time it was changed, folders too."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        facts = path.lstat()
        found[path] = (facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino)
    return found


def edit_config(run, **changes):
    """Change fields of the config that a run has saved; __ stands for the dot."""
    values = json.loads((run / "config.json").read_text())
    for name, value in changes.items():
        *section, field = name.split("__")
        (values[section[0]] if section else values)[field] = value
    (run / "config.json").write_text(json.dumps(values))


# --- workdirs and checkpoints -------------------------------------------------------------------------------------


def test_a_finished_run(trained):
    facts = describe(trained / "run")
    assert (facts["kind"], facts["state"], facts["task"]) == ("workdir", "finished", "transformer")
    assert (facts["num_steps"], facts["latest_step"], facts["last_good_step"]) == (6, 6, 6)
    assert facts["missing"] == facts["unfinished_saves"] == facts["bad_step_dumps"] == facts["problems"] == []
    assert {step: (row["good"], row["items"]) for step, row in facts["checkpoints"].items()} == {
        step: (True, ["params", "opt_state", "ema"]) for step in ("4", "6")
    }
    # A layer of width 32: q, k, v, o with two heads and one key head of 32; the MLP of 64; two norms; weight and bias of q and k.
    layer = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 2 * 32
    parts = {name: row["count"] for name, row in facts["parameters"].items()}
    assert parts["layers"] == layer and parts["norm"] == 32
    assert parts["embed_tokens"] == parts["lm_head"] and parts["embed_tokens"] % 32 == 0
    assert parts["total"] == layer + 32 + 2 * parts["embed_tokens"]
    assert {row["dtype"] for row in facts["parameters"].values()} == {"float32"}
    assert facts["arrays"]["ema"] == facts["arrays"]["params"] == facts["parameters"]["total"]
    assert facts["arrays"]["params"]["bytes"] == 4 * parts["total"]
    assert facts["arrays"]["opt_state"]["count"] >= 2 * parts["total"]  # two moments
    lines = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert facts["last_metrics"]["train"]["loss"] == last["loss"] and facts["last_metrics"]["train"]["step"] == 6
    assert facts["data"] == {
        "path": str(trained / "tokens"),
        "there": True,
        "fingerprint": provenance.data_fingerprint(str(trained / "tokens")),
        "fingerprint_at_last_start": provenance.data_fingerprint(str(trained / "tokens")),
        "tokens_of_tokenizer": ["none"],
    }
    files = [path for path in (trained / "run").rglob("*") if path.is_file()]
    assert facts["size_on_disk"]["all_bytes"] == sum(path.stat().st_size for path in files)
    assert facts["starts"]["number"] == 1 and facts["starts"]["last_from_step"] == 0
    assert facts["config"]["model.num_layers"] == 1 and facts["config"]["data.buckets"] == ((3, 4, 4),)


def test_one_checkpoint(trained):
    facts = describe(trained / "run" / "checkpoints" / "4")
    whole = describe(trained / "run")
    assert (facts["kind"], facts["step"], facts["finished"], facts["good"]) == ("checkpoint", 4, True, True)
    assert facts["can_be_resumed"] and facts["problems"] == []
    assert facts["parameters"] == whole["parameters"] and facts["arrays"] == whole["arrays"]
    assert facts["bytes"] == whole["checkpoints"]["4"]["bytes"]


def test_a_checkpoint_that_was_copied_elsewhere(trained, tmp_path):
    facts = describe(shutil.copytree(trained / "run" / "checkpoints" / "6", tmp_path / "kept"))
    assert (facts["kind"], facts["step"], facts["can_be_resumed"]) == ("checkpoint", 6, False)
    assert facts["parameters"] == describe(trained / "run")["parameters"] and len(facts["problems"]) == 1


def test_the_current_folder_may_be_the_workdir(trained, monkeypatch):
    monkeypatch.chdir(trained / "run")
    assert describe(".")["latest_step"] == 6
    monkeypatch.chdir(trained / "run" / "checkpoints" / "6")
    assert describe(".")["step"] == 6 and "parameters" in describe(".")


def test_nothing_is_changed(trained, run):
    """Neither in a workdir with an unfinished save, which a reader must not sweep away, nor elsewhere."""
    half = run / "checkpoints" / "8.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "6" / "params", half / "params.orbax-checkpoint-tmp")
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / "deleted" / "2")
    for folder in (run, trained / "tokens"):
        before = snapshot(folder)
        for path in [folder, *(path for path in folder.rglob("*") if path.is_dir() or ".array_record" in path.name)]:
            try:
                describe(path)
            except UserError:
                continue
        assert snapshot(folder) == before


def test_a_save_under_way(run):
    half = run / "checkpoints" / "8.orbax-checkpoint-tmp"
    half.mkdir()
    facts = describe(run)
    assert facts["unfinished_saves"] == ["8"] and facts["latest_step"] == 6 and facts["problems"] == []
    assert facts["parameters"]
    facts = describe(half)
    assert facts["what"] == "unfinished save of step 8" and not facts["can_be_resumed"] and facts["problems"]


def test_what_a_run_would_lack(run):
    edit_config(run, train__num_steps=20, data__path="nowhere.jsonl", tokenizer_workdir="no/tokenizer")
    facts = describe(run)
    assert facts["state"] == "resumable" and "can be resumed from step 6 of 20" in facts["what"]
    assert facts["missing"] == ["data nowhere.jsonl", "tokenizer no/tokenizer"]
    assert facts["data"]["there"] is False and facts["tokenizer"]["there"] is False


def test_states(run):
    shutil.rmtree(run / "checkpoints" / "6" / "opt_state")
    assert describe(run)["state"] == "weights"
    shutil.rmtree(run / "checkpoints")
    facts = describe(run)
    assert facts["state"] == "new" and facts["latest_step"] is None and facts["checkpoints"] == {}
    assert "parameters" not in facts and facts["problems"] == []


def test_a_checkpoint_saved_while_the_run_was_unhealthy(run):
    file = run / "checkpoints" / "6" / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"good": False}))
    facts = describe(run)
    assert (facts["latest_step"], facts["last_good_step"]) == (6, 4)
    reader = Checkpointer(run, read_only=True)
    assert reader.last_good_step() == 4
    reader.close()


def test_changed_data_are_said(trained, run, tmp_path):
    folder = Path(shutil.copytree(trained / "tokens", tmp_path / "tokens"))
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + "\n")
    edit_config(run, data__path=str(folder))
    assert any("the data have changed" in problem for problem in describe(run)["problems"])


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def _garbage(path):
    with path.open("ab") as file:
        file.write(b"\xff\xfe{\n[1]\n{torn")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of threads that met the damage
@pytest.mark.parametrize(
    "damage, place, problem, kept",
    [
        (_cut, "config.json", "config.json", ("checkpoints", "parameters", "last_metrics", "starts")),
        (Path.unlink, "config.json", "no config.json", ("checkpoints", "parameters", "last_metrics", "starts")),
        (_garbage, "metrics.jsonl", "metrics.jsonl: 3 of its last", ("checkpoints", "parameters", "last_metrics", "config")),
        (_garbage, "runs.jsonl", "runs.jsonl: 3 of its last", ("parameters", "starts", "data")),
        (_cut, "goodput.json", "goodput.json cannot be read", ("parameters", "starts", "data")),
        (_cut, "checkpoints/6/meta/metadata", "checkpoint 6: metadata cannot be read", ("parameters", "checkpoints")),
        (_cut, "checkpoints/6/params/_METADATA", "checkpoint 6: ", ("checkpoints", "config", "last_metrics")),
        (Path.unlink, "checkpoints/6/params/_METADATA", "checkpoint 6: ", ("checkpoints", "config", "last_metrics")),
        (_cut, "checkpoints/6/ema/_METADATA", "checkpoints/6/ema cannot be read", ("checkpoints", "parameters", "arrays")),
        (_cut, "checkpoints/6/params/manifest.ocdbt", "checkpoint 6: ", ("checkpoints", "config", "last_metrics")),
        (shutil.rmtree, "checkpoints/6/params", "checkpoint 6: ", ("checkpoints", "config", "last_metrics")),
    ],
)  # fmt: skip
def test_what_is_damaged_is_named_and_the_rest_shown(run, damage, place, problem, kept):
    damage(run / place)
    facts = describe(run)
    assert any(problem in line for line in facts["problems"]), facts["problems"]
    assert all(facts[name] for name in kept)
    assert facts["latest_step"] == 6
    for line in facts["problems"]:
        assert line in as_text(facts) and "\n" not in line


def test_numbers_that_went_bad_are_still_json(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "kind": "train", "loss": NaN, "grad_norm": Infinity}\n')
    facts = json.loads(as_json(describe(run)), parse_constant=pytest.fail)
    assert facts["last_metrics"]["train"] == {"step": 7, "loss": "nan", "grad_norm": "inf"}


# --- data ---------------------------------------------------------------------------------------------------------


def test_a_token_folder(trained):
    facts = describe(trained / "tokens")
    assert (facts["kind"], facts["finished"], facts["records"], facts["shards"]) == ("tokens", True, 96, 3)
    assert facts["grid"] == [3, 4, 4] and facts["codebook_size"] == 30 and facts["tokenizer_fingerprint"] == "none"
    assert facts["splits"] == {"train": {"shards": 2, "records": 64}, "validation": {"shards": 1, "records": 32}}
    assert facts["missing_shards"] == facts["problems"] == []


def test_an_unfinished_token_folder(trained, tmp_path):
    folder = Path(shutil.copytree(trained / "tokens", tmp_path / "tokens"))
    names = sorted(path.name for path in folder.glob("*.array_record"))
    plan = json.loads((folder / "manifest.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"shards": [*names, "test-00000-of-00001.array_record"]}))
    (folder / "manifest.json").unlink()
    (folder / names[0]).rename(folder / f"{names[0]}.partial")
    facts = describe(folder)
    assert not facts["finished"] and facts["records"] == 64 and facts["grid"] == [3, 4, 4]
    assert facts["missing_shards"] == ["test-00000-of-00001.array_record", names[0]]
    assert facts["being_written"] == [f"{names[0]}.partial"]
    assert describe(folder / f"{names[0]}.partial")["what"] == "record shard that is being written"


def test_a_token_folder_that_is_not_what_it_says(trained, tmp_path):
    folder = Path(shutil.copytree(trained / "tokens", tmp_path / "tokens"))
    manifest = json.loads((folder / "manifest.json").read_text()) | {"records": 96, "fps": 8.0}
    counted = {"clips": 40, "encoded": 32, "skipped": {"too_short": 7, "unreadable": 1}, "windows_left_out": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"splits": {"validation": counted}}))
    (folder / "plan.json").write_text(json.dumps(manifest | {"codebook_size": 31}))
    (folder / "train-00000-of-00002.array_record").write_bytes(b"no records")
    facts = describe(folder)
    assert facts["splits"]["validation"] == {
        "shards": 1, "records": 32, "clips": 40, "encoded": 32, "windows_left_out": 1, "too_short": 7, "unreadable": 1,
    }  # fmt: skip
    text = "\n".join(facts["problems"])
    assert "train-00000-of-00002.array_record: damaged record file" in text
    assert "differ in codebook_size" in text and "64 records are there, manifest.json says 96" in text


def test_a_shard(trained, tmp_path):
    facts = describe(trained / "tokens" / "train-00001-of-00002.array_record")
    assert (facts["kind"], facts["records"]) == ("shard", 32)
    assert facts["fields"]["tokens"] == {"dtype": "uint32", "shape": [3, 4, 4], "first": None}
    assert facts["fields"]["caption"]["first"] == "a red circle 0"
    (tmp_path / "a.array_record").write_bytes(b"x" * 100)
    assert "damaged record file" in describe(tmp_path / "a.array_record")["problems"][0]


def write_manifest(folder, rows):
    lines = []
    for i, row in enumerate(rows):
        (folder / f"{i}.mp4").write_bytes(b"x" * 10)
        facts = {
            "path": f"{i}.mp4",
            "id": str(i),
            "caption": "a",
            "duration": 2.0,
            "fps": 12.0,
            "width": 64,
            "height": 48,
        }
        lines.append(json.dumps(facts | {"frames": 24, "bytes": 10} | row))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "clips.jsonl"


def test_a_manifest(tmp_path):
    images = [{"frames": 1, "duration": 0.0, "fps": 0.0, "split": "test"}]
    clips = [{"split": "train"}, {"split": "train", "fps": 25.0, "frames": 50, "caption": ""}, {"split": "test"}]
    path = write_manifest(tmp_path, clips + images)
    reasons = [{"path": "b.mp4", "reason": "no such file"}] * 2 + [{"path": "c.mp4", "reason": "empty"}]
    (tmp_path / "clips.rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reasons))
    facts = describe(path)
    assert (facts["kind"], facts["clips"], facts["images"], facts["without_caption"]) == ("manifest", 4, 1, 1)
    assert facts["duration_seconds"] == 6.0 and facts["size_of_clips_bytes"] == 40
    assert facts["frames"] == {"in_all": 99, "least": 1, "median": 24, "most": 50}
    assert facts["frame_rates"] == {"12": 2, "25": 1} and facts["sizes"] == {"48x64": 4}
    assert facts["splits"] == {"train": 2, "test": 2}
    assert facts["files"] == {"looked_for": 4, "not_there": 0, "changed": 0} and facts["problems"] == []
    counted = {"number": 3, "reasons": {"no such file": 2, "empty": 1}}
    assert facts["rejected"] == {"list": "clips.rejected.jsonl", **counted}
    rejected = describe(tmp_path / "clips.rejected.jsonl")
    assert rejected["kind"] == "rejected" and {name: rejected[name] for name in counted} == counted
    (tmp_path / "1.mp4").unlink()
    (tmp_path / "2.mp4").write_bytes(b"another")
    facts = describe(path)
    assert facts["files"] == {"looked_for": 4, "not_there": 1, "changed": 1} and len(facts["problems"]) == 2


def test_a_damaged_manifest(tmp_path):
    path = write_manifest(tmp_path, [{}, {"fps": "fast"}, {"frames": 10}])
    with path.open("a") as file:
        file.write('{"path": "d.mp4", torn\n[]\n')
    facts = describe(path)
    assert facts["clips"] == 3 and facts["frames"]["in_all"] == 58 and facts["frame_rates"] == {"12": 2}
    assert f"{path}:2: fps must not be 'fast'" in facts["problems"][0]
    assert facts["problems"][1] == "2 lines are no clips (the first is line 4)"
    path.write_text('{"path": "a.mp4", "split": [], "caption": {}}\n')
    assert describe(path)["what"] == "list of 1 clips that is no whole manifest"
    path.write_text('{"step": 3}\n')
    with pytest.raises(UserError, match="not known"):
        describe(path)


def test_moving_shapes(tmp_path):
    shapes = ShapesConfig(num_train=3, num_validation=2, num_test=1)
    target = moving_shapes.prepare(tmp_path, shapes, (5, 32, 32), 0)
    for path in (tmp_path, target):
        facts = describe(path)
        assert facts["kind"] == "moving_shapes" and facts["clip_shape"] == [5, 32, 32, 3] and facts["problems"] == []
        assert {split: row["clips"] for split, row in facts["splits"].items()} == {
            "train": 3,
            "validation": 2,
            "test": 1,
        }
        assert facts["settings"] == "easy_5x32x32_3-2-1_seed0"
    next(target.glob("*-test.array_record-*")).unlink()
    (target.parent / "incomplete.1").mkdir()
    problems = describe(tmp_path)["problems"]
    assert "0 of 1 shards of split 'test' are there" in problems and "incomplete.1" in problems[0]


# --- weights, dumps, configs --------------------------------------------------------------------------------------


def test_a_released_lumos1_folder(tmp_path):
    official = {
        "model_type": "chameleon", "vocab_size": 129_536, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(official))
    save_file({"model.layers.0.q.weight": np.zeros((4, 8), bfloat16)}, tmp_path / "a.safetensors")
    save_file({"model.norm.weight": np.zeros(3, np.float32)}, tmp_path / "b.safetensors")
    index = {"model.layers.0.q.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    facts = describe(tmp_path)
    assert (facts["kind"], facts["format"], facts["problems"]) == ("released", "lumos1", [])
    assert facts["model"]["num_layers"] == 2 and facts["vocabulary"] == {"text": 65_536, "visual": 64_000}
    assert facts["by_dtype"] == {
        "bfloat16": {"tensors": 1, "count": 32, "bytes": 64}, "float32": {"tensors": 1, "count": 3, "bytes": 12},
    }  # fmt: skip
    assert {name: row["count"] for name, row in facts["parameters"].items()} == {
        "layers/0": 32, "norm/weight": 3, "total": 35,
    }  # fmt: skip
    (tmp_path / "b.safetensors").unlink()
    _cut(tmp_path / "a.safetensors")
    problems = describe(tmp_path)["problems"]
    assert "1 of 2 files of model.safetensors.index.json are not there: b.safetensors" in problems
    assert any(problem.startswith("a.safetensors cannot be read") for problem in problems)


def test_a_cosmos_tokenizer_and_other_weights(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"encoder.conv_in.0.conv3d.weight": np.zeros((8, 192, 1, 3, 3), np.float32)}, file)
    for path in (tmp_path, file):
        facts = describe(path)
        assert (facts["kind"], facts["format"], facts["channels"]) == ("released", "cosmos", 8)
        assert facts["by_dtype"] == {"float32": {"tensors": 1, "count": 13_824, "bytes": 55_296}}
    save_file({"w": np.zeros((2, 2), np.float16)}, tmp_path / "model.safetensors")
    assert describe(tmp_path)["what"] == "safetensors of another kind than lumos converts"
    file.unlink()
    (tmp_path / "encoder.jit").write_bytes(b"x" * 7)
    facts = describe(tmp_path)
    assert facts["format"] == "cosmos" and facts["bytes"] == 7 and "torch alone can read" in facts["what"]


def test_a_dump(run, tmp_path):
    folder = tmp_path / "dumps" / "00000007"
    shutil.copytree(run / "checkpoints", folder / "checkpoints")
    shutil.copy(run / "config.json", folder)
    save_file({"tokens": np.zeros((8, 3, 4, 4), np.int32)}, folder / "batch-0.safetensors")
    facts = {"step": 6, "batch_number": 6, "from_step": 6, "reason": "loss is nan", "processes": 1}
    (folder / "dump.json").write_text(json.dumps(facts | {"metrics": {"loss": (2.5).hex(), "grad_norm": "nan"}}))
    facts = describe(folder)
    assert (facts["kind"], facts["step"], facts["reason"], facts["problems"]) == ("dump", 7, "loss is nan", [])
    assert facts["metrics"]["loss"] == 2.5 and math.isnan(facts["metrics"]["grad_norm"])
    assert facts["batch"] == {"0: tokens": {"shape": (8, 3, 4, 4), "dtype": "int32"}}
    shutil.rmtree(folder / "checkpoints" / "6")
    (folder / "batch-0.safetensors").unlink()
    assert len(describe(folder)["problems"]) == 2


CONFIG = """
from lumos import config_loading


def get_config(variant=""):
    c = config_loading.default()
    c.name = f"mine {variant}"
    c.data.buckets = ((5, 32, 32), (9, 16, 32))
    c.optimizer.learning_rate = 0.5
    return c
"""
GOLDEN = """mine.py:b: config of a transformer run
  name  mine b
  task  transformer
  next  lumos config show mine.py:b

changed from default
  name = 'mine b'
  data.buckets = ((5, 32, 32), (9, 16, 32))
  optimizer.learning_rate = 0.5
"""


def test_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(CONFIG)
    assert cli.main(["info", "mine.py:b"]) == 0
    assert capsys.readouterr().out == GOLDEN
    Path("mine.py").write_text(CONFIG.replace("0.5", "-1"))
    assert "learning_rate=-1.0 must be at least 0" in describe("mine.py:b")["problems"][0]
    assert describe("configs/demo.py:tokenizer")["task"] == "tokenizer"  # shipped, wherever one is
    Path("other.py").write_text("raise SystemExit('not to be run')\n")
    with pytest.raises(UserError, match="not known"):
        describe("other.py")


# --- the verb -----------------------------------------------------------------------------------------------------


def test_the_verb_prints_lines_or_json(trained, capsys):
    for path in (trained / "run", trained / "run" / "checkpoints" / "6", trained / "tokens"):
        assert cli.main(["info", str(path), "--json"]) == 0
        printed = capsys.readouterr().out
        facts = json.loads(printed)
        assert printed.count("\n") == 1 and facts["path"] == str(path)
        assert facts == json.loads(as_json(describe(path)))
        assert cli.main(["info", f"--path={path}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{path}: {facts['what']}"
        assert all(line == line.rstrip() and len(line) < 160 for line in lines)


def test_what_is_unknown_is_one_line(trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    os.symlink(tmp_path / "gone", tmp_path / "link")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    for path, message in (
        (tmp_path / "empty", "not known; lumos knows training workdirs, checkpoints"),
        (tmp_path / "notes.txt", "not known"),
        (tmp_path / "package.json", "not known"),
        (tmp_path / "nothing", "no such file or folder"),
        (tmp_path / "a\nb", "a\\nb: no such file or folder"),
        (tmp_path / "link", "which is not there"),
        (trained, "holds run (workdir), tokens (tokens); give one of these"),
        (trained / "run" / "metrics.jsonl", f"give the folder around it, {trained / 'run'} (workdir)"),
        ("gs:/bucket/run", "a URL has two slashes: gs://bucket/folder"),
    ):
        assert cli.main(["info", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error


def test_odd_names_are_printed_on_one_line(trained, tmp_path, capsys):
    folder = tmp_path / "a\nb é"
    shutil.copytree(trained / "tokens", folder)
    assert cli.main(["info", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("a\\nb é: tokens of 96 clips")


def test_every_key_of_the_json_is_documented(trained, tmp_path):
    page = (REPO / "docs" / "howto.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    (tmp_path / "mine.py").write_text(CONFIG)
    save_file({"encoder.conv_in.0.conv3d.weight": np.zeros((8, 192, 1, 3, 3), np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / "dump.json").write_text("{}")
    (tmp_path / "clips.rejected.jsonl").write_text("")
    (tmp_path / "shapes").mkdir()
    moving_shapes.prepare(tmp_path / "shapes", ShapesConfig(num_train=1, num_validation=1, num_test=1), (5, 32, 32), 0)
    (tmp_path / "released").mkdir()
    facts = {
        "format": 1,
        "task": "transformer",
        "name": "a",
        "step": 6,
        "weights": "ema",
        "lumos": "1",
        "files": {},
        "provenance": {},
    }
    (tmp_path / "released" / "release.json").write_text(json.dumps(facts | {"fingerprint": "0"}))
    run = trained / "run"
    paths = [
        run,
        run / "checkpoints" / "6",
        trained / "tokens",
        trained / "tokens" / "train-00000-of-00002.array_record",
    ]
    paths += [
        tmp_path,
        *(tmp_path / name for name in ("mine.py", "a.safetensors", "clips.rejected.jsonl", "shapes", "released")),
    ]
    seen = set()
    for facts in map(describe, [*paths, write_manifest(tmp_path, [{}])]):
        assert list(facts)[:3] == ["kind", "path", "what"] and "problems" in facts
        keys = facts.keys() - {"kind", "path", "what", "problems"}
        assert not [key for key in keys if f"`{key}`" not in rows[facts["kind"]]], facts["kind"]
        seen.add(facts["kind"])
    assert seen == set(KINDS) == set(rows) & set(KINDS)


def test_strange_values_in_json_files_are_no_crash(run, trained, tmp_path):
    strange = ["x", 3, [], [[]], {"a": []}, None, {"fingerprint": {}}]
    tokens_copy = Path(shutil.copytree(trained / "tokens", tmp_path / "tokens"))
    dump = tmp_path / "dump"
    dump.mkdir()
    for value in strange:
        names = ("grid", "records", "tokenizer", "data", "splits", "shards", "provenance", "buckets")
        (tokens_copy / "manifest.json").write_text(json.dumps(dict.fromkeys(names, value)))
        (tokens_copy / "plan.json").write_text(json.dumps({"grid": value, "shards": value}))
        names = ("step", "reason", "batch_number", "from_step", "processes", "metrics")
        (dump / "dump.json").write_text(json.dumps(dict.fromkeys(names, value)))
        for file in ("metrics.jsonl", "runs.jsonl"):
            names = ("step", "kind", "loss", "time", "versions", "data", "start_step", "goodput")
            (run / file).write_text(
                json.dumps(dict.fromkeys(names, value) | {"kind": "train"}) + "\n" + json.dumps(value)
            )
        (run / "goodput.json").write_text(json.dumps({"seconds": value}))
        (run / "checkpoints" / "6" / "meta" / "metadata").write_text(json.dumps({"good": value, "init_from": value}))
        for path in (tokens_copy, dump, run):
            facts = describe(path)
            assert as_text(facts) and json.loads(as_json(facts))


def test_looking_at_data_starts_no_backend(trained, tmp_path):
    path = write_manifest(tmp_path, [{}])
    (tmp_path / "mine.py").write_text(CONFIG)
    shard = trained / "tokens" / "train-00000-of-00002.array_record"
    paths = [
        str(trained / "tokens"),
        str(shard),
        str(path),
        str(tmp_path / "mine.py"),
        str(trained / "run" / "config.json"),
    ]
    code = (
        f"import sys; from lumos.info.kinds import describe; [describe(path) for path in {paths!r}]; "
        "bad = {'orbax', 'tensorflow_datasets', 'grain'} & set(sys.modules); assert not bad, bad; "
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
