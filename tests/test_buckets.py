"""Paths in buckets: the same results as on a local disk, one line where they cannot be used, and faults that are outlived."""

import json
import os
import time
from pathlib import Path

import buckets
import numpy as np
import pytest
from absl import flags
from buckets import bucket, storage  # noqa: F401
from test_pipeline import make_config
from test_token_folder import FakeTokenizer
from test_video import numbered_video
from tokens import one_device, run_config, write_tokens  # noqa: F401

from lumos import cli, config_loading, files
from lumos.checkpoint import Checkpointer
from lumos.config import DataConfig
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.pipeline import make_pipeline
from lumos.data.records import RecordSource, RecordWriter
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.growing_files import Appended
from lumos.info.kinds import describe
from lumos.runtime import metrics_writer
from lumos.staged import staged
from lumos.tokenizers.tokenize import tokenize
from lumos.training.loop import train

buckets.needed()


def test_files(bucket, tmp_path):  # noqa: F811
    for root in (files.path(f"{bucket}/a"), tmp_path):
        files.write_text(root / "x.txt", "ü")
        files.write_text(root / "b" / "x.txt", "again") if files.is_remote(root) else None
        assert files.read_text(root / "x.txt") == "ü" and files.size_and_time(root / "x.txt")[0] == 2
        with pytest.raises(ValueError), files.written(root / "y") as local:
            local.write_text("half")
            raise ValueError
        assert not (root / "y").exists()
        with files.written(root / "y") as local:
            local.write_text("whole")
        with files.borrowed(root / "y") as local:
            assert local.read_text() == "whole"
        assert files.kept(root / "y").read_text() == "whole"
        for lines in (["1", "2"], ["3"]):
            file = Appended(root / "lines")
            for line in lines:
                file.write(line)
            file.close()
        assert files.read_text(root / "lines") == "1\n2\n3\n"
        files.remove_tree(root)
        assert not (root / "x.txt").exists()
        files.remove_tree(root)


def test_records(bucket, tmp_path):  # noqa: F811
    record = {"tokens": np.arange(8, dtype=np.uint32).reshape(2, 2, 2), "caption": "x", "id": "1"}
    with RecordWriter(f"{bucket}/a-00000-of-00001.array_record") as writer:
        writer.write(record)
    found = RecordSource([f"{bucket}/a-00000-of-00001.array_record"])[0]
    assert np.array_equal(found["tokens"], record["tokens"]) and found["caption"] == "x"
    with pytest.raises(ValueError), RecordWriter(f"{bucket}/b.array_record") as writer:
        raise ValueError
    assert not files.path(f"{bucket}/b.array_record").exists()
    with pytest.raises(UserError, match="absent.array_record: cannot be read .no such bucket or object"):
        RecordSource([f"{bucket}/absent.array_record"])


def test_clips_are_indexed_tokenized_and_read(bucket, tmp_path):  # noqa: F811
    """The same rows, tokens and batches as from a local folder."""
    for i in range(6):
        write_video(tmp_path / "clips" / f"{i}.mp4", numbered_video(9 + i, 32, 32), 12)
        (tmp_path / "clips" / f"{i}.txt").write_text(f"clip {i}")
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"nothing")
    files.put_tree(tmp_path / "clips", files.path(f"{bucket}/clips"))
    found = {}
    for root in (bucket, str(tmp_path)):
        for suffix in (".jsonl", ".arrow"):
            summary = index(f"{root}/clips", f"{root}/m{suffix}", DataConfig())
            assert (summary.accepted, summary.rejected) == (6, 1)
            rows = [row | {"path": row["path"].removeprefix(root)} for row in read_manifest(f"{root}/m{suffix}")]
            config = make_config("clips", f"{root}/m{suffix}", buckets=((9, 32, 32),), batch_size=2)
            tokenize(config, FakeTokenizer(), f"{root}/tokens{suffix}", splits=("train",), clips_per_shard=4)
            shards = files.find(files.path(f"{root}/tokens{suffix}"), "*.array_record")
            tokens = [record["tokens"].tolist() for record in RecordSource(shards)]
            with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
                batches = [next(pipeline)["video"].tolist() for _ in range(3)]
            found[root, suffix] = rows, tokens, batches, [shard.name for shard in shards]
    assert len({json.dumps(value) for value in found.values()}) == 1
    assert describe(f"{bucket}/m.jsonl")["clips"] == 6 and describe(f"{bucket}/tokens.arrow")["finished"]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_a_run(bucket, tmp_path, one_device):  # noqa: F811
    """Losses bit for bit those of a local run, though it is stopped in between; the same checkpoints are kept."""
    tokens = write_tokens(tmp_path / "tokens")
    files.put_tree(tokens, files.path(f"{bucket}/tokens"))
    lines = {}
    for root in (bucket, str(tmp_path)):
        for steps in (2, 4):
            options = {"train__num_steps": steps, "train__checkpoint_every": 1, "train__keep_checkpoints": 2}
            train(run_config(f"{root}/tokens", **options), f"{root}/run")
        lines[root] = [(line["step"], line["loss"]) for line in metrics_writer.read(f"{root}/run", "train")]
        checkpointer = Checkpointer(f"{root}/run", read_only=True)
        assert sorted(checkpointer._manager.all_steps()) == [3, 4] and checkpointer.last_good_step() == 4
        checkpointer.close()
        assert len(files.read_text(files.path(root) / "run" / "runs.jsonl").splitlines()) == 2
    assert lines[bucket] == lines[str(tmp_path)] and len(lines[bucket]) == 4


