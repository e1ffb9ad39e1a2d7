"""Looking before a run: `lumos train --dry_run`, `lumos doctor`, `lumos train --help`, and what a shell completes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokens
from PIL import Image
from tokens import one_device  # noqa: F811, F401  a fixture

from lumos import cli, config_loading, doctor, sharding
from lumos.checkpoint import Checkpointer
from lumos.completion import SCRIPT, complete
from lumos.config_docs import sections
from lumos.info.render import as_text
from lumos.tokenizers import pretrained
from lumos.training.dry_run import dry_run
from lumos.training.match_data import match_data
from lumos.verbs import VERBS

REPO = Path(__file__).resolve().parents[1]
FIELDS = [field for section in sections() for field in section.fields]


def run(capsys, *arguments, code=0):
    assert cli.main(list(arguments)) == code
    captured = capsys.readouterr()
    return captured.err if code == 2 else captured.out


# --- dry runs -----------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_the_run_would_do_and_trains_nothing(tmp_path, one_device, monkeypatch):  # noqa: F811
    folder = tokens.write_tokens(tmp_path / "tokens")
    config = tokens.run_config(folder, train__num_steps=7)

    class Decoder:
        def decode(self, codes):
            return np.repeat(np.repeat(codes[:, :, :, :, None] * 8, 3, axis=4).astype(np.uint8), 4, axis=2)

    monkeypatch.setattr(pretrained, "load", lambda path: Decoder())
    monkeypatch.setattr("lumos.training.dry_run.match_data", lambda config: config)
    other = match_data(config).to_dict() | {"tokenizer_workdir": "somewhere"}
    facts = dry_run(config_loading.parse(other), tmp_path / "run")
    text = as_text(facts)
    assert "dry run of a transformer run: nothing was trained" in text and "int32  8x3x4x4" in text
    assert facts["begins_at_step"] == 0 and facts["num_steps"] == 7 and facts["clips"] == 64 and not facts["problems"]
    assert facts["batch"]["tokens"] == {"dtype": "int32", "shape": (8, 3, 4, 4)}
    memory = facts["memory_of_a_device"]
    # Parameters, two moments and the EMA in float32, and a batch of 8.
    state = 4 * 4 * facts["parameters"] + 4 * 8 * (math.prod((3, 4, 4)) + 6 + 1)
    assert memory["state_bytes"] == pytest.approx(state, abs=64) and memory["step_bytes"] > 0
    picture = Image.open(facts["contact_sheet"])
    assert picture.size[1] > 8 * 16 and [path.name for path in (tmp_path / "run").iterdir()] == ["dry_run.png"]


def test_a_dry_run_names_the_step_from_which_a_run_goes_on(tmp_path, monkeypatch):
    from lumos.training import dry_run as module

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(Checkpointer, "latest_step", lambda self: 40)
    monkeypatch.setattr(Checkpointer, "has_optimizer", lambda self: True)
    assert module._begins_at(tmp_path) == 40
    monkeypatch.setattr(Checkpointer, "has_optimizer", lambda self: False)
    assert module._begins_at(tmp_path) == 0


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys, monkeypatch):
    config = tokens.run_config(tokens.write_tokens(tmp_path / "tokens"))
    config.save(tmp_path / "config.json")
    arguments = ["train", f"--config={tmp_path}/config.json", f"--workdir={tmp_path}/run", "--dry_run"]
    monkeypatch.setattr(sharding, "num_batch_shards", lambda mesh: 3)
    assert "config.data.batch_size=8 must be a multiple of the batch shards" in run(capsys, *arguments, code=2)
    arguments.append(f"--config.data.path={tmp_path}/nothing")
    assert "has no manifest.json" in run(capsys, *arguments, code=2)


# --- doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_nothing_here(capsys, tmp_path):
    facts = json.loads(run(capsys, "doctor", str(tmp_path / "run"), "--json"))
    assert facts["problems"] == [] and facts["processes"] == 1 and facts["devices"].startswith("8 x cpu")
    assert {"h264", "av1", "png"} <= set(facts["video"]["codecs"]) and facts["video"]["writes_mp4"]
    (host,) = facts["hosts"].values()
    assert 0 < host["matmul_seconds"] < 60 and 0 < host["collective_seconds"] < 60
    assert facts["workdir"]["bytes_per_s"] > 0 and not list(tmp_path.iterdir())


def test_the_doctor_names_slow_hosts_and_what_cannot_be_written(capsys, tmp_path):
    row = lambda matmul, collective: {"matmul_seconds": matmul, "collective_seconds": collective}
    hosts = {"a:0": row(1.0, 0.1), "b:1": row(1.1, 0.1), "c:2": row(2.0, 0.1)}
    assert doctor.slow_hosts(hosts) == ["c:2 is slow: its matmul takes 1.8 times the median of all hosts"]
    assert doctor.slow_hosts({"a:0": row(1.0, 1.0)}) == []
    (tmp_path / "file").touch()
    text = run(capsys, "doctor", str(tmp_path / "file"), code=1)
    assert "is a file, not a folder" in text and "problems" in text


# --- help and completion --------------------------------------------------------------------------------------------


def test_help_of_train_lists_every_field_and_flag(capsys):
    text = run(capsys, "train", "--help")
    assert [field.name for field in FIELDS if f"  {field.name} = " not in text] == []
    for flag in ("--config=", "--workdir=", "--dry_run", "--init_from="):
        assert f"  {flag}" in text
    assert "undefok" not in text and "optimizer.decay" not in run(capsys, "generate", "--help")


@pytest.mark.parametrize(
    "words, offers",
    [
        ([], sorted({name.split()[0] for name in VERBS}) + ["--help", "--version"]),
        (["tr"], ["train"]),
        (["config", ""], ["diff", "show"]),
        (["data", "sh"], ["shapes"]),
        (["train", "--wor"], ["--workdir="]),
        (["train", "--dry"], ["--dry_run"]),
        (["train", "--config=conf"], []),  # a file, which the shell completes
        (["train", "--config.optimizer.ema"], ["--config.optimizer.ema_decay="]),
        (
            ["train", "--config.sequence.targets=n"],
            ["--config.sequence.targets=next", "--config.sequence.targets=neighbours"],
        ),
        (["train", "--config.corruption.level.flo"], ["--config.corruption.level.floor="]),
        (["replay", "--config.tr"], []),  # which takes no fields
        (["help", "optimizer.clip"], ["optimizer.clip_norm"]),
        (["nonsense", "--a"], []),
    ],
)
def test_what_may_come_next(words, offers):
    assert complete(words, VERBS) == offers


def test_bash_completes(tmp_path):
    """In a real bash, whose words break at = and colons."""
    (tmp_path / "lumos").write_text(f'#!/bin/sh\ncd {REPO} && exec {sys.executable} -m lumos "$@"\n')
    (tmp_path / "lumos").chmod(0o755)
    lines = ["lumos gen", "lumos config d", "lumos train --config.sequence.targets=ne"]
    asks = "".join(f"COMP_LINE='{x}'; COMP_POINT={len(x)}; _lumos; echo \"${{COMPREPLY[*]}}\"\n" for x in lines)
    script = f"PATH={tmp_path}:$PATH\nsource <(lumos completion)\n{asks}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["generate", "diff", "next neighbours"]
    assert subprocess.run(["bash", "-n"], input=SCRIPT, text=True, check=False).returncode == 0
