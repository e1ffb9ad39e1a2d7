"""Trackers, offline: what each is told, that a second start continues its run, and that one that fails costs a warning."""

import json
import logging
import re
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from lumos import config_loading, sharding
from lumos.data.contact_sheet import contact_sheet
from lumos.data.text import TextTokenizer
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.runtime import trackers
from lumos.runtime.goodput import Goodput
from lumos.runtime.metrics_writer import MetricsWriter
from lumos.runtime.speed import SpeedMeter
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.held_out import HeldOut
from lumos.training.state import abstract_state
from lumos.training.step import make_train_step

REPO = Path(__file__).resolve().parents[1]
FACTS = {"commit": "abc", "data": "0123"}


def record(workdir, names, start_step=0, steps=(1, 2), samples=True):
    """Write what a run would: a line of training at every step, one of evaluation, and samples."""
    config = tiny.transformer(train__trackers=names, train__num_steps=4, name="tiny")
    writer = MetricsWriter(workdir, config.to_dict(), FACTS, start_step=start_step)
    for step in steps:
        writer.write(step, "train", {"loss": 1.0 / step})
    writer.write(steps[-1], "eval", {"frame_nll": [1.0, 2.0]})
    if samples:
        folder = workdir / "samples" / f"step_{steps[-1]:08d}"
        video = np.zeros((5, 16, 16, 3), np.uint8)
        folder.mkdir(parents=True)
        write_video(folder / "00.mp4", video, 8.0, {})
        contact_sheet([video], ["a"]).save(folder / "contact_sheet.png")
        writer.samples(steps[-1], folder)
    writer.close()


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    """What trackers are warned of: nothing, unless a test takes it away."""
    monkeypatch.setattr(logging.getLogger("lumos"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="lumos.runtime.trackers")
    found = lambda: [record.message for record in caplog.records if record.name == "lumos.runtime.trackers"]
    yield found
    assert found() == []


def test_tensorboard_gets_scalars_and_the_contact_sheet(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    record(tmp_path, ("tensorboard",))
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # length, checksum, event, checksum
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found |= {(value.tag, event.step): value for value in event.summary.value}
    assert found["train/loss", 2].simple_value == 0.5 and found["eval/frame_nll/1", 2].simple_value == 2.0
    assert (
        found["samples/contact_sheet", 2].image.height
        == Image.open(tmp_path / "samples/step_00000002/contact_sheet.png").height
    )


@pytest.mark.slow
def test_mlflow_goes_on_with_its_run(tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy", reason="without a server MLflow needs a database")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record(tmp_path, ("mlflow",))
    record(tmp_path, ("mlflow",), start_step=2, steps=(3, 4), samples=False)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lumos").experiment_id])
    assert run.info.run_name == "tiny" and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(i, 1.0 / i) for i in (1, 2, 3, 4)]
    assert {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "samples/step_00000002")} == {
        "00.mp4",
        "contact_sheet.png",
    }
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"config.json", "provenance.json"}


def test_wandb_offline_keeps_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    record(tmp_path, ("wandb",))
    record(tmp_path, ("wandb",), start_step=2, steps=(3, 4), samples=False)
    own = (tmp_path / "run_id").read_text().strip()
    folders = [folder for folder in (tmp_path / "wandb").iterdir() if folder.name.startswith("offline-run")]
    assert len(folders) == 2 and all(
        own in folder.name for folder in folders
    )  # -1 behind it where both began in one second
    read = lambda: [_wandb_history(next(folder.glob("*.wandb"))) for folder in sorted(folders)]
    until = time.monotonic() + 30  # its own process writes the file, and may be behind
    while list(map(len, logged := read())) != [4, 3] and time.monotonic() < until:
        time.sleep(0.2)
    assert [line["train/loss"] for line in logged[0] if "train/loss" in line] == [1.0, 0.5]
    assert [line["step"] for line in logged[1] if "train/loss" in line] == [3, 4]
    assert any("samples/videos/_type" in line for line in logged[0])


