"""`lumos config show | diff`, `lumos help` and `--version`: what they print, and their errors."""

import ast
import dataclasses
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
from lumos import cli, config_docs, config_loading, config_rules
from lumos.config import Config
from lumos.sequence.corruption import Level
from lumos.slots import Slot

REPO = Path(lumos.__file__).resolve().parents[1]


def run(capsys, *arguments, code=0):
    """Return what a command prints, on stderr where it is to fail."""
    assert cli.main([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert bool(printed.err) == bool(code)
    return printed.err if code else printed.out


def flat(config):
    """Return the fields of a config by their dotted names: of a slot, the name of its member and its settings."""
    found = {}

    def walk(value, name):
        if dataclasses.is_dataclass(value):
            if isinstance(value, Slot):
                found[name] = value.name
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
        else:
            found[name] = value

    walk(config, "")
    return found


def test_show_prints_every_field_and_marks_what_was_changed(capsys):
    out = run(capsys, "config", "show", "configs/demo.py:tokenizer", "--config.seed=7", "--config.data.fps", "12")
    wanted = flat(config_loading.load("configs/demo.py:tokenizer", {"seed": "7", "data.fps": "12"}))
    defaults = flat(Config())
    lines = [line.partition(" = ") for line in out.splitlines()]
    assert [name for name, _, _ in lines] == list(wanted)
    for name, _, rest in lines:
        value, marked, default = rest.partition("  # default: ")
        assert ast.literal_eval(value) == wanted[name]
        assert bool(marked) == (wanted[name] != defaults[name])
        assert not marked or ast.literal_eval(default) == defaults[name]
    assert "seed = 7  # default: 0" in out.splitlines() and "data.fps = 12.0  # default: 0.0" in out.splitlines()


def test_show_prints_slots_as_overrides(capsys):
    """Settings are compared with those of the same member, and what is printed makes the same config again."""
    flags = ["--config.corruption.level.ratio=0.5", "--config.corruption.level=constant"]
    out = run(capsys, "config", "show", "configs/transformer_small.py:5m", *flags).splitlines()
    assert "corruption.level = 'constant'  # default: 'cosine'" in out
    assert "corruption.level.ratio = 0.5  # default: 1.0" in out and "generate.guidance.scale = 3.0" in out
    assert not [line for line in out if line.startswith("corruption.level.floor")]
    lines = (line.partition("  # default: ")[0].partition(" = ") for line in out)
    values = {name: ast.literal_eval(value) for name, _, value in lines}
    again = config_loading.override(Config(), values)
    assert again == config_loading.load("configs/transformer_small.py:5m", {"corruption.level": "constant", "corruption.level.ratio": "0.5"})  # fmt: skip


def test_diff_of_slots_names_members_and_what_only_one_of_them_sets(capsys, tmp_path):
    changes = {"corruption.level": "constant", "generate.guidance.scale": "2"}
    config_loading.load("configs/transformer_small.py:5m", changes).save(tmp_path / "config.json")
    out = run(capsys, "config", "diff", "configs/transformer_small.py:5m", tmp_path).splitlines()
    assert out[:-1] == [
        "corruption.level = 'cosine' -> 'constant'", "corruption.level.floor = 0.7 -> None",
        "generate.guidance.scale = 3.0 -> 2.0", "corruption.level.ratio = None -> 1.0",
    ]  # fmt: skip


def test_show_takes_every_form_of_a_config_and_json(capsys, tmp_path):
    config = config_loading.load("configs/demo.py:transformer,smoke")
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
    config_loading.load("configs/demo.py:tokenizer", {"seed": "3", "data.buckets": "((9, 32, 32),)"}).save(
        tmp_path / "config.json"
    )
    out = run(capsys, "config", "diff", "configs/demo.py:tokenizer", tmp_path)
    before = config_loading.load("configs/demo.py:tokenizer").data.buckets
    assert out.splitlines() == [
        "seed = 0 -> 3",
        f"data.buckets = {before!r} -> ((9, 32, 32),)",
        f"# 2 of {len(flat(Config()))} fields differ: configs/demo.py:tokenizer -> {tmp_path}",
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


def test_help_of_a_slot_lists_its_members_with_their_settings(capsys):
    text = run(capsys, "help", "corruption.level")
    assert text == run(capsys, "help", "--config.corruption.level=uniform".removeprefix("--"))
    assert f"allowed  {' | '.join(Level.choices)}" in text and "default  'cosine'" in text
    for name, member in Level.choices.items():
        assert f"{name}: {member.__doc__.splitlines()[0]}" in " ".join(text.split())
    assert "    --config.corruption.level.ratio=1.0  share of a frame that is hidden" in text
    of_setting = run(capsys, "help", "corruption.level.floor")
    for member, default in (("cosine", 0.7), ("uniform", 0.0), ("normal", 0.7)):
        assert f"--config.corruption.level={member} --config.corruption.level.floor={default}" in of_setting
    assert "constant" not in of_setting
    assert "eta=0.0" in run(capsys, "help", "generate.sampler.eta")  # a setting of the family
    assert "did you mean corruption.level.floor?" in run(capsys, "help", "corruption.level.flor", code=2)


def test_help_knows_every_field_and_section(capsys):
    listed = run(capsys, "help")
    names = []
    for section in config_docs.sections():
        assert f"  {section.name} " in listed or all(field.name in listed for field in section.fields)
        text = run(capsys, "help", section.name) if section.name else listed
        for field in section.fields:
            names.append(field.name)
            names += [s.name for member in field.members if member.name == field.default for s in member.settings]
            meaning = field.comment or " | ".join(field.choices)
            assert meaning and " ".join(run(capsys, "help", field.name).split()).count(" ".join(meaning.split())) == 1
            assert not section.name or f"  {field.name} = {field.default!r}" in text
        assert all(len(line) <= 120 for line in text.splitlines())
        assert not section.name or section.about
    assert names == list(flat(Config())) and set(config_rules.CHOICES) <= set(names)


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
    "arguments, unused",
    [
        (["--help"], {"jax"}),
        (["--version"], {"jax"}),
        # Slots live beside the functions that they configure, so the schema needs JAX; no backend starts.
        (["help", "model"], set()),
        (["config", "show", "configs/demo.py:tokenizer"], set()),
    ],
)
def test_looking_imports_little_and_starts_no_backend(arguments, unused):
    code = (
        f"import sys; from lumos import cli; assert cli.main({arguments!r}) == 0; "
        f"bad = ({unused!r} | {{'orbax', 'grain', 'av'}}) & set(sys.modules); assert not bad, bad; "
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True)


def test_who_stops_reading_gets_no_traceback():
    command = f"{sys.executable} -m lumos train --help"
    done = subprocess.run(f"{command} | head -1", shell=True, capture_output=True, text=True, cwd=REPO)
    assert done.stdout == "flags of lumos train:\n" and done.stderr == ""
