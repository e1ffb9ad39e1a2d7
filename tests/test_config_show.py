"""`lumos config show | diff`, `lumos help` and `--version`: what they print, and their errors."""

import ast
import json
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import pytest

import lumos
from lumos import cli, config_docs, config_rules
from lumos import config as config_lib

REPO = Path(lumos.__file__).resolve().parents[1]


def run(capsys, *arguments, code=0):
    """Return what a command prints, on stderr where it is to fail."""
    assert cli.main([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert bool(printed.err) == bool(code)
    return printed.err if code else printed.out


def flat(config):
    """Return the fields of a config by their dotted names."""
    return {
        f"{name}.{inner}" if isinstance(value, dict) else name: item
        for name, value in config.to_dict().items()
        for inner, item in (value.items() if isinstance(value, dict) else [("", value)])
    }


def test_show_prints_every_field_and_marks_what_was_changed(capsys):
    out = run(capsys, "config", "show", "configs/demo.py:tokenizer", "--config.seed=7", "--config.data.fps", "12")
    wanted = flat(config_lib.load("configs/demo.py:tokenizer", {"seed": "7", "data.fps": "12"}))
    defaults = flat(config_lib.Config())
    lines = [line.partition(" = ") for line in out.splitlines()]
    assert [name for name, _, _ in lines] == list(wanted)
    for name, _, rest in lines:
        value, marked, default = rest.partition("  # default: ")
        assert ast.literal_eval(value) == wanted[name]
        assert bool(marked) == (wanted[name] != defaults[name])
        assert not marked or ast.literal_eval(default) == defaults[name]
    assert "seed = 7  # default: 0" in out.splitlines() and "data.fps = 12.0  # default: 0.0" in out.splitlines()


def test_show_takes_every_form_of_a_config_and_json(capsys, tmp_path):
    config = config_lib.load("configs/demo.py:transformer,smoke")
    config.save(tmp_path / "config.json")
    shutil.copy(REPO / "configs" / "demo.py", tmp_path / "a:b.py")
    printed = {
        run(capsys, "config", "show", spec) for spec in (tmp_path, tmp_path / "config.json", f"--config={tmp_path}")
    }
    assert printed == {run(capsys, "config", "show", f"{tmp_path}/a:b.py:transformer,smoke")}
    facts = json.loads(run(capsys, "config", "show", tmp_path, "--json"))
    assert facts["config"] == str(tmp_path)
    assert {name: row["value"] for name, row in facts["fields"].items()} == json.loads(json.dumps(flat(config)))
    assert facts["fields"]["task"] == {"value": "transformer", "default": "transformer", "changed": False}


def test_diff(capsys, tmp_path):
    config_lib.load("configs/demo.py:tokenizer", {"seed": "3", "data.buckets": "((9, 32, 32),)"}).save(
        tmp_path / "config.json"
    )
    out = run(capsys, "config", "diff", "configs/demo.py:tokenizer", tmp_path)
    before = config_lib.load("configs/demo.py:tokenizer").data.buckets
    assert out.splitlines() == [
        "seed = 0 -> 3",
        f"data.buckets = {before!r} -> ((9, 32, 32),)",
        f"# 2 of {len(flat(config_lib.Config()))} fields differ: configs/demo.py:tokenizer -> {tmp_path}",
    ]
    facts = json.loads(run(capsys, "config", "diff", "configs/demo.py:tokenizer", tmp_path, "--json"))
    assert facts["fields"]["seed"] == [0, 3] and set(facts["fields"]) == {"seed", "data.buckets"}
    out = run(capsys, "config", "diff", tmp_path, tmp_path / "config.json")
    assert out.startswith("# no field differs") and len(out.splitlines()) == 1


def test_errors_are_one_line(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["config"], "commands: config show, config diff"),
        (["config", "list"], "commands: config show, config diff"),
        (["config", "show"], "lumos config show CONFIG: config is missing"),
        (["config", "diff", "configs/demo.py"], "lumos config diff CONFIG OTHER: other is missing"),
        (["config", "diff", "a", "b", "c"], "unexpected argument 'c'"),
        (["config", "diff", tmp_path, tmp_path, "--config.seed=1"], "takes no config overrides"),
        (["config", "show", tmp_path], f"{tmp_path}: unknown field 'hidden_size' in config"),
        (["config", "show", tmp_path / "empty"], "is a folder without config.json"),
        (["config", "show", "nowhere.py"], "no config file 'nowhere.py'"),
        (["config", "show", "configs/demo.py", "--config.sed=1"], "did you mean 'seed'"),
        (["config", "show", "configs/demo.py:tokenizer", "--config.seed=x"], "--config.seed=x: expected int"),
        (["help", "optimizer.decya"], "no config field 'optimizer.decya'; did you mean optimizer.decay?"),
        (["help", "learning_rate"], "did you mean adversarial.learning_rate or optimizer.learning_rate?"),
        (["help", "config.modl"], "did you mean model?"),
        (["help", "num_step"], "did you mean train.num_steps?"),
        (["help", "zzz"], "lumos help lists all sections"),
        (["help", "a", "b"], "unexpected argument 'b'"),
        (["info", "--config.seed=1", "x"], "lumos config show does"),
        (["demo", "--config.seed=1"], "copy configs/demo.py"),
    ):
        error = run(capsys, *arguments, code=2)
        assert message in error and len(error.splitlines()) == 1, error


def test_help_of_a_field_names_its_default_meaning_and_choices(capsys):
    words = "\n".join(
        [
            "--config.optimizer.decay=matrices",
            "",
            "  what it acts on: matrices (neither norms nor biases) | all",
            "  default  'matrices'",
            "  type     str",
            "  allowed  matrices | all",
            "",
        ]
    )
    for name in ("optimizer.decay", "config.optimizer.decay", "optimizer.decay=all"):
        assert run(capsys, "help", name) == words
    assert "random" not in run(capsys, "help", "tokenizer_workdir")


def test_help_knows_every_field_and_section(capsys):
    listed = run(capsys, "help")
    names = []
    for section in config_docs.sections():
        assert f"  {section.name} " in listed or all(field.name in listed for field in section.fields)
        text = run(capsys, "help", section.name) if section.name else listed
        for field in section.fields:
            names.append(field.name)
            meaning = field.comment or " | ".join(field.choices)
            assert meaning and " ".join(run(capsys, "help", field.name).split()).count(" ".join(meaning.split())) == 1
            assert not section.name or f"  {field.name} = {field.default!r}" in text
        assert all(len(line) <= 120 for line in text.splitlines())
        assert not section.name or section.about
    assert names == list(flat(config_lib.Config())) and set(config_rules.CHOICES) <= set(names)


def test_help_of_names_that_verbs_have_too(capsys):
    assert "lumos train --help" in run(capsys, "help", "train").splitlines()[-1]
    assert run(capsys, "help", "tokenize") == "tokenize is a verb: lumos tokenize --help\n"


def test_verbs_that_take_config_fields_say_where_these_are_listed(capsys):
    for verb in ("train", "generate", "data index", "config show"):
        assert "`lumos help` lists the sections" in run(capsys, *verb.split(), "--help").splitlines()[-1]
    for verb in ("launch", "info", "demo"):
        assert "lumos help" not in run(capsys, *verb.split(), "--help")


def test_version(capsys):
    line = run(capsys, "--version")
    assert line.startswith(f"lumos {lumos.__version__}") and line.count("\n") == 1
    for part in (
        f"python {platform.python_version()}",
        f"jax {jax.__version__}",
        f"jaxlib {metadata.version('jaxlib')}",
    ):
        assert part in line


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["help", "model"], ["config", "show", "configs/demo.py:tokenizer"]]
)
def test_looking_does_not_import_jax(arguments):
    code = (
        f"import sys; from lumos import cli; assert cli.main({arguments!r}) == 0; "
        "bad = {'jax', 'orbax', 'grain', 'av'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True)
