"""One rate, from the data: through token manifests into the config of a run, its samples, its reports and what it is given."""

import json
from types import SimpleNamespace

import av
import jax
import numpy as np
import pytest
import tokens
from test_pipeline import make_config
from test_token_folder import FakeTokenizer, write_manifest
from test_video import numbered_video
from tokens import one_device  # noqa: F401

from lumos import config_loading, sharding
from lumos.config import DataConfig, ShapesConfig
from lumos.data import rates, sources
from lumos.data.index import index
from lumos.data.pipeline import make_pipeline
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.evaluation import subject
from lumos.slots import slot
from lumos.tokenizers.tokenize import tokenize
from lumos.training.held_out import HeldOut
from lumos.training.loop import train
from lumos.training.match_data import match_data
from lumos.videos.generator import Generator


def with_rate(folder, **entries):
    """Write a token folder whose manifest has these entries too."""
    manifest = json.loads((tokens.write_tokens(folder, num=8) / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | entries))
    return folder


def resolved(*folders, **changes):
    return match_data(tokens.run_config(",".join(map(str, folders)), **changes))


def rate_of(path) -> float:
    with av.open(str(path)) as video:
        return float(video.streams.video[0].average_rate)


def test_the_rate_of_a_transformer_is_that_of_its_tokens(tmp_path, caplog):
    assert resolved(with_rate(tmp_path / "a", fps=23.976)).generate.fps == 23.976
    # Manifests from before say only what was asked for; tokens made elsewhere may say nothing.
    assert resolved(with_rate(tmp_path / "b", data={"fps": 15.0})).generate.fps == 15
    assert resolved(with_rate(tmp_path / "c", fps=12.0, data={"fps": 0.0})).generate.fps == 12
    assert caplog.text == ""
    assert resolved(with_rate(tmp_path / "d", data={"fps": 0.0})).generate.fps == 8 and caplog.text == ""
    config = tokens.run_config(tmp_path, tokenizer_workdir="a tokenizer, so there will be videos")
    assert rates.with_rate_of_tokens(config, {"made elsewhere": 0.0}).generate.fps == 8
    assert "nothing says how many frames a second the clips have, so videos are written at 8" in caplog.text


def test_another_rate_that_was_asked_for_is_kept_and_said(tmp_path, caplog):
    """As in workdirs from before, whose config says 8.0 whatever their data were."""
    folder = with_rate(tmp_path / "a", fps=12.0)
    assert resolved(folder, generate__fps=12.1).generate.fps == 12.1 and caplog.text == ""
    assert resolved(folder, generate__fps=8.0).generate.fps == 8
    assert "config.generate.fps=8, but the frames a second of the clips are 12" in caplog.text


def test_tokens_of_several_rates_need_a_decision(tmp_path, caplog):
    a, b, c, d = (
        with_rate(tmp_path / name, fps=fps) for name, fps in (("a", 30.0), ("b", 29.97), ("c", 12.0), ("d", 0.0))
    )
    assert resolved(a, b, d).generate.fps == 30
    with pytest.raises(
        UserError, match=r"clips of different frames a second, 30 \(.*a\), 12 \(.*c\); make them at one"
    ):
        resolved(a, c)
    assert resolved(a, c, generate__fps=12.0).generate.fps == 12
    assert "read and written at 12" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence__layout": slot("lumos1", special_tokens=(4, 5, 6, 7, 8, 9, 10), visual_start=8900, number_zero=20)},
        {"text__template": "{caption} at {fps}"},
    ],
)
def test_the_rate_that_is_written_into_sequences_is_that_of_the_data(tmp_path, changes):
    common = changes | {"model__text_vocab": 9000}
    good, bad = with_rate(tmp_path / "a", fps=11.988), with_rate(tmp_path / "b", fps=24.0)
    resolved(good, **common)
    with pytest.raises(UserError, match=r"config.sequence.fps=12 is written .*24 .*; set config.sequence.fps=24, or"):
        resolved(bad, **common)
    assert resolved(bad, **common, sequence__fps=24).generate.fps == 24
    resolved(with_rate(tmp_path / "c"), **common)  # unknown
    # Where no sequence has it, it says nothing.
    resolved(bad)


@pytest.mark.parametrize("asked", [0.0, 6.0])
def test_a_token_folder_says_the_rate_of_its_clips(tmp_path, asked):
    for i in range(2):
        write_video(tmp_path / f"{i}.mp4", numbered_video(24, 32, 32), 15)
    write_video(tmp_path / "still.png", numbered_video(1, 32, 32), 1)
    index(tmp_path, tmp_path / "m.jsonl", DataConfig())
    config = make_config("clips", tmp_path / "m.jsonl", buckets=((5, 32, 32),), fps=asked)
    tokenizer = FakeTokenizer()
    tokenizer.codebook_size = config.codebook_size
    manifest = tokenize(config, tokenizer, tmp_path / "out", splits=("train",))
    assert manifest["fps"] == (asked or 15) and manifest["data"]["fps"] == asked
    tokens_config = make_config("tokens", tmp_path / "out", buckets=((2, 4, 4),))
    ((source, _),) = sources.open_sources(tokens_config, "train")
    assert source.fps == (asked or 15)


