"""Hostile input made by machine: configs, records and video files. Nothing but errors with a cause may come of it."""

import copy
import json

import fuzz_videos
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokens import run_config, write_tokens

from lumos import cli, sharding
from lumos.data.buckets import plan_buckets
from lumos.data.records import RecordSource, RecordWriter
from lumos.data.sources import TokensSource
from lumos.errors import UserError
from lumos.training import loop
from lumos.training.from_config import make_objective
from lumos.training.match_data import match_data
from lumos.training.optimizer import make_optimizer, make_schedule
from lumos.training.state import abstract_state

FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


# Configs -------------------------------------------------------------------------------------------------------------

_numbers = st.one_of(
    st.integers(-2, 70), st.sampled_from([10**6, 2**31, 2**70]), st.floats(), st.sampled_from([0.5, 1e-3, 1e30])
)
_texts = st.one_of(st.sampled_from(["", "none", "full", "float16", "tokens", "adam", "/", "x" * 500]), st.text())
_values = st.recursive(
    st.one_of(_numbers, _texts, st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=2)),
    max_leaves=6,
)


_counts = st.one_of(st.integers(-1, 9), st.sampled_from([12, 16, 30, 31, 32, 64, 100, 4096, 10**6]))
_alike = {  # values of the right type, which get further
    bool: st.booleans(),
    int: _counts,
    float: st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1e-30, 1e30]), st.floats(-2, 2)),
    str: st.sampled_from(
        [
            "",
            "none",
            "dots",
            "full",
            "1d",
            "3d",
            "mm",
            "rms",
            "layer",
            "lumos1",
            "constant",
            "uniform",
            "normal",
            "frame",
        ]
        + [
            "independent",
            "bfloat16",
            "dense",
            "wsd",
            "sgd",
            "lion",
            "muon",
            "adafactor",
            "lbfgs",
            "rewind",
            "hard",
            "x",
        ]
    ),
    tuple: st.one_of(st.lists(_counts, max_size=6), st.lists(st.lists(_counts, min_size=3, max_size=3), max_size=2)),
}


def _fields(tree, prefix=()):
    """Yield the path of every section and field, and the type of its value."""
    for name, value in tree.items():
        yield prefix + (name,), type(value)
        if isinstance(value, dict):
            yield from _fields(value, prefix + (name,))


def _changes(tree):
    paths = sorted(_fields(tree), key=str)
    return st.sampled_from(paths).flatmap(
        lambda pair: st.tuples(
            st.just(pair[0]), st.one_of(_alike.get(pair[1], _values), _alike.get(pair[1], _values), _values)
        )
    )


