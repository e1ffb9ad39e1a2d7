import dataclasses
import math
from pathlib import Path

import jax
import pytest

import lumos
from lumos import config_docs, config_loading, sharding
from lumos.errors import UserError
from lumos.layouts import make_layout
from lumos.model.transformer import make_definition
from lumos.training.from_config import make_objective

CONFIGS = {
    "benchmarks.py": ("bair,tokenizer", "kinetics600,transformer"),
    "demo.py": ("tokenizer", "transformer"),
    "endless.py": ("tokenizer", "frames", "transformer"),
    "generation_by_tokenizer.py": tuple(
        f"{t},{k}" for t in ("fsq", "larp_prior") for k in ("tokenizer", "transformer")
    ),
    "lumos_1b.py": ("", "lumos1", "wide"),
    "lumos_3b.py": ("", "wide"),
    "lumos_500m.py": ("", "wide"),
    "moving_shapes_1h.py": ("tokenizer", "transformer"),
    "real_clips.py": ("tokenizer", "transformer"),
    "tokenizer_dv4x8x8.py": ("",),
    "tokenizer_quantizers.py": ("fsq", "lfq", "bsq", "vq", "simvq", "ibq"),
    "tokenizer_sizes.py": ("xs", "s", "m", "b"),
    "tokenizer_stages.py": ("images", "joint"),  # the other variants need weights that are not dependencies
    "transformer_small.py": ("1m", "5m", "20m", "100m"),
    "world_ale.py": ("tokenizer", "transformer"),
    "world_vizdoom.py": ("tokenizer", "transformer"),
}
VARIANTS = [(name, variant) for name, variants in CONFIGS.items() for variant in variants]


def test_every_shipped_config_is_listed_here():
    assert sorted(p.name for p in (Path(lumos.__file__).parent / "configs").glob("*.py")) == sorted(CONFIGS)


def _load(name, *variants):
    variant = ",".join(filter(None, variants))
    config = config_loading.load(f"configs/{name}:{variant}")
    model = config.model
    model = dataclasses.replace(
        model, text_vocab=model.text_vocab or 512, visual_vocab=model.visual_vocab or config.codebook_size
    )
    sequence = config.sequence
    if not any(sequence.grid):  # that of the tokens
        sequence = dataclasses.replace(sequence, grid=(3, 6, 6))
    return dataclasses.replace(config, model=model, sequence=sequence)


@pytest.mark.fast(
    "demo.py-tokenizer", "demo.py-transformer", "endless.py-transformer", "lumos_1b.py-", "lumos_3b.py-", "real_clips.py-transformer",
    "tokenizer_dv4x8x8.py-", "tokenizer_stages.py-joint", "tokenizer_quantizers.py-lfq", "transformer_small.py-5m", "world_ale.py-transformer",
    "lumos_500m.py-", "world_vizdoom.py-transformer", "benchmarks.py-kinetics600,transformer", "generation_by_tokenizer.py-larp_prior,tokenizer", "moving_shapes_1h.py-transformer",
)  # fmt: skip
@pytest.mark.parametrize("name, variant", VARIANTS)
def test_every_config_describes_a_model_and_has_a_smaller_smoke_variant(name, variant):
    full, smoke = make_objective(_load(name, variant)), make_objective(_load(name, variant, "smoke"))
    assert smoke.definition.num_params <= full.definition.num_params
    assert smoke.flops_per_step() < full.flops_per_step() / 10


@pytest.mark.parametrize("name", CONFIGS)
def test_a_word_that_a_config_does_not_know_is_refused(name):
    """It would be dropped in silence: `transformer,smok` would be the full run."""
    words = f"{CONFIGS[name][0]},smok"
    with pytest.raises(UserError, match="smok"):
        config_loading.load(f"configs/{name}:{words.lstrip(',')}")


def test_the_default_variant_may_be_named():
    assert config_loading.load("configs/tokenizer_sizes.py:s") == config_loading.load("configs/tokenizer_sizes.py")