@pytest.mark.slow
def test_half_deleted_checkpoints_are_none(bucket, tmp_path, one_device):  # noqa: F811
    """The marker goes first: whatever is left of the files, and in whatever order they go."""
    write_tokens(tmp_path / "tokens")
    run = files.path(bucket) / "run"
    train(run_config(tmp_path / "tokens", train__num_steps=4, train__keep_checkpoints=3), str(run))
    (run / "checkpoints" / "4" / "commit_success.txt").unlink()
    checkpointer = Checkpointer(run, read_only=True)
    assert checkpointer.latest_step() == 2
    checkpointer.close()
    train(run_config(tmp_path / "tokens", train__num_steps=4, train__keep_checkpoints=3), str(run))
    assert json.loads(files.read_text(run / "runs.jsonl").splitlines()[-1])["start_step"] == 2
    checkpointer = Checkpointer(run, read_only=True)
    assert checkpointer.latest_step() == 4
    checkpointer.link(4, files.path(bucket) / "copy")
    checkpointer.close()
    copy = Checkpointer(files.path(bucket) / "copy", read_only=True)
    assert copy.read_meta()["step"] == 4
    copy.close()


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--workdir=http://x/y", "http:// is not read; give a local path or one of gs://, s3://"),
        ("--workdir=gs:/x/y", "a URL has two slashes: gs://bucket/folder"),
        ("--workdir=gs://", "names no bucket"),
        ("--workdir=s3://", "names no bucket"),
    ],
)
def test_what_is_not_supported_is_refused_wherever_it_stands(tmp_path, monkeypatch, capsys, flag, message):
    monkeypatch.chdir(tmp_path)
    name, value = flag.split("=")
    for arguments in ([flag], [name, value]):
        assert cli.main(["train", "--config=configs/demo.py:tokenizer,smoke", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_bucket_that_is_not_there_ends_in_one_line(bucket, capsys):  # noqa: F811
    assert cli.main(["train", "--config=configs/demo.py:tokenizer,smoke", "--workdir=gs://absent-bucket/run"]) == 2
    error = capsys.readouterr().err
    assert "--workdir=gs://absent-bucket/run: cannot write there" in error and error.count("\n") == 1


def test_what_verbs_write_on_the_local_disk_is_uploaded(bucket, tmp_path, capsys):  # noqa: F811
    """A file, a folder with what was there before, and what a verb had written when it failed."""
    for split in ("train", "test"):
        files.write_text(files.path(bucket) / "set" / split / "a.mp4", split)
    command = ["data", "benchmark", "--name=bair", f"--input={bucket}/set", f"--out={bucket}/lists/bair.csv"]
    assert cli.main(command) == 0
    lines = files.read_text(files.path(bucket) / "lists" / "bair.csv").splitlines()
    assert sorted(line.split(",")[1] for line in lines) == ["id", "test/a.mp4", "train/a.mp4"]
    assert f"uploaded to {bucket}/lists/bair.csv" in capsys.readouterr().err
    out = files.path(bucket) / "report"
    files.write_text(out / "old" / "row.json", "1")
    values = flags.FlagValues()
    flags.DEFINE_string("out", f"{bucket}/report", "", flag_values=values)
    values(["x"])
    with pytest.raises(ValueError), staged(values, ["out"]):
        assert (Path(values.out) / "old" / "row.json").read_text() == "1"
        (out / "old" / "row.json").unlink()  # of another process, which is not written over
        (Path(values.out) / "new.json").write_text("2")
        raise ValueError
    assert [path.name for path in files.find(out, "*")] == ["new.json"]
    assert (
        cli.main(["data", "benchmark", "--name=bair", f"--input={bucket}/set", "--out=gs://absent-bucket/a.csv"]) == 2
    )
    assert "--out=gs://absent-bucket: cannot write there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_a_bucket_is_evaluated_and_exported(bucket, tmp_path, one_device):  # noqa: F811
    """The report and the release of a run in a bucket, written into a bucket, are those of a local one."""
    for i in range(4):
        write_video(tmp_path / "clips" / f"{i}.mp4", numbered_video(9 + i, 32, 32), 12)
    index(tmp_path / "clips", tmp_path / "m.jsonl", DataConfig())
    config = config_loading.default()
    config.task, config.train.num_steps, config.train.eval_every, config.train.num_samples = "tokenizer", 1, 0, 0
    data = {"source": "clips", "path": str(tmp_path / "m.jsonl"), "buckets": ((5, 32, 32),), "batch_size": 1}
    config.data.update(data | {"split": "train", "eval_split": "train"})
    config.evaluate.update({"split": "train", "num_clips": 1, "networks": (), "batch_size": 1})
    config.tokenizer.update({"channels": 4, "channel_mult": (1, 1), "mid_attention": False})
    config = config_loading.parse(config)
    found = {}
    for root in (bucket, str(tmp_path)):
        train(config, f"{root}/run")
        assert cli.main(["evaluate", f"--workdir={root}/run", f"--out={root}/report"]) == 0
        assert cli.main(["export", f"--workdir={root}/run", f"--to={root}/release"]) == 0
        rows = json.loads(files.read_text(files.path(root) / "report" / "results.jsonl").splitlines()[-1])
        weights = files.find(files.path(root) / "release", "*.safetensors")
        found[root] = rows["reconstruction"]["psnr"], [files.read_bytes(path) for path in weights]
    assert found[bucket] == found[str(tmp_path)] and found[bucket][1]


@pytest.fixture
def through_proxy(storage, monkeypatch):  # noqa: F811
    """Let `files` reach buckets through the proxy."""
    import gcsfs

    fs = gcsfs.GCSFileSystem(
        endpoint_url=storage.proxy, token="anon", use_listings_cache=False, skip_instance_cache=True
    )
    fs.retries = 1  # those of lumos are looked at
    monkeypatch.setattr(files, "file_system", lambda path: fs)
    return storage


@pytest.mark.fast("503")
@pytest.mark.parametrize("answer", [503, 429, "cut", "slow"])
def test_faults_are_outlived(bucket, through_proxy, answer):  # noqa: F811
    path, faults = files.path(f"{bucket}/x"), through_proxy
    faults.answer, faults.broken = answer, 1
    files.write_text(path, "whole")
    assert faults.broken == 0
    faults.broken = 1
    assert files.read_text(path) == "whole"
    faults.broken = 1
    assert Path(files.kept(path)).read_text() == "whole"
    assert faults.broken == 0


def test_an_error_of_a_bucket_that_nobody_expected_is_one_line(monkeypatch, capsys):
    from gcsfs.retry import HttpError

    def fail(_):
        raise HttpError({"code": 503, "message": "no"})

    monkeypatch.setattr("lumos.info.kinds.describe", fail)
    assert cli.main(["info", "x"]) == 2
    assert capsys.readouterr().err.splitlines() == ["lumos: error: a bucket cannot be used (HttpError: no, 503)"]


def test_an_error_that_stays_is_told_at_once(bucket, through_proxy):  # noqa: F811
    through_proxy.answer, through_proxy.broken = 403, 10**6
    began = time.monotonic()
    with pytest.raises(UserError, match="cannot be read .permission denied"):
        files.kept(files.path(f"{bucket}/x"))
    assert time.monotonic() - began < 20
