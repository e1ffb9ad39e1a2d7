"""The Python API: cheap to import, and the same results as the command line and the parts it is made of."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tokens
from runs import write_runs
from tokens import one_device  # noqa: F401  a fixture

import lumos
from lumos import cli, sharding
from lumos.data.pipeline import make_pipeline
from lumos.data.text import DEFAULT_MODEL
from lumos.errors import UserError
from lumos.generation.policy import CachePolicy
from lumos.info.kinds import describe
from lumos.release.export import export
from lumos.training import loop
from lumos.training.match_data import match_data
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos import video_files
from lumos.weights import release

REPO = Path(__file__).resolve().parents[1]
MAKE_MESH = sharding.make_mesh  # on all eight devices
PROMPTS = ["a red circle moves left", "a blue square"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"), steps=(2, 3))


@pytest.fixture(scope="module")
def model(run, one_device):  # noqa: F811
    return lumos.load(run, overrides={"evaluate.batch_size": 8})


@pytest.fixture(scope="module")
def made(model):
    return model.generate(PROMPTS, seed=3)


def test_importing_lumos_imports_nothing_heavy():
    code = "import sys, lumos; assert not {'jax', 'numpy', 'absl'} & set(sys.modules); print(lumos.__all__)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True, text=True).stdout
    assert all(name in shown for name in ("load", "train", "data", "Session"))
    for name in lumos.__all__:
        assert getattr(lumos, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'lod'; it has"):
        lumos.lod  # noqa: B018


def test_help_is_there_at_once():
    """Within the processor time of six starts of Python itself (0.15 s where one takes 25 ms); the best of a few, in turns, of a
    machine whose speed changes."""

    def seconds(*arguments):
        code = f"import resource, subprocess, sys\nsubprocess.run([sys.executable, *{arguments!r}], check=True, capture_output=True)\n"
        code += "u = resource.getrusage(resource.RUSAGE_CHILDREN)\nprint(u.ru_utime + u.ru_stime)"
        return float(subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True).stdout)

    help_page, python = zip(*((seconds("-m", "lumos", "--help"), seconds("-c", "pass")) for _ in range(4)))
    assert min(help_page) < 6 * min(python)


def test_a_loaded_model_is_the_generator_of_the_command_line(run, model, made, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(video_files, "write_video", lambda path, video, fps, facts: written.append(video))
    assert (
        cli.main(["generate", f"--workdir={run}", f"--prompt={PROMPTS[0]}", "--seed=3", f"--out={tmp_path}/clip.mp4"])
        == 0
    )
    np.testing.assert_array_equal(written, made.videos[:1])
    assert model.step == 3 and lumos.load(run, step="best").step == 2
    assert {x.dtype for x in jax.tree.leaves(lumos.load(run, dtype="bfloat16").params)} == {jax.numpy.dtype("bfloat16")}


def test_one_text_is_one_prompt(model, made):
    np.testing.assert_array_equal(model.generate(PROMPTS[0], seed=3).tokens, made.tokens[:1])


def test_frames_come_as_they_are_made(model, made):
    frames = list(model.stream(PROMPTS, seed=3))
    assert [x.shape[1] for x in frames] == [1, 4, 4] and frames[0].dtype == np.uint8
    assert np.abs(np.concatenate(frames, axis=1).astype(int) - made.videos).max() <= 1


@pytest.mark.slow
def test_a_stream_goes_on_after_given_frames_and_beyond_the_trained_length(model, made):
    given = made.videos[0, :1]
    rest = list(model.stream(PROMPTS, seed=3, given=given))
    kept = model.tokenizer.decode(model.tokenizer.encode(given[None]))
    assert [x.shape[1] for x in rest] == [1, 4, 4] and np.abs(rest[0].astype(int) - kept).max() <= 1
    bounded = dataclasses.replace(model.config.generate, cache=CachePolicy.choices["window"](width=2))
    assert sum(x.shape[1] for x in model.stream(PROMPTS[0], num_frames=21, settings=bounded)) == 21
    with pytest.raises(UserError, match="the cache 'full' ends at 3 latent frames"):
        list(model.stream(PROMPTS[0], num_frames=21))


def test_a_score_is_the_cross_entropy_of_a_clip_alone(model, made):
    both = model.score(made.videos, PROMPTS)
    alone = [model.score(video, prompt) for video, prompt in zip(made.videos, PROMPTS)]
    np.testing.assert_array_equal(both.frame_nll, np.concatenate([score.frame_nll for score in alone]))
    text, length = model.encode_prompts(PROMPTS[1:])
    batch = {"tokens": model.tokenizer.encode(made.videos[1:]), "text": text, "text_length": length}
    evaluate = jax.jit(TransformerObjective(model.config).evaluate_rows)
    sums = evaluate(model.params, batch, model.config.evaluate.mask_ratio)
    nll, count = (np.asarray(sums[name]) for name in ("nll", "count"))
    np.testing.assert_allclose(both.nll[1], nll.sum() / count.sum(), rtol=1e-5)
    assert both.nll.shape == (2,) and ((0 <= both.accuracy) & (both.accuracy <= 1)).all()
    assert both.nll[0] != model.score(made.videos[0], "a green triangle").nll[0]


@pytest.mark.slow
def test_scores_and_streams_on_a_mesh(run, model, made, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", MAKE_MESH)
    spread = lumos.load(run, mesh={"fsdp": 8})
    assert spread.mesh.size == 8 and model.mesh.size == 1
    np.testing.assert_allclose(spread.score(made.videos, PROMPTS).nll, model.score(made.videos, PROMPTS).nll, rtol=1e-5)
    frames = np.concatenate(list(spread.stream(PROMPTS[0], seed=3)), axis=1)
    assert np.abs(frames.astype(int) - made.videos[:1]).max() <= 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.score(np.zeros((9, 16, 16, 3), np.uint8), "a"), r"give tokens .* pixels"),
        (lambda m: m.score(np.zeros((2, 9, 32, 32, 3), np.uint8), ["a"]), "2 clips but 1 prompts"),
        (lambda m: m.score(np.zeros((9, 32, 32, 3), np.uint8), "a", mask_ratio=0.0), "mask_ratio=0.0 must be above 0"),
        (lambda m: m.stream("a", given=np.zeros((9, 32, 32, 3), np.uint8)), "9 given frames are the whole clip"),
    ],
)
def test_what_cannot_be_scored_or_streamed(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)


def test_what_cannot_be_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", MAKE_MESH)
    for path, options, message in (
        (tmp_path, {}, "not a training workdir"),
        (run.parent / "tokenizer", {}, "load it with lumos.load_tokenizer"),
        (run, {"step": 7}, "no checkpoint of step 7"),
        (run, {"step": "all"}, "names 2 checkpoints; give one"),
        (run, {"mesh": {"fsdp": 3}}, "does not fit 8 devices"),
        (run, {"mesh": {"data": 8}}, "unknown config field 'mesh.data'"),
    ):
        with pytest.raises(UserError, match=message):
            lumos.load(path, **options)


def test_the_tokenizer_alone(run, made):
    tokenizer = lumos.load_tokenizer(run.parent / "tokenizer")
    np.testing.assert_array_equal(tokenizer.decode(made.tokens[:1]), made.videos[:1])
    with pytest.raises(UserError, match="not a tokenizer"):
        lumos.load_tokenizer(run)


def test_training_from_python_and_from_the_command_line_is_one_call(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        loop, "train", lambda config, workdir, **options: calls.append((config, workdir, options)) or {"nll": 1.0}
    )
    tiny.transformer(data__path="x").save(tmp_path / "config.json")
    flags = ["--config.train.num_steps=7", "--fresh=lm_head,embed", "--profile_at=5"]
    assert cli.main(["train", f"--config={tmp_path}/config.json", f"--workdir={tmp_path}/run", *flags]) == 0
    options = {"overrides": {"train.num_steps": 7}, "fresh": ["lm_head", "embed"], "profile_at": 5}
    assert lumos.train(tmp_path, tmp_path / "run", **options) == {"nll": 1.0}
    for _, _, passed in calls:
        assert passed.pop("watchdog").__class__.__name__ == "Watchdog"
    assert calls[0] == calls[1] and calls[0][0].train.num_steps == 7 and calls[0][2]["fresh"] == ("lm_head", "embed")


def test_data_from_python_are_those_of_a_run(tmp_path):
    config = tokens.run_config(tokens.write_tokens(tmp_path / "tokens"))
    run = match_data(config)
    run.save(tmp_path / "config.json")
    with (
        lumos.data.open(tmp_path, step=1) as batches,
        make_pipeline(run, "train", process_index=0, process_count=1) as loop_s,
    ):
        next(loop_s)
        first, second = next(batches), next(loop_s)
    assert set(first) == {"tokens", "text", "text_length"}
    np.testing.assert_array_equal(first["tokens"], second["tokens"])
    with lumos.data.open(config, shuffle=False) as once:
        assert sum(len(batch["tokens"]) for batch in once) == 32  # of the evaluation split, each once


def test_configs_from_anywhere_give_the_same(tmp_path):
    config = tiny.transformer(data__path="x")
    config.save(tmp_path / "config.json")
    same = [lumos.load_config(spec, {"seed": 7}) for spec in (config, tmp_path, tmp_path / "config.json")]
    assert same[0] == same[1] == same[2] and same[0].seed == 7


# --- releases -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):
    """A release that was moved after it was made, in several files, with a text model and a report."""
    place = tmp_path_factory.mktemp("release")
    shutil.copy(DEFAULT_MODEL, place / "own.model")
    config = json.loads((run / "config.json").read_text())
    config["text"]["model"] = str(place / "own.model")
    (run.parent / "with_text").mkdir()
    (run.parent / "with_text" / "config.json").write_text(json.dumps(config))
    shutil.copytree(run / "checkpoints", run.parent / "with_text" / "checkpoints")
    shutil.copy(run / "metrics.jsonl", run.parent / "with_text")
    metric = {"value": 1.5, "low": 1.25, "high": 1.75, "n": 8, "protocol": "8 clips", "better": "low"}
    (place / "report").mkdir()
    (place / "report" / "row.json").write_text(json.dumps({"metrics": {"likelihood/nll": metric}}))
    export(
        run.parent / "with_text",
        place / "made",
        step="3",
        report=str(place / "report"),
        license="mit",
        max_bytes=100_000,
    )
    return Path(shutil.move(place / "made", place / "moved"))


def test_a_release_makes_the_clips_of_its_run(released, made, monkeypatch):
    monkeypatch.chdir(released.parent)
    model = lumos.load(released.name, overrides={"evaluate.batch_size": 8})
    np.testing.assert_array_equal(model.generate(PROMPTS, seed=3).videos, made.videos)
    assert model.step == 3 and model.config.text.model == "moved/text.model"
    assert model.tokenizer.fingerprint == release.read_facts(released / "tokenizer")["fingerprint"]
    assert len(list(released.glob("model-*-of-*.safetensors"))) > 1
    text = (released / "config.json").read_text() + (released / "release.json").read_text()
    assert "/" not in json.loads(text[: text.index("\n{")])["text"]["model"] and str(released.parent.parent) not in text


def test_what_a_release_says_of_itself(released, capsys):
    card = (released / "README.md").read_text()
    for words in (
        "license: mit",
        "pipeline_tag: text-to-video",
        "| likelihood/nll | 1.5 (1.25 to 1.75) | 8 clips |",
        "32 x 32 pixels",
    ):
        assert words in card
    facts = describe(released)
    assert (facts["kind"], facts["task"], facts["step"], facts["problems"]) == ("release", "transformer", 3, [])
    assert facts["parameters"]["total"]["count"] == release.read_facts(released)["parameters"]
    assert cli.main(["export", f"--workdir={released}", f"--to={released}"]) == 2
    assert "is not empty; choose a new folder" in capsys.readouterr().err
    assert "| psnr |" not in (released / "tokenizer" / "README.md").read_text()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "text.model").unlink(), "text.model is missing"),
        (
            lambda folder: os.truncate(next(folder.glob("model-00002*")), 100),
            r"model-00002-of-0000\d.safetensors has 100 of \d+ bytes",
        ),
        (
            lambda folder: (folder / "tokenizer" / "model.safetensors").unlink(),
            "tokenizer/model.safetensors is missing",
        ),
        (lambda folder: (folder / "release.json").write_text("{"), "release.json cannot be read"),
        (lambda folder: (folder / "release.json").write_text('{"files": {}, "format": 9}'), "has format 9"),
    ],
)
def test_a_release_that_is_not_whole_is_refused_by_name(released, tmp_path, damage, message):
    folder = Path(shutil.copytree(released, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(UserError, match=message):
        lumos.load(folder)
    assert describe(folder)["problems"]


@pytest.mark.slow
def test_a_release_is_evaluated_without_its_data(released, hub, tmp_path, capsys):
    """From a folder and from the Hub; with tokens there is a likelihood too. A sweep wants checkpoints."""
    shutil.copytree(released, hub)
    small = ["--config.evaluate.num_prompts=8", "--config.evaluate.batch_size=8"]
    assert cli.main(["evaluate", "--workdir=hf://org/name", f"--out={tmp_path}/report", *small]) == 0
    row = json.loads((tmp_path / "report" / "row.json").read_text())
    assert row["cell"]["step"] == 3 and row["metrics"]["prompts/colour"]["n"] == 8
    assert not [name for name in row["metrics"] if name.startswith(("likelihood", "reconstruction"))]
    assert (tmp_path / "report" / "index.html").exists()
    assert "left out for want of data" in capsys.readouterr().err
    assert cli.main(["sweep", f"--workdir={released}", f"--out={tmp_path}/s"]) == 2
    assert "no checkpoint in" in capsys.readouterr().err


def test_a_release_is_one_set_of_weights(released):
    for options, message in (
        ({"step": 3}, "no checkpoint in"),
        ({"weights": "raw"}, "is a release with one set of weights"),
    ):
        with pytest.raises(UserError, match=message):
            lumos.load(released, **options)


def test_a_release_can_be_trained_further(released, tmp_path, model):
    assert cli.main(["convert", "--from=release", str(released), f"--to={tmp_path}/run"]) == 0
    again = lumos.load(tmp_path / "run", weights="raw")
    for mine, theirs in zip(jax.tree.leaves(again.params), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hub with a release in it, and no connection."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--name" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs" / "main").write_text("0" * 40)
    return tmp_path / "models--org--name" / "snapshots" / ("0" * 40)


def test_a_release_of_the_hub_without_a_connection(released, hub, capsys, tmp_path):
    shutil.copytree(released, hub)
    assert lumos.load("hf://org/name").step == 3
    next(hub.glob("model-00001*")).unlink()  # a download that was cut off
    with pytest.raises(UserError, match="not complete: model-00001-of-0000..safetensors is missing"):
        lumos.load("hf://org/name")
    assert cli.main(["generate", "--workdir=hf://org/other", "--prompt=a", f"--out={tmp_path}/a.mp4"]) == 2
    assert "hf://org/other is not in the cache of the Hub, and cannot be downloaded" in capsys.readouterr().err
    with pytest.raises(UserError, match="must be hf://organisation/name"):
        lumos.load("hf://name")


def test_upload_sends_the_folder_as_it_is(released, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
            calls.append((repo_id, folder_path, sorted(allow_patterns)))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert cli.main(["upload", str(released), "hf://org/name", "--private"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/org/name\n"
    assert calls == [
        ("org/name", {"private": True, "exist_ok": True}),
        (
            "org/name",
            str(released),
            sorted(path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()),
        ),
    ]
    assert cli.main(["upload", str(released.parent), "hf://org/name"]) == 2
    assert "is no release" in capsys.readouterr().err


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(run, tmp_path, monkeypatch, capsys):
    import matplotlib

    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(run.parent)
    shown = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: shown.append(1))
    matplotlib.use("Agg")
    cells = [
        cell
        for cell in json.loads((REPO / "docs" / "notebook.ipynb").read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    names = {}
    for cell in cells:
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    assert len(shown) == 4 and names["made"].videos.shape[0] == 2
    assert "nats a code" in capsys.readouterr().out
