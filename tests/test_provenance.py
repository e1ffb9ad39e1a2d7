"""Equal configs give equal bits, and every result says where it comes from."""

import json
from types import SimpleNamespace

import av
import jax
import numpy as np
import pytest
from tokens import one_device, run_config, write_tokens  # noqa: F401

import lumos
from lumos import config_loading, provenance, sharding
from lumos.checkpoint import Checkpointer, fingerprint
from lumos.runtime import metrics_writer
from lumos.training.from_config import make_objective
from lumos.training.loop import train
from lumos.training.match_data import match_data
from lumos.training.optimizer import make_optimizer
from lumos.training.state import abstract_state
from lumos.videos import video_files


@pytest.fixture(scope="module")
def runs(tmp_path_factory, one_device):  # noqa: F811
    """The same run twice, each with data of its own making."""
    folder = tmp_path_factory.mktemp("runs")
    tokens = write_tokens(folder / "tokens")
    config = run_config(tokens, train__num_steps=4)
    for name in ("a", "b"):
        train(config, folder / name)
    return config, tokens, folder


def test_two_runs_of_one_config_are_bitwise_equal(runs):
    config, _, folder = runs
    a, b = (
        [(x["step"], x["loss"], x["grad_norm"]) for x in metrics_writer.read(folder / name, "train")] for name in "ab"
    )
    assert len(a) == 4 and a == b
    definition = make_objective(match_data(config)).definition
    mesh = sharding.make_mesh(config.mesh)
    abstract = abstract_state(definition, make_optimizer(config.optimizer, 4), mesh, ema=True)
    states = [Checkpointer(folder / name, read_only=True).restore(abstract)[0] for name in "ab"]
    assert fingerprint(states[0]) == fingerprint(states[1])


def test_every_run_records_seed_versions_commit_config_and_data(runs):
    config, tokens, folder = runs
    (line,) = map(json.loads, (folder / "a" / "runs.jsonl").read_text().splitlines())
    assert line["seed"] == 0 and line["start_step"] == 0 and line["processes"] == 1
    assert line["versions"]["lumos"] == lumos.__version__ and line["versions"]["jax"] == jax.__version__
    assert line["commit"] == provenance.commit() and len(line["config"]) == len(line["data"]) == 16
    meta = Checkpointer(folder / "a", read_only=True).read_meta()
    assert meta["provenance"]["data"] == line["data"] and meta["config"]["train"]["num_steps"] == 4
    other = json.loads((tokens / "manifest.json").read_text()) | {"tokenizer": {"fingerprint": "another"}}
    (folder / "other").mkdir()
    (folder / "other" / "manifest.json").write_text(json.dumps(other))
    assert (
        provenance.data_fingerprint(str(folder / "other")) != line["data"] == provenance.data_fingerprint(str(tokens))
    )
    changed = run_config(tokens, seed=1)
    assert provenance.fingerprint(changed) != provenance.fingerprint(run_config(tokens))


def test_every_generated_file_says_where_it_comes_from(runs, tmp_path, monkeypatch):
    config, tokens, folder = runs
    made = SimpleNamespace(videos=np.zeros((1, 2, 16, 16, 3), np.uint8))
    values = config_loading.default()
    values.generate.fps = 8.0
    fake = SimpleNamespace(generate_batches=lambda *_, **__: [made], config=config_loading.parse(values), step=6)
    monkeypatch.setattr(video_files.Generator, "load", lambda *_: fake)
    (path,) = video_files.generate(
        folder / "a", video_files.Request(prompts=("a red circle",), seed=3), tmp_path / "x.mp4"
    )
    with av.open(str(path)) as container:
        facts = dict(line.split(": ", 1) for line in container.metadata["comment"].splitlines() if ": " in line)
    assert facts["prompt"] == "a red circle" and facts["seed"] == "3" and facts["run"] == "a" and facts["step"] == "6"
    assert facts["data"] == provenance.data_fingerprint(str(tokens)) and facts["lumos"] == lumos.__version__
    assert {"config", "jax"} <= facts.keys()
