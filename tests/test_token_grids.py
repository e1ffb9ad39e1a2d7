"""What a transformer run takes from the manifests of its tokens: grid, buckets, and the settings of their tokenizer."""

import dataclasses
import json

import pytest
import tiny
from test_order import go, ids
from test_pipeline import make_config
from test_pipeline import write_tokens as numbered
from tokens import NUM_CODES, one_device, run_config, write_tokens  # noqa: F401  (a fixture)

from lumos import config_loading
from lumos.config import TokenizerConfig
from lumos.config_upgrade import upgrade
from lumos.data.pipeline import make_pipeline
from lumos.data.text import instruct
from lumos.errors import UserError
from lumos.geometry import frame_size, num_frames, token_shape
from lumos.layouts import make_layout, timing
from lumos.runtime import metrics_writer
from lumos.training.loop import train
from lumos.training.match_data import grids_of, match_data

LARP = TokenizerConfig(body="holistic", clip=(9, 32, 48), num_queries=12, channels=32)
GROUPED = TokenizerConfig(composition="grouped", parts=2, temporal_compression=8, spatial_compression=16)


def folder(path, shape, tokenizer=None, buckets=(), fps=12.0):
    """Write a folder of 24 clips of a grid, whose manifest names the tokenizer where one is given."""
    numbered(path, range(24), shape)
    numbered(path, range(24), shape, split="validation")
    about = {"fingerprint": "none"} | ({"config": dataclasses.asdict(tokenizer)} if tokenizer else {})
    manifest = {"codebook_size": NUM_CODES, "grid": shape, "buckets": buckets, "tokenizer": about, "fps": fps}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def unset(path, **changes):
    return run_config(path, **{"sequence__grid": (0, 0, 0)} | changes)


@pytest.mark.slow
def test_a_run_takes_grid_and_buckets_from_its_tokens(tmp_path, one_device):  # noqa: F811
    tokens, losses = write_tokens(tmp_path / "tokens"), []
    for name, config in (("unset", unset(tokens)), ("set", run_config(tokens, data__buckets=((3, 4, 4),)))):
        train(config, tmp_path / name)
        losses.append([line["loss"] for line in metrics_writer.read(tmp_path / name, "train")])
        saved = json.loads((tmp_path / name / "config.json").read_text())
        assert saved["sequence"]["grid"] == [3, 4, 4] and saved["data"]["buckets"] == [[3, 4, 4]]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_tokens_without_places_are_one_frame_of_a_whole_clip(tmp_path):
    template = "{width}x{height}, {frames} frames at {fps}: {caption}"
    config = match_data(
        unset(folder(tmp_path / "t", (1, 1, 12), LARP, [(9, 32, 48)]), text__template=template, sequence__duration=0)
    )
    assert config.sequence.grid == (1, 1, 12) and config.data.buckets == ((1, 1, 12),) and config.tokenizer == LARP
    assert timing(config, 1) == (12, 1)  # 9 frames at 12 a second
    assert instruct(config, "a cat", (1, 1, 12)) == "48x32, 12 frames at 12: a cat"
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        assert next(pipeline)["tokens"].shape == (config.data.batch_size, 1, 1, 12)
    assert make_layout(config).content_index.shape == (1, 12)


def test_a_composed_quantiser_has_a_wide_grid_of_smaller_frames(tmp_path):
    config = match_data(
        unset(folder(tmp_path / "t", (3, 2, 8), GROUPED, [(17, 32, 64)]), text__template="{width}x{height} {caption}")
    )
    assert config.data.buckets == (config.sequence.grid,) == ((3, 2, 8),)
    assert instruct(config, "a cat", config.sequence.grid) == "64x32 a cat"
    assert timing(dataclasses.replace(config, sequence=dataclasses.replace(config.sequence, fps=4)), 5) == (4, 8)  # 33
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        assert next(pipeline)["tokens"].shape == (config.data.batch_size, 3, 2, 8)


@pytest.mark.parametrize("config", [LARP, GROUPED, TokenizerConfig(), TokenizerConfig(composition="layers", parts=2)])
def test_pixels_follow_from_the_grid(config):
    clip = (9, 32, 48)
    grid = token_shape(config, *clip)
    assert (num_frames(config, grid[0]), *frame_size(config, *grid[1:])) == clip


