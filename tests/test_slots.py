"""Config fields that hold one of several members: in files, on the command line, saved and loaded, and from before there were any."""

import dataclasses
import json
import typing

import pytest

from lumos import config_loading
from lumos.config import Config, DataConfig
from lumos.config_docs import sections
from lumos.errors import UserError
from lumos.generation.guidance import NoGuidance, TextGuidance
from lumos.generation.released import Released
from lumos.generation.sampler import Confidence, RandomOrder
from lumos.sequence.arrangement import Compact, Planes
from lumos.sequence.corruption import Constant, Cosine, Independent, Level, PerFrame, Shared, Tube, Uniform
from lumos.sequence.lumos1 import Lumos1
from lumos.slots import Slot, slot

SMALL = "configs/transformer_small.py:5m"
LEVELS = ", ".join(Level.choices)
MEMBERS = [(f, m) for section in sections() for f in section.fields for m in f.members]


def _write(tmp_path, *lines):
    path = tmp_path / "mine.py"
    body = "\n".join(f"    {line}" for line in ("c = config_loading.default()", 'c.data.source = "tokens"', *lines))
    head = "from lumos import config_loading\nfrom lumos.slots import slot\n\n\ndef get_config():\n"
    path.write_text(f"{head}{body}\n    return c\n")
    return str(path)


def _value(config, dotted):
    for name in dotted.split("."):
        config = getattr(config, name)
    return config


def test_a_file_names_a_member_and_the_settings_that_differ(tmp_path):
    path = _write(
        tmp_path, 'c.corruption.level = slot("uniform", floor=0.2)', "c.generate.guidance.scale = 2", 'c.sequence.layout = slot("planes")'
    )  # fmt: skip
    config = config_loading.load(path)
    assert config.corruption.level == Uniform(floor=0.2) and config.sequence.layout == Planes()
    assert config.generate.guidance == TextGuidance(scale=2.0)
    assert config_loading.load(path, {"corruption.level.floor": "0.3"}).corruption.level == Uniform(floor=0.3)
    assert config_loading.load(path, {"corruption.level": "cosine"}).corruption.level == Cosine()


@pytest.mark.parametrize(
    "line, message",
    [
        ('c.corruption.level = slot("cosin")', "config.corruption.level='cosin'; did you mean 'cosine'?"),
        ('c.corruption.level = slot("linear")', f"allowed: {LEVELS}"),
        ('c.corruption.level = slot("cosine", flor=1.0)', "unknown field 'flor' in config.corruption.level; did you mean"),
        ('c.corruption.level = slot("cosine", floor="x")', "config.corruption.level.floor must be float, got str 'x'"),
        ('c.corruption.level = slot("cosine", floor=2.0)', r"config.corruption.level: floor=2.0 must lie in \[0, 1\]"),
        ('c.corruption.level = "cosine"', "mine.py:8: TypeError"),
        ("c.corruption.level.ratio = 0.5", "mine.py:8: .*ratio"),
        ("c.corruption.level = slot(0.5)", r"config.corruption.level must be slot\(name, ...\), got .*; names: cosine"),
    ],
)  # fmt: skip
def test_mistakes_in_files_are_one_line_errors(tmp_path, line, message):
    with pytest.raises(UserError, match=message) as caught:
        config_loading.load(_write(tmp_path, line))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides, dotted, want",
    [
        ({"corruption.level": "constant"}, "corruption.level", Constant()),
        ({"corruption.level.floor": "0.5"}, "corruption.level", Cosine(floor=0.5)),
        ({"corruption.level": "constant", "corruption.level.ratio": "0.5"}, "corruption.level", Constant(ratio=0.5)),
        ({"corruption.level.ratio": "0.5", "corruption.level": "constant"}, "corruption.level", Constant(ratio=0.5)),
        ({"generate.sampler.eta": "1", "generate.sampler": "random"}, "generate.sampler", RandomOrder(eta=1.0)),
        ({"sequence.layout.block": "(1, 2, 0)"}, "sequence.layout", Compact(block=(1, 2, 0))),
    ],
)
def test_overrides_name_a_member_and_its_settings_in_any_order(overrides, dotted, want):
    assert _value(config_loading.load(SMALL, overrides), dotted) == want


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"corruption.level": "cosin"}, "config.corruption.level='cosin'; did you mean 'cosine'?"),
        ({"corruption.level": "0.5"}, f"config.corruption.level='0.5'; allowed: {LEVELS}"),
        (
            {"corruption.level.flor": "1"},
            "'corruption.level.flor': 'cosine' has no such setting; did you mean 'floor'?",
        ),
        (
            {"corruption.level.ratio": "1"},
            "'cosine' has no such setting; of constant: add --config.corruption.level=constant",
        ),
        ({"corruption.level.floor.x": "1"}, "config.corruption.level.floor has no fields"),
        ({"corruption.level.floor": "low"}, "--config.corruption.level.floor=low: expected float like 0.7"),
        ({"corruption.level.name": "uniform"}, "unknown config field 'corruption.level.name'"),
        ({"optimizer": "sgd"}, "--config.optimizer is a section; set one of its fields: beta1"),
    ],
)
def test_mistakes_in_overrides_are_one_line_errors(overrides, message):
    with pytest.raises(UserError) as caught:
        config_loading.load(SMALL, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("field, member", MEMBERS, ids=[f"{f.name}-{m.name}" for f, m in MEMBERS])
def test_every_member_comes_back_as_it_was_saved(tmp_path, field, member):
    """What members need of one another is not checked for tokenizer runs."""
    config = config_loading.override(
        Config(task="tokenizer", data=DataConfig(buckets=((5, 32, 32),))), {field.name: member.name}
    )
    value = _value(config, field.name)
    assert isinstance(value, Slot) and value.name == member.name
    settings = {setting.name.rpartition(".")[2]: setting.default for setting in member.settings}
    assert {f.name: getattr(value, f.name) for f in dataclasses.fields(value)} == settings
    config.save(tmp_path / "config.json")
    assert config_loading.load(str(tmp_path / "config.json")) == config
    assert (
        config_loading.override(config, {s.name: repr(s.default) for s in member.settings if s.kind != "str"}) == config
    )


def test_every_family_of_the_schema_has_members_and_a_default_among_them():
    families = set()
    for section in typing.get_type_hints(Config).values():
        if dataclasses.is_dataclass(section):
            kinds = typing.get_type_hints(section).values()
            families |= {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Slot)}
    assert len(families) == len({field.name for field, _ in MEMBERS}) == 23
    assert all(field.default in field.choices and len(field.choices) > 1 for field, _ in MEMBERS)