def test_clips_of_several_rates_give_their_median_and_a_warning(tmp_path, caplog):
    rows = [(24.0, 9), (24.0, 9), (30.0, 9), (30.0, 9), (30.0, 9), (60.0, 90), (1.0, 1)]
    write_manifest(tmp_path / "m.jsonl", {})
    lines = [
        {"path": str(i), "id": str(i), "caption": "", "fps": fps, "frames": n, "duration": n / fps, "width": 48, "height": 32, "split": "train"}
        for i, (fps, n) in enumerate(rows)
    ]  # fmt: skip
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = make_config("clips", tmp_path / "m.jsonl")
    for _ in range(2):
        with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
            assert pipeline.video_fps == 30
    assert caplog.text.count("clips of 24 to 60 frames a second keep their rates") == 1
    with make_pipeline(
        make_config("clips", tmp_path / "m.jsonl", fps=12.0), "train", process_index=0, process_count=1
    ) as pipeline:
        assert pipeline.video_fps == 12


def test_rates_agree_but_for_rounding():
    assert rates.agree([]) and rates.agree([0, 12]) and rates.agree([29.97, 30, 0]) and rates.agree([23.976, 24])
    assert not rates.agree([24, 25]) and not rates.agree([0, 12, 12.2])
    assert rates.common_rate("x", [0, 0]) == 0 and rates.common_rate("x", [0, 12.0, 12.0]) == 12


@pytest.mark.parametrize("asked, given, expected", [(0.0, 0.0, 15), (5.0, 0.0, 5), (5.0, 8.0, 8)])
def test_samples_of_a_tokenizer_play_at_the_rate_of_its_clips(tmp_path, asked, given, expected):
    for i in range(2):
        write_video(tmp_path / "clips" / f"{i}.mp4", numbered_video(24, 32, 32), 15)
    index(tmp_path / "clips", tmp_path / "m.jsonl", DataConfig())
    config = make_config(
        "clips", tmp_path / "m.jsonl", buckets=((5, 32, 32),), eval_split="train", fps=asked, batch_size=2
    )
    config = config_loading.override(config, {"task": "tokenizer", "generate.fps": given, "train.num_samples": 1})
    assert match_data(config).generate.fps == given  # saved as it is: another collection may be evaluated at its own
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    task = SimpleNamespace(
        samples=lambda params, batch: (batch["video"], ["a"]), evaluate_batch=lambda params, batch: {}
    )
    HeldOut(match_data(config), tmp_path / "run", mesh, task).sample(None, 1)
    assert rate_of(tmp_path / "run" / "samples" / "step_00000001" / "00.mp4") == expected


@pytest.mark.usefixtures("one_device")
def test_a_run_saves_the_rate_and_generation_reads_and_writes_at_it(tmp_path):
    folder = with_rate(tmp_path / "tokens", fps=6.0)
    train(tokens.run_config(folder, train__num_steps=1, train__checkpoint_every=1), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["generate"]["fps"] == 6
    with pytest.raises(UserError, match="config.generate.fps=0 is the rate of the data, which only training reads"):
        Generator.load(tmp_path / "run", {"generate.fps": "0"})


@pytest.mark.parametrize(
    "of_clips, of_tokens, expected", [(30.0, 12.0, 12.0), (12.0, 12.0, 12.0), (0.0, 12.0, 0.0), (30.0, 0.0, 30.0)]
)
def test_a_continuation_is_compared_with_clips_at_the_rate_of_the_tokens(
    tmp_path, monkeypatch, of_clips, of_tokens, expected
):
    """A tokenizer may have learnt from clips at another rate than that at which the tokens were made; its own rate (0) stays."""

    class Opened(Exception):
        pass

    def open_pipeline(config, *_, **__):
        raise Opened(config.data.fps)

    monkeypatch.setattr(subject, "make_pipeline", open_pipeline)
    config = tokens.run_config(with_rate(tmp_path / "tokens", fps=of_tokens), evaluate__num_given=1)
    tokenizer = SimpleNamespace(config=config.tokenizer)
    generator = SimpleNamespace(config=config, tokenizer=tokenizer, frame_size=(32, 32))
    with pytest.raises(Opened) as opened:
        next(subject.Subject(generator, make_config("clips", "m.jsonl", fps=of_clips)).real_batches(4))
    assert opened.value.args == (expected,)


def test_moving_shapes_have_a_rate(tmp_path):
    from lumos.data import moving_shapes

    moving_shapes.prepare(tmp_path, ShapesConfig(num_train=2, num_validation=0, num_test=0), (5, 32, 32), 0)
    config = make_config("moving_shapes", tmp_path, buckets=((5, 32, 32),))
    ((source, _),) = sources.open_sources(config, "train")
    assert source.fps == moving_shapes.FPS == 8 and np.array_equal(source.sizes, [(5, 32, 32)] * 2)