@pytest.mark.parametrize(
    "name", ["tokenizer_stages.py:highres", "tokenizer_stages.py:adversarial", "tokenizer_quantizers.py:vq,gan"]
)
def test_stages_that_need_metric_weights_parse_and_have_a_smoke_variant_without(name):
    full, smoke = config_loading.load(f"configs/{name}"), config_loading.load(f"configs/{name},smoke")
    assert full.perceptual.weight > 0
    objective = make_objective(smoke)
    assert not smoke.perceptual.weight and objective.adversarial == ("highres" not in name)
    assert objective.groups is not None  # something is frozen, or the discriminator has its own optimizer


@pytest.mark.parametrize("name, billions", [("lumos_500m.py", 0.509), ("lumos_1b.py", 1.504), ("lumos_3b.py", 3.615)])
def test_parameter_counts_of_the_released_sizes(name, billions):
    config = _load(name, "lumos1")
    layout = make_layout(config)
    assert layout.vocabulary.size == 129_536
    assert {len(group) for group in layout.groups} == {32 * 57 + 4}
    count = make_definition(config.model, layout.vocabulary).num_params
    assert math.isclose(count / 1e9, billions, abs_tol=1e-3)


@pytest.mark.parametrize("name", ["lumos_500m.py", "lumos_1b.py", "lumos_3b.py"])
def test_wide_layers_hold_as_many_parameters(name):
    def in_layers(variant):
        config = _load(name, variant)
        return make_definition(config.model, make_layout(config).vocabulary).abstract["layers"]

    deep, wide = (sum(x.size for x in jax.tree.leaves(in_layers(variant))) for variant in ("", "wide"))
    assert abs(wide / deep - 1) < 0.1 and _load(name, "wide").model.head_dim == 256


@pytest.mark.parametrize("variant, millions", [("1m", 1), ("5m", 5), ("20m", 20), ("100m", 100)])
def test_small_sizes_have_the_parameters_they_are_named_after(variant, millions):
    objective = make_objective(_load("transformer_small.py", variant))
    assert 0.75 < objective.definition.num_params / 1e6 / millions < 1.25


def test_the_cosmos_shape_has_its_parameter_count():
    assert make_objective(_load("tokenizer_dv4x8x8.py")).definition.num_params == 104_669_558


@pytest.mark.parametrize(
    "override, message",
    [
        ({"data.buckets": "((5, 8, 64),)"}, "SSIM needs frames of at least 11x11"),
        ({"data.buckets": "((5, 32, 32),)", "perceptual.net": "alex", "perceptual.weight": "1"}, "at least 34x34"),
        ({"data.buckets": "((9, 24, 24),)", "evaluate.networks": "('alex',)"}, "at least 31x31"),
        (
            {"tokenizer.temporal_compression": "16", "data.buckets": "((17, 64, 64),)"},
            "at least 4 entries.*time 2 times",
        ),
        ({"tokenizer.spatial_compression": "32"}, "at least 4 entries.*halved 3 times"),
        ({"data.buckets": "((16, 64, 64),)"}, r"1 \+ 4k"),
        ({"data.buckets": "((17, 60, 64),)"}, "spatial compression 8"),
        ({"data.buckets": "()"}, "is empty; give at least one"),
        ({"tokenizer.part_drop": "0.5"}, "composition 'residual' or 'layers'"),
        ({"tokenizer.num_queries": "9"}, "num_queries is for body 'holistic'"),
    ],
)
def test_what_a_tokenizer_cannot_be_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        config_loading.load("configs/tokenizer_sizes.py:xs", override)