def test_two_members_of_a_name_are_refused():
    class Family(Slot):
        pass

    class One(Family, name="one"):
        pass

    with pytest.raises(ValueError, match="two members of Family are called 'one'"):
        type("Other", (Family,), {}, name="one")
    assert Family.choices == {"one": One} and "one" not in Cosine.choices


# --- configs of earlier versions ----------------------------------------------------------------------------------

# As they were saved: the defaults, lumos_1b:lumos1, the transformer of the demo (diffusion forcing).
_SEQUENCE = {
    "style": "compact", "text_length": 24, "grid": [5, 8, 8], "fps": 12, "duration": 2, "size_unit": 4, "visual_start": 65536,
    "number_zero": 8804, "special_tokens": [],
}  # fmt: skip
_CORRUPTION = {"level": "cosine", "floor": 0.7, "temporal": "shared", "spatial": "tube", "text_drop": 0.1}
_GENERATE = {
    "steps": 16, "guidance": 3.0, "temperature": 1.0, "history_ratio": 0.7, "top_k": 0, "mode": "paper", "fps": 0.0,
}  # fmt: skip


def _old(tmp_path, *, sequence=(), corruption=(), generate=(), **sections):
    values = {
        "name": "old", "task": "transformer", "data": {"source": "tokens"}, "sequence": _SEQUENCE | dict(sequence),
        "corruption": _CORRUPTION | dict(corruption), "generate": _GENERATE | dict(generate), **sections,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    config = config_loading.load(str(path))
    config.save(path)
    assert config_loading.load(str(path)) == config  # what is upgraded stays as it is
    return config


def test_old_defaults_are_todays_defaults(tmp_path):
    sequence = dataclasses.replace(Config().sequence, grid=(5, 8, 8))  # which tokens decide today
    today = Config(name="old", data=DataConfig(source="tokens"), sequence=sequence)
    assert _old(tmp_path) == today


def test_an_old_lumos1_run_keeps_its_token_ids(tmp_path):
    config = _old(
        tmp_path,
        sequence={"style": "lumos1", "grid": [7, 32, 56], "text_length": 256},
        generate={"steps": 50, "guidance": 15.0, "mode": "reference"},
    )
    assert config.sequence.layout == Lumos1() and config.sequence.grid == (7, 32, 56)
    assert config.generate.guidance == TextGuidance(scale=15.0) and config.generate.sampler == Released()
    special = [1, 2, 3, 4, 5, 6, 7]
    mine = {"style": "lumos1", "size_unit": 2, "visual_start": 900, "number_zero": 20, "special_tokens": special}
    layout = _old(tmp_path, sequence=mine).sequence.layout
    assert layout == Lumos1(size_unit=2, visual_start=900, number_zero=20, special_tokens=tuple(special))


def test_an_old_run_of_diffusion_forcing_keeps_its_masks(tmp_path):
    config = _old(
        tmp_path,
        corruption={"level": "uniform", "floor": 0.0, "temporal": "independent", "spatial": "frame"},
        generate={"guidance": 1.0, "history_ratio": 0.0, "temperature": 2.0},
    )
    c = config.corruption
    assert (c.level, c.frames, c.cells) == (Uniform(), Independent(), PerFrame()) and c.text_drop == 0.1
    assert config.generate.sampler == Confidence(temperature=2.0)
    assert config.generate.guidance.branches() == NoGuidance().branches()


@pytest.mark.parametrize("level, floor, want", [("constant", 0.4, 0.4), ("full", 0.4, 1.0)])
def test_old_constant_levels(tmp_path, level, floor, want):
    c = _old(tmp_path, corruption={"level": level, "floor": floor}).corruption
    assert (c.level, c.frames, c.cells) == (Constant(ratio=want), Shared(), Tube())


def test_an_old_choice_of_decay_is_kept(tmp_path):
    assert _old(tmp_path, optimizer={"name": "adamw"}).optimizer.decay == "all"
    assert _old(tmp_path, optimizer={"name": "adamw", "decay": "matrices"}).optimizer.decay == "matrices"


def test_slot_is_the_name_and_the_settings():
    assert slot("window", width=3).to_dict() == {"name": "window", "width": 3}
