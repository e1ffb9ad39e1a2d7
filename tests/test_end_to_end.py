"""The whole path in its smoke size, and what must hold of it: resuming, refusing, reproducing."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from PIL import Image

from lumos import cli, config_loading
from lumos.data.records import RecordSource
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.evaluation import measures
from lumos.evaluation.subject import Subject
from lumos.runtime import metrics_writer
from lumos.tokenizers import pretrained
from lumos.tokenizers.tokenize import read_manifest, tokenize
from lumos.training.from_config import make_objective
from lumos.training.loop import train
from lumos.training.transformer_objective import TransformerObjective
from lumos.verbs import VERBS
from lumos.videos.generator import Generator

REPO = Path(__file__).resolve().parents[1]
# Programs that run a few times are compiled fast, not to be fast: see conftest.py.
ONE_DEVICE = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(REPO)}


def lumos(*arguments, cwd, check=True):
    """Run the command line in its own process, on one device as a user would."""
    result = subprocess.run(
        [sys.executable, "-m", "lumos", *map(str, arguments)], cwd=cwd, env=ONE_DEVICE, capture_output=True, text=True
    )
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished smoke demo in an otherwise empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    result = lumos("demo", "--workdir=demo", "--variant=smoke", cwd=folder)
    assert "contact sheet:" in result.stdout
    return folder / "demo"


def test_the_demo_writes_its_summary_report_and_videos(demo):
    summary = json.loads((demo / "summary.json").read_text())
    assert set(summary) >= {"seconds", "peak_rss_gb", "tokenizer", "prompt_accuracy", "generate", "versions"}
    assert set(summary["tokenizer"]) == {"psnr", "usage", "codebook_size"}
    assert set(summary["prompt_accuracy"]) == {"num_prompts", "colour", "shape", "direction"}
    assert summary["generate"]["tokens_per_s"] > 0
    page = (demo / "report" / "index.html").read_text()
    for video in (demo / "report" / "prompts").glob("*.mp4"):
        assert f"prompts/{video.name}" in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])  # the page of sweeps, with one row
    assert {"prompts/all_three", "likelihood/nll", "tokens/motion", "cost/passes"} <= set(data["scalars"])
    assert len(data["rows"]) == 1 and "drift/sharpness_frames" in data["curves"]
    assert Image.open(demo / "report" / "prompts.png").width > 100
    assert (demo / "transformer" / "samples" / "step_00000004" / "contact_sheet.png").exists()


@pytest.mark.slow
def test_generate_writes_every_kind_of_video(demo, tmp_path):
    run = demo / "transformer"
    lumos(
        "generate", f"--workdir={run}", "--prompt=a red circle moves left", f"--out={tmp_path}/a.mp4", cwd=demo.parent
    )
    with av.open(str(tmp_path / "a.mp4")) as video:
        assert video.streams.video[0].frames == 5
        assert "a red circle moves left" in video.metadata["comment"]
    lumos("generate", f"--workdir={run}", "--prompt=a", f"--out={tmp_path}/a.png", "--frames=1", cwd=demo.parent)
    assert Image.open(tmp_path / "a.png").size == (32, 32)
    lumos(
        "generate", f"--workdir={run}", "--prompt=a", "--prompt=b", f"--out={tmp_path}/two", "--frames=9",
        f"--image={tmp_path}/a.png", cwd=demo.parent,
    )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["000.mp4", "001.mp4"]
    # The second clip of a batch comes again, alone, by the command in its own metadata.
    with av.open(str(tmp_path / "two" / "001.mp4")) as video:
        facts = dict(line.split(": ", 1) for line in video.metadata["comment"].splitlines())
    assert (facts["prompt"], facts["seed"], facts["step"]) == ("b", "1", "4")
    program, *command = shlex.split(facts["command"])
    assert "--step=4" in command
    absent = lumos(
        "generate", f"--workdir={run}", "--step=3", "--prompt=a", f"--out={tmp_path}/x.mp4", cwd=tmp_path, check=False
    )
    assert absent.returncode == 2 and "no checkpoint of step 3" in absent.stderr and "there are [" in absent.stderr
    lumos(*command, cwd=tmp_path)
    assert program == "lumos"
    assert (tmp_path / "001.mp4").read_bytes() == (tmp_path / "two" / "001.mp4").read_bytes()
    with av.open(str(tmp_path / "two" / "000.mp4")) as video:
        assert video.streams.video[0].frames == 9
    lumos(
        "generate",
        f"--workdir={run}",
        f"--video={tmp_path}/a.mp4",
        f"--out={tmp_path}/c.gif",
        "--frames=13",
        cwd=demo.parent,
    )
    assert Image.open(tmp_path / "c.gif").n_frames == 13
    # Of a video as long as the clip to make, a latent frame less is taken; of one at twice the rate every other frame.
    generator = Generator.load(run)
    fps = generator.config.generate.fps
    assert len(generator.read_given(tmp_path / "a.mp4")) == 1 and len(generator.read_given(tmp_path / "a.mp4", 13)) == 5
    with av.open(str(tmp_path / "a.mp4")) as video:
        frame = next(video.decode(video=0)).to_ndarray(format="rgb24")
    write_video(tmp_path / "fast.mp4", np.stack([frame] * 18), 2 * fps)
    assert len(generator.read_given(tmp_path / "fast.mp4", 13)) == 9


@pytest.mark.slow
def test_pixels_of_a_clip_do_not_depend_on_the_clips_beside_it(demo):
    """Convolutions of a batch round otherwise than those of a clip alone, which an 8-bit pixel shows."""
    generator = Generator.load(demo / "transformer")
    together = generator.generate([f"clip {i}" for i in range(8)], seed=40, num_frames=9)
    for i in range(8):
        alone = generator.generate([f"clip {i}"], seed=40 + i, num_frames=9)
        np.testing.assert_array_equal(alone.videos[0], together.videos[i])
    frames = np.random.default_rng(0).integers(0, 256, (4, 5, 32, 32, 3), np.uint8)
    together = generator.generate(["a"] * 4, num_frames=9, given=frames)
    for i, given in enumerate(frames):
        alone = generator.generate(["a"], seed=i, num_frames=9, given=given)
        np.testing.assert_array_equal(alone.videos[0], together.videos[i])


def test_samples_of_later_steps_reuse_the_program_of_the_first(demo):
    run = demo / "transformer"
    generator = Generator.load(run)
    objective = make_objective(generator.config)
    text, _ = generator.text.encode("a red circle", generator.config.sequence.text_length)
    first, captions = objective.samples(generator.params, {"text": text[None]})
    opposite, compiled = jax.tree.map(lambda x: -x, generator.params), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **facts: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    again, _ = objective.samples(generator.params, {"text": text[None]})
    other, _ = objective.samples(opposite, {"text": text[None]})
    assert captions == ["a red circle"] and not compiled
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_cross_entropy_is_evaluated_in_batches_of_their_own_size(demo, monkeypatch):
    """A run that trains on batches of 256 must not evaluate with them."""
    seen = []
    generator = Generator.load(demo / "transformer", {"evaluate.batch_size": "8", "evaluate.num_clips": "16"})
    evaluate_rows = TransformerObjective.evaluate_rows

    def spy(self, params, batch, ratio):
        seen.append(batch["tokens"].shape[0])
        return evaluate_rows(self, params, batch, ratio)

    monkeypatch.setattr(TransformerObjective, "evaluate_rows", spy)
    assert generator.config.data.batch_size != 8
    metrics, _ = measures.likelihood(Subject(generator, generator.config))
    assert metrics["nll"].value > 0 and set(seen) == {8} and metrics["nll"].n == 16


@pytest.mark.slow
def test_evaluating_again_gives_the_same_numbers(demo, tmp_path):
    lumos("evaluate", f"--workdir={demo / 'transformer'}", f"--out={tmp_path}", cwd=demo.parent)
    again = json.loads((tmp_path / "results.jsonl").read_text())
    first = json.loads((demo / "report" / "results.jsonl").read_text())
    for results in (again, first):
        results["reconstruction"] = {k: v for k, v in results["reconstruction"].items() if not k.endswith("_per_s")}
    for key in ("reconstruction", "masked_cross_entropy", "prompt_accuracy", "prompt_accuracy_reconstructed"):
        assert again[key] == first[key]


def test_tokenizing_resumes_without_loss_or_duplicates(demo, tmp_path):
    config = config_loading.load(str(demo / "tokenizer" / "config.json"))
    tokenizer = pretrained.load(str(demo / "tokenizer"))

    def run(out, process_index=0, process_count=1):
        tokenize(config, tokenizer, out, clips_per_shard=5, process_index=process_index, process_count=process_count)

    run(tmp_path / "whole")
    # A killed run leaves finished shards and a partial file; two processes then share what is missing.
    run(tmp_path / "parts", 0, 2)
    with pytest.raises(UserError, match="unfinished"):
        read_manifest(tmp_path / "parts")
    done = sorted((tmp_path / "parts").glob("*.array_record"))
    done[-1].rename(str(done[-1]) + ".partial")
    run(tmp_path / "parts", 1, 2)
    run(tmp_path / "parts", 0, 2)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("*.array_record")}
    run(tmp_path / "parts")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("*.array_record")} == before

    def records(folder):
        return [r for r in RecordSource(sorted(folder.glob("train-*-of-*.array_record")))]

    whole, parts = records(tmp_path / "whole"), records(tmp_path / "parts")
    assert len(whole) == config.shapes.num_train == len({r["id"] for r in whole})
    for a, b in zip(whole, parts, strict=True):
        assert a["id"] == b["id"] and a["caption"] == b["caption"]
        np.testing.assert_array_equal(a["tokens"], b["tokens"])


@pytest.mark.slow
def test_tokens_of_another_tokenizer_are_refused(demo, tmp_path):
    lumos(
        "train", f"--config={demo / 'tokenizer' / 'config.json'}", f"--workdir={tmp_path / 'other'}", "--config.seed=5",
        "--config.train.num_steps=1", cwd=demo.parent,
    )  # fmt: skip
    config = config_loading.load(str(demo / "tokenizer" / "config.json"))
    wrong = config_loading.load(
        "configs/demo.py:transformer,smoke",
        {"data.path": str(demo / "tokens"), "tokenizer_workdir": str(tmp_path / "other")},
    )
    with pytest.raises(UserError, match="was made by tokenizer"):
        train(wrong, tmp_path / "run")
    with pytest.raises(UserError, match="holds other tokens"):
        tokenize(config, pretrained.load(str(tmp_path / "other")), demo / "tokens")


def test_tokens_of_another_grid_are_refused(demo, tmp_path):
    wrong = config_loading.load(
        "configs/demo.py:transformer,smoke",
        {"data.path": str(demo / "tokens"), "tokenizer_workdir": "", "sequence.grid": "(3, 4, 4)"},
    )
    with pytest.raises(UserError, match="set it to"):
        train(wrong, tmp_path / "run")


@pytest.mark.parametrize("task", ["transformer", pytest.param("tokenizer", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bit_for_bit(demo, tmp_path, task):
    """40 steps at once, and 20 + kill -9 + the rest, log identical losses at every step."""
    data = demo / ("tokens" if task == "transformer" else "moving_shapes")
    flags = [
        f"--config=configs/demo.py:{task},smoke", f"--config.data.path={data}", f"--config.tokenizer_workdir={demo / 'tokenizer'}",
        "--config.train.num_steps=40", "--config.train.log_every=1", "--config.train.checkpoint_every=20",
        "--config.train.eval_every=100", "--config.train.num_samples=1",
    ]  # fmt: skip
    lumos("train", *flags, f"--workdir={tmp_path}/whole", cwd=demo.parent)
    command = [sys.executable, "-m", "lumos", "train", *flags, f"--workdir={tmp_path}/parts"]
    process = subprocess.Popen(command, cwd=demo.parent, env=ONE_DEVICE, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "parts" / "checkpoints" / "20"
    deadline = time.monotonic() + 300
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lumos("train", *flags, f"--workdir={tmp_path}/parts", cwd=demo.parent)

    def losses(folder):
        return [
            (line["step"], line["loss"], line["grad_norm"]) for line in metrics_writer.read(tmp_path / folder, "train")
        ]

    assert len(losses("whole")) == 40
    assert losses("whole") == losses("parts")


def test_errors_are_one_line_with_exit_code_2(tmp_path):
    for arguments, message in (
        (["train"], "--config is missing"),
        (["trian"], "did you mean 'train'"),
        (["data", "lable"], "commands: data index"),
        (
            ["train", "--config=configs/demo.py", "--workdir=w", "--config.model.num_layer=2"],
            "did you mean 'num_layers'",
        ),
        (["generate", "--workdir=nowhere", "--prompt=a", "--out=a.mp4"], "not a training workdir"),
        (["train", "--config=configs/demo.py:transformer,smoke", "--workdir=w"], "demo/tokens"),
        (["evaluate", "stray", "--workdir=w", "--out=o"], "stray"),
    ):
        result = lumos(*arguments, cwd=tmp_path, check=False)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_flags_are_frozen(capsys):
    """A new flag is a decision: most settings belong into the config."""
    flags = {}
    for verb in VERBS:
        assert cli.main([*verb.split(), "--help"]) == 0
        flags[verb] = sorted(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE))
    assert flags == {
        "demo": ["config", "variant", "workdir"],
        "data index": ["captions", "config", "input", "keep", "out"],
        "data benchmark": ["input", "name", "out"],
        "data shapes": ["config"],
        "data record": ["actions", "clips", "frames", "game", "level", "out", "seed", "skip", "turn", "workers"],
        "findings list": [],
        "findings run": ["longer", "minutes", "name", "out", "smoke", "workers"],
        "findings report": ["out", "smoke"],
        "data vocab": ["config", "manifest", "out"],
        "data cut": ["cuts", "least", "manifest", "most", "out", "threads", "threshold"],
        "data filter": ["manifest", "near_duplicates", "out", "threads", "where"],
        "data label": ["keep", "out", "tokens", "workdir"],
        "data check": ["samples", "sheet", "tokens", "workdir"],
        "train": ["config", "dry_run", "fresh", "init_from", "profile_at", "workdir"],
        "replay": ["dump"],
        "tokenize": ["config", "out", "splits", "workdir"],
        "serve": ["host", "port", "seats", "workdir"],
        "stream": [
            "image",
            "out",
            "profile",
            "prompt",
            "resume",
            "save",
            "seconds",
            "seed",
            "switch",
            "video",
            "workdir",
        ],
        "generate": [
            "actions",
            "dtype",
            "frames",
            "image",
            "layout",
            "out",
            "prompt",
            "prompts",
            "samples_per_prompt",
            "seed",
            "step",
            "video",
            "weights",
            "workdir",
        ],
        "evaluate": ["dtype", "out", "prompts", "samples_per_prompt", "seed", "step", "weights", "what", "workdir"],
        "sweep": [
            "best",
            "dry_run",
            "dtype",
            "measure",
            "out",
            "prompts",
            "retry",
            "seeds",
            "set",
            "shard",
            "step",
            "watch",
            "weights",
            "workdir",
            "zip",
        ],
        "report": ["best", "dir", "out"],
        "export": ["dtype", "license", "report", "step", "to", "weights", "workdir"],
        "upload": ["folder", "private", "to"],
        "convert": ["dtype", "from", "ids", "input", "text", "to", "tokenizer"],
        "play": ["host", "port", "record", "seats", "seed", "speculate", "terminal", "workdir"],
        "plan": ["compile", "config", "for", "json", "search", "topology"],
        "launch": [
            "account",
            "array",
            "cluster",
            "devices_per_process",
            "dry_run",
            "image",
            "local",
            "max_restarts",
            "mounts",
            "name",
            "num_processes",
            "partition",
            "per",
            "qos",
            "queue",
            "sbatch",
            "service_account",
            "setup",
            "time_limit",
            "topology",
            "verb",
            "volume",
            "wheel",
        ],
        "info": ["json", "path"],
        "config show": ["config", "json"],
        "config diff": ["config", "json", "other"],
        "doctor": ["json", "workdir"],
        "completion": ["word"],
        "help": ["field"],
    }