@pytest.mark.parametrize(
    "override, message",
    [
        ({"model.num_layer": "3"}, "did you mean 'num_layers'"),
        ({"model.head_dim": "48"}, "multiple of 32"),
        ({"data.buckets": "((5, 8),)"}, "must have 3 entries"),
        ({"data.buckets": "((0, 8, 8),)"}, "must be at least 1"),
        ({"sequence.grid": "(0, 8, 8)"}, "at least 1 latent frame, row and column, or"),
        ({"model.num_layers": "many"}, "expected int"),
        ({"model.num_layers": "2.5"}, "must be int"),
        ({"model": "3"}, "is a section"),
        ({"corruption.cells": "tubes"}, "did you mean 'tube'"),
        ({"sequence.layout": "lumos1", "sequence.grid": "(2, 6, 8)"}, "multiples of 4"),
        ({"model.num_kv_heads": "3"}, "multiple of config.model.num_kv_heads"),
        ({"corruption.level.floor": "1.5"}, r"\[0, 1\]"),
        ({"tokenizer.levels": "(8, 1)"}, "at least 2"),
        ({"train.accumulation": "3"}, "not divisible"),
        ({"generate.fps": "-1"}, "generate.fps=-1.0 must be at least 0"),
        ({"generate.sampler": "released", "generate.top_k": "5"}, "top_k must be 0"),
        ({"corruption.cells": "clip", "corruption.frames": "independent"}, "choose frames='shared'"),
        ({"sequence.attention": "local_global", "sequence.attention.every": "4"}, "must be a multiple of 4"),
        ({"sequence.targets": "next"}, r"set config.corruption.level=slot\('constant', ratio=0.0\)"),
        ({"model.head": "axes"}, "'neighbours' needs and no other"),
        ({"sequence.layout.block": "(1, 3, 0)"}, r"block=\(1, 3, 0\) does not divide the grid \(5, 8, 8\)"),
        ({"loss.frame_weights": "(1.0,)"}, "has 1 entries for 5 latent frames"),
    ],
)
def test_bad_values_are_one_line_errors(override, message):
    with pytest.raises(UserError, match=message) as caught:
        config_loading.load("configs/transformer_small.py:5m", override)
    assert "\n" not in str(caught.value)


def test_missing_files_and_variants_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="shipped configs: configs/benchmarks.py, configs/demo.py"):
        config_loading.load("configs/nowhere.py")
    with pytest.raises(UserError):
        config_loading.load("configs/transformer_small.py:6m")
    typo = tmp_path / "typo.py"
    typo.write_text(
        "from lumos import config_loading\n\ndef get_config():\n    c = config_loading.default()\n    c.model.num_layer = 3\n    return c\n"
    )
    with pytest.raises(UserError, match="num_layers"):
        config_loading.load(str(typo))


def test_a_saved_config_loads_to_the_same_config(tmp_path):
    config = config_loading.load("configs/demo.py:tokenizer", {"seed": "7", "optimizer.learning_rate": "1"})
    config.save(tmp_path / "config.json")
    assert config_loading.load(str(tmp_path / "config.json")) == config
    assert config.seed == 7 and config.optimizer.learning_rate == 1.0


# Fields of sections; what members of slots set comes on top (docs/design.md says why so many).
MOST_FIELDS, MOST_SETTINGS, MOST_ESSENTIAL = 206, 150, 60


def test_the_schema_is_small_and_every_field_is_read():
    fields = [field for section in config_docs.sections() for field in section.fields]
    settings = [setting for field in fields for member in field.members for setting in member.settings]
    assert len(fields) <= MOST_FIELDS and len(settings) <= MOST_SETTINGS
    assert len(config_docs.ESSENTIAL) <= MOST_ESSENTIAL and set(config_docs.ESSENTIAL) <= {
        field.name for field in fields
    }
    root = Path(lumos.__file__).parent
    files = [p for p in root.rglob("*.py") if p.name != "config.py"] + list((root / "tokenizers").glob("*.py"))
    code = "\n".join(p.read_text() for p in files)
    unread = {field.name for field in fields + settings if f".{field.name.rpartition('.')[2]}" not in code}
    assert unread <= {f"mesh.{axis}" for axis in sharding.MESH_AXES}  # read by name


def test_no_devices_are_needed_to_describe_a_large_model():
    before = len(jax.live_arrays())
    make_objective(_load("lumos_3b.py"))
    assert len(jax.live_arrays()) <= before + 8


def test_the_config_reference_is_up_to_date():
    page = Path(lumos.__file__).parents[1] / "docs" / "config.md"
    assert page.read_text() == config_docs.render(), "run: python -m lumos.config_docs > docs/config.md"
    assert not [line for line in page.read_text().splitlines() if line.endswith("|  |")]  # every field has a meaning