def build(config, workdir, **_):
    """Everything a run does before it compiles."""
    config = match_data(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    plan_buckets(config.data, config.tokenizer)
    objective, optimizer = make_objective(config), make_optimizer(config.optimizer, config.train.num_steps)
    make_schedule(config.optimizer, config.train.num_steps)(0)
    abstract_state(objective.definition, optimizer, mesh, ema=config.optimizer.ema_decay > 0)
    objective.flops_per_step()


def test_200_fuzzed_configs_end_in_one_line_or_in_a_model(tmp_path, capsys, monkeypatch):
    base = run_config(write_tokens(tmp_path / "tokens")).to_dict()
    monkeypatch.setattr(loop, "train", build)
    codes = []

    @settings(FUZZ, max_examples=200)
    @given(st.lists(_changes(base), min_size=1, max_size=2))
    def run(changes):
        tree = copy.deepcopy(base)
        for path, value in changes:
            node = tree
            for name in path[:-1]:
                node = node[name] if isinstance(node, dict) and isinstance(node.get(name), dict) else {}
            node[path[-1]] = value
        file = tmp_path / "config.json"
        file.write_text(json.dumps(tree))
        codes.append(cli.main(["train", f"--config={file}", f"--workdir={tmp_path}"]))
        message = capsys.readouterr().err.strip()
        assert codes[-1] in (0, 2)
        assert (
            (codes[-1] == 2) == message.startswith("lumos: error: ")
            and message.count("\n") == 0
            and len(message) < 1500
        )

    run()
    assert len(codes) >= 200 and min(codes.count(0), codes.count(2)) > 20


def test_files_that_are_no_config_end_in_one_line(tmp_path, capsys):
    for name, text in {
        "a.json": "{", "b.json": "[1]", "c.json": '{"model": 3}', "d.json": "\udce9", "e.py": "def", "f.py": "1/0",
        "g.py": "def get_config():\n    return 3", "h.py": "", "i.yaml": "x: 1", "j.json": "[" * 5000,
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text, errors="surrogateescape")
        assert cli.main(["train", f"--config={tmp_path / name}", f"--workdir={tmp_path}"]) == 2, name
        message = capsys.readouterr().err.strip()
        assert name in message or "config.model" in message or "config must" in message, message
        assert message.count("\n") == 0


# Records -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "train-00000-of-00001.array_record"
    with RecordWriter(path) as writer:
        for i in range(4):
            tokens = np.random.default_rng(i).integers(0, 30, (3, 4, 4)).astype(np.uint32)
            writer.write({"tokens": tokens, "caption": f"clip {i}", "id": str(i)})
    return path


def test_100_damaged_shards_give_their_records_or_an_error_that_names_them(shard, tmp_path):
    whole, originals = shard.read_bytes(), [record["tokens"] for record in RecordSource([shard])]
    path, refused = tmp_path / "damaged.array_record", []

    @settings(FUZZ, max_examples=100)
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.binary(max_size=40)), max_size=4),
        st.one_of(st.none(), st.integers(0, len(whole))),
    )
    def run(splices, length):
        data = bytearray(whole)
        for position, piece in splices:
            data[position : position + len(piece)] = piece
        path.write_bytes(data[:length])
        try:
            source = RecordSource([path])
        except UserError as error:
            refused.append(str(error))
            return
        for i in range(len(source)):
            try:
                record = source[i]
            except UserError as error:
                refused.append(str(error))
                continue
            assert bytes(data[:length]) != whole or np.array_equal(record["tokens"], originals[i])

    run()
    assert refused and all(str(path) in text and "\n" not in text for text in refused)


_arrays = st.builds(
    lambda shape, dtype, value: np.full(shape, value).astype(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([np.uint8, np.uint32, np.int64, np.float32, np.bool_]),
    st.sampled_from([0, 1, 29, 30, 255]),
)
_records = st.dictionaries(
    st.sampled_from(["tokens", "caption", "id", "caption.utf8", "tokens.utf8"]),
    st.one_of(_arrays, st.text(max_size=20)),
)


def test_100_strange_records_are_tokens_with_a_caption_or_refused(tmp_path):
    config = run_config(tmp_path, data__buckets=((3, 4, 4),))
    (bucket,) = plan_buckets(config.data, config.tokenizer)
    (tmp_path / "manifest.json").write_text(json.dumps({"grid": [3, 4, 4], "codebook_size": 30}))
    good = {"tokens": np.zeros((3, 4, 4), np.uint32), "caption": "fine", "id": "x"}
    refused = []

    @settings(FUZZ, max_examples=100)
    @given(_records)
    def run(record):
        with RecordWriter(tmp_path / "train-00000-of-00001.array_record") as writer:
            for item in (good, record, good):
                writer.write(item)
        source = TokensSource(config, str(tmp_path), "train")
        try:
            arrays, caption = source.load(1, bucket, 0.5)
            assert arrays["tokens"].shape == (3, 4, 4) and arrays["tokens"].max() < 30 and isinstance(caption, str)
        except UserError as error:
            refused.append(str(error))
        assert source.load(2, bucket, 0.5)[1] == "fine"

    run()
    assert refused and all("record 1" in text or "do not fill" in text for text in refused)


def test_the_base_of_the_fuzz_builds(tmp_path):
    """What the fuzz refuses, it refuses for its changes."""
    build(run_config(write_tokens(tmp_path / "tokens")), None)


# Files ---------------------------------------------------------------------------------------------------------------


def test_damaged_video_files_get_a_place_or_a_reason(tmp_path):
    """The short form of `python tests/fuzz_videos.py --files=1000`."""
    report = fuzz_videos.fuzz(tmp_path, 40, seed=0, real=False)
    assert report["problems"] == [] and report["rejected"] + report["decoded"] + report["failed in decoding"] == 40
    assert report["rejected"] > 5 and report["decoded"] > 5