def test_every_grid_of_every_folder_is_a_bucket(tmp_path):
    a = folder(tmp_path / "a", (3, 4, 4), TokenizerConfig(), [(9, 32, 32), (1, 32, 32)])
    b = folder(tmp_path / "b", (2, 4, 8))
    config = match_data(unset(f"{a},{b}"))
    assert config.data.buckets == ((3, 4, 4), (1, 4, 4), (2, 4, 8)) and config.sequence.grid == (3, 4, 4)
    assert match_data(unset(f"{b},{a}")).data.buckets == ((2, 4, 8), (3, 4, 4), (1, 4, 4))
    assert match_data(run_config(f"{b},{a}")).data.buckets == ((3, 4, 4),)  # sequence.grid alone is given
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        seen = {next(pipeline)["tokens"].shape for _ in range(4)}
    assert seen == {(8, 3, 4, 4), (6, 2, 4, 8)}  # of equally many tokens
    shapes = [(9, 32, 32), (1, 32, 32), (9, 32, 32)]
    manifest = {"grid": [3, 4, 4], "buckets": shapes, "tokenizer": {"config": dataclasses.asdict(TokenizerConfig())}}
    assert grids_of(manifest) == [(3, 4, 4), (1, 4, 4)]
    assert grids_of(manifest | {"tokenizer": {"fingerprint": "x"}}) == [(3, 4, 4)]  # of a manifest that says no more


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sequence__grid": (4, 4, 4)}, r"holds token grids \(3, 4, 4\) .* config.sequence.grid=\(4, 4, 4\); set it to \(0, 0, 0\)"),
        ({"sequence__grid": (3, 8, 4)}, r"config.sequence.grid=\(3, 8, 4\); set it to \(0, 0, 0\)"),
        ({"data__buckets": ((9, 32, 32),)}, r"config.data.buckets=\(\(9, 32, 32\),\); set it to \(\) to take"),
        ({"data__buckets": ((2, 4, 4),), "sequence__grid": (3, 4, 4)}, "begins with another grid than config.sequence.grid"),
        ({"evaluate__num_given": 3}, r"num_given=3 must lie in \[0, 2\]"),
        ({"loss__frame_weights": (1.0,)}, "has 1 entries for 3 latent frames"),
        ({"sequence__layout": {"name": "compact", "block": (0, 3, 0)}}, r"does not divide the grid \(3, 4, 4\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_tokens_is_refused_in_one_line(tmp_path, changes, message):
    config = unset(folder(tmp_path / "t", (3, 4, 4)), **changes)
    with pytest.raises(UserError, match=message + "[^\\n]*$"):
        match_data(config)


def test_a_grid_that_nobody_knows_must_be_given():
    with pytest.raises(
        UserError, match=r"config.sequence.grid=\(0, 0, 0\) is the grid of the tokens.*; give it: latent"
    ):
        make_layout(tiny.transformer(sequence__grid=(0, 0, 0)))
    with pytest.raises(UserError, match="config.data.buckets is empty; give at least one"):
        make_pipeline(make_config("clips", "m.jsonl", buckets=()), "train", process_index=0, process_count=1)


# Runs from before ----------------------------------------------------------------------------------------------------


def before(tmp_path, **changes):
    """Return the fields of a config as earlier versions saved them: buckets of tokens in pixels."""
    old = tiny.transformer(**changes).to_dict()
    old["data"]["buckets"] = [[9, 32, 32], [5, 32, 48]]
    return json.loads(json.dumps(old))


def test_pixel_buckets_of_saved_configs_become_grids(tmp_path):
    old = before(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = config_loading.load(str(tmp_path / "config.json"))
    assert config.data.buckets == ((3, 4, 4), (2, 4, 6)) and config.sequence.grid == (3, 4, 4)
    assert upgrade(upgrade(old)) == upgrade(old) != old
    config.save(tmp_path / "config.json")
    assert config_loading.load(str(tmp_path / "config.json")) == config
    old["tokenizer"] |= {"temporal_compression": 8, "spatial_compression": 16}
    old["data"]["buckets"] = [[17, 64, 64]]
    assert upgrade(old)["data"]["buckets"] == [[3, 4, 4]]
    of_clips = before(tmp_path, data__source="clips")
    assert upgrade(of_clips)["data"] == of_clips["data"]
    for damaged in ([], [[9, 32]], [9], "9", [["a", 1, 2]], None):
        old["data"]["buckets"] = damaged
        assert upgrade(old)["data"]["buckets"] == damaged


def test_a_plan_of_pixel_buckets_goes_on_bit_for_bit(tmp_path, caplog):
    """The plan and the clips are those of a run whose config had data.buckets=((9, 32, 48),)."""
    clips = numbered(tmp_path / "t", range(40))
    stream = {"source": 0, "clips": 40, "share": 1.0, "start": 0}
    plan = {
        "first": 0, "seed": 0, "tokenizers": [None], "names": [f"{clips} (train)"],
        "kinds": [
            {"images": False, "weight": 0.7, "buckets": [{"shape": [9, 32, 48], "batch_size": 4, "streams": [stream]}]},
            {"images": True, "weight": 0.3, "buckets": [{"shape": [1, 32, 48], "batch_size": 12, "streams": [stream]}]},
        ],
    }  # fmt: skip
    seen = [30, 4, 5, 28, 24, 10, 21, 38, 22, 27, 37, 23, 20, 37, 18, 24, 26, 2, 13, 7, 29, 35, 8, 33, 19, 3, 0, 12]
    config = make_config("tokens", clips, buckets=((3, 4, 6),), batch_size=4, image_fraction=0.3)
    batches, saved = go(config, 5)
    assert saved["data_plan"] == plan and ids(batches) == seen
    later = ids(go(config, 3, 2, {"data_plan": plan})[0])
    assert later == ids(batches[2:])
    old = json.loads(json.dumps(config.to_dict()))  # of a checkpoint without a plan
    old["data"]["buckets"], old["sequence"]["grid"] = [[9, 32, 48]], [3, 4, 6]
    assert ids(go(config, 3, 2, {"config": old})[0]) == later
    assert "the batches from here on" not in caplog.text