def _wandb_history(path):
    """Return the lines of history in a file that wandb would upload: blocks of 32 KB of (checksum, length, type, bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole, lines = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # too little room for a record
            place += 2**15 - place % 2**15
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole, place = whole + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # whole, or the last part
            record, whole = Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                lines.append(
                    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                )
    return lines


@pytest.mark.slow
def test_trackio_keeps_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip(
        "trackio", reason="trackio wants Pillow below 13, so it is not among the packages of the tests"
    )
    record(tmp_path, ("trackio",))
    record(tmp_path, ("trackio",), start_step=2, steps=(3, 4), samples=False)
    (run,) = trackio.Api().runs("lumos")
    assert run.name == f"tiny-{(tmp_path / 'run_id').read_text().strip()}"


# --- failures -----------------------------------------------------------------------------------------------------


class Broken:
    package = "json"

    def __init__(self, about):
        self.calls = 0

    def scalars(self, step, values):
        self.calls += 1
        raise ConnectionError("no route\nto host")


class Stuck:
    package = "json"

    def __init__(self, about):
        time.sleep(60)


def test_a_tracker_that_fails_costs_one_warning(tmp_path, monkeypatch, caplog, heard):
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Broken)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Stuck)
    monkeypatch.setattr(trackers, "_PATIENCE", 0.2)
    start = time.monotonic()
    record(tmp_path, ("mlflow", "wandb", "tensorboard"), samples=False)
    assert time.monotonic() - start < 30
    assert sorted(heard()) == [
        "tracker mlflow: ConnectionError: no route to host; the run goes on without it",
        "tracker wandb: it did not end within 0.2 s; the run goes on without it",
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3 and list(
        (tmp_path / "tensorboard").iterdir()
    )
    caplog.clear()


def test_a_server_that_is_down_is_given_up(tmp_path, monkeypatch, caplog, heard):
    """The real client of a tracker, sent to a port at which nobody listens."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record(tmp_path, ("mlflow",), samples=False)
    (warning,) = heard()
    assert warning.startswith("tracker mlflow: MlflowException")
    caplog.clear()


def test_unknown_and_missing_trackers_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="config.train.trackers: unknown 'wandbb'; allowed: tensorboard, wandb"):
        tiny.transformer(train__trackers=("wandbb",))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'lumos-video\[wandb\]'"):
        record(tmp_path, ("wandb",))
    assert not list(tmp_path.iterdir())


# --- names, and prompts of samples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["transformer", "tokenizer"])
def test_the_table_of_metrics_names_all_that_a_run_records(task):
    table = (REPO / "docs" / "metrics.md").read_text()
    listed = re.findall(r"^\| `(\S+)` \|.*\|(.*)\|$", table, re.MULTILINE)
    config = tiny.transformer(task=task, data__buckets=((5, 16, 16),) if task == "tokenizer" else ())
    objective = make_objective(config)
    optimizer = make_objective_optimizer(objective, config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    batch = tiny.token_batch(config) if task == "transformer" else {"video": np.zeros((8, 5, 16, 16, 3), np.uint8)}
    with jax.set_mesh(mesh):
        state = abstract_state(objective.definition, optimizer, mesh, ema=True)
        _, metrics = jax.eval_shape(make_train_step(objective, optimizer, config, mesh), state, batch)
        sums = jax.eval_shape(objective.evaluate_batch, state.params, batch)
    evaluated = objective.summarize(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), sums))
    meter = SpeedMeter(lambda shape: 1.0, 0)
    meter.count(batch, 1.0)
    recorded = {f"train/{name}" for name in (*metrics, *meter.take(1))}
    recorded |= {f"eval/{name}" for name in evaluated} | {f"goodput/{name}" for name in Goodput(None).shares()}
    recorded |= {f"train/{name}" for name in ("learning_rate", "bad_steps", "replaced_clips")}  # of the loop
    names = {re.sub("[/_]<.*>", "", name) for name, _ in listed}
    recorded = {
        re.sub("(time|psnr_frame)_.*", r"\1", name) if name.startswith(("goodput/time_", "eval/psnr_frame_")) else name
        for name in recorded
    }
    assert recorded - names == set()
    other = "(tokenizer)" if task == "transformer" else "(transformer)"
    here = {re.sub("[/_]<.*>", "", name) for name, what in listed if other not in what and "where" not in what}
    assert here - recorded == {"train/device_memory_gb"}


def test_samples_of_prompts_from_a_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\n")
    config = tiny.transformer(train__sample_prompts=str(tmp_path / "prompts.txt"), data__path="x")

    class Asked:
        evaluate_batch = staticmethod(lambda params, batch: None)

    rows = HeldOut(config, tmp_path, None, Asked())._prompts
    text = TextTokenizer(config.text.model)
    assert [text.decode(ids) for ids in rows["text"]] == [
        text.decode(text.encode(p, 6)[0]) for p in ("a red circle", "a blue square")
    ]
    with pytest.raises(UserError, match="sample_prompts is for transformer runs that make samples"):
        config_loading.override(config, {"train.num_samples": 0})
    with pytest.raises(UserError, match="gone.txt"):
        HeldOut(config_loading.override(config, {"train.sample_prompts": "gone.txt"}), tmp_path, None, Asked())
