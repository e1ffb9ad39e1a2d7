"""Tokenising by several processes that come and go, faults of single shards, work that overlaps, and what `lumos data check` finds."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from test_pipeline import make_config
from test_token_folder import FakeTokenizer
from test_video import numbered_video

from lumos import cli, files
from lumos.config import DataConfig
from lumos.data.index import index
from lumos.data.records import RecordSource, RecordWriter
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.leases import Leases
from lumos.tokenizers import encode_shards as encode_module
from lumos.tokenizers.check_tokens import check
from lumos.tokenizers.encode_shards import Spent
from lumos.tokenizers.tokenize import tokenize


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(12):
        write_video(folder / f"{i:02d}.mp4", numbered_video(9 + i), 12)
    index(folder, folder / "m.jsonl", DataConfig())
    return make_config("clips", folder / "m.jsonl", buckets=((9, 32, 48),), batch_size=2)


class Slow(FakeTokenizer):
    def encode(self, video_BFYX3):
        time.sleep(0.05)
        return super().encode(video_BFYX3)


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one which has imported everything and done nothing: threads do not survive a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_tokenizing"])
    return context


def work(config, out, tokenizer):
    tokenize(config, tokenizer(), out, splits=("train",), clips_per_shard=2)


def records(out):
    return [(record["id"], record["tokens"].tolist()) for record in RecordSource(sorted(out.glob("*.array_record")))]


def test_processes_join_die_and_come_back(clips, tmp_path, processes):
    """Kills among processes that were started with the same command: no record is lost or there twice, nothing is left behind."""
    work(clips, tmp_path / "whole", FakeTokenizer)
    wanted, out = records(tmp_path / "whole"), tmp_path / "out"
    start = lambda: processes.Process(target=work, args=(clips, out, Slow))
    workers, rng = [start(), start()], np.random.default_rng(0)
    for worker in workers:
        worker.start()
    for _ in range(4):
        time.sleep(float(rng.uniform(0.05, 0.4)))
        victim = int(rng.integers(2))
        os.kill(workers[victim].pid, signal.SIGKILL)
        workers[victim].join()
        workers[victim] = start()
        workers[victim].start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert records(out) == wanted
    assert not list(out.glob("*partial")) and not (out / "leases").exists()
    assert (
        json.loads((out / "manifest.json").read_text())["splits"]
        == json.loads((tmp_path / "whole/manifest.json").read_text())["splits"]
    )


def test_a_shard_that_another_process_makes_is_waited_for(clips, tmp_path, processes):
    work(clips, tmp_path / "whole", FakeTokenizer)
    out = tmp_path / "out"
    slow = processes.Process(target=work, args=(clips, out, Slow))
    slow.start()
    while not (out / "leases").exists() or not list((out / "leases").glob("train*")):
        time.sleep(0.01)
    manifest = tokenize(clips, FakeTokenizer(), out, splits=("train",), clips_per_shard=2)
    assert "records" in manifest and records(out) == records(tmp_path / "whole")
    slow.join(60)
    assert slow.exitcode == 0


def test_a_shard_that_fails_is_tried_again_and_costs_no_other(clips, tmp_path, monkeypatch):
    """A fault that passes costs nothing; one that stays is told, and what was made before is there."""
    work(clips, tmp_path / "whole", FakeTokenizer)
    failed, written = [], encode_module.Job.write

    def write(self, good, tokens):
        if self.shard.path.name.startswith("train-00001") and len(failed) < limit:
            failed.append(self.shard.path.name)
            raise OSError(5, "Input/output error")
        return written(self, good, tokens)

    monkeypatch.setattr(encode_module.Job, "write", write)
    limit = 2
    work(clips, tmp_path / "out", FakeTokenizer)
    assert records(tmp_path / "out") == records(tmp_path / "whole") and len(failed) == 2
    failed.clear()
    limit = 100
    with pytest.raises(OSError, match="Input/output error"):
        work(clips, tmp_path / "bad", FakeTokenizer)
    whole = {path.name for path in (tmp_path / "whole").glob("*.array_record")}
    assert {path.name for path in (tmp_path / "bad").glob("*.array_record")} == {n for n in whole if "-00001-" not in n}
    assert len(failed) == 3 and not list((tmp_path / "bad").glob("*partial"))


def test_a_worker_that_was_taken_over_writes_nothing(clips, tmp_path, monkeypatch):
    """It was asleep for longer than a lease holds; what has been made meanwhile stays."""
    check = encode_module.Lease.check

    def late(self):
        if (other := Leases(self._leases.folder)).newest(self._name) == self._path and not taken:
            taken.append(self._name)
            assert files.create_text(self._path.with_suffix(f".{self.generation + 1}"), other._text(released=True))
        check(self)

    taken = []
    monkeypatch.setattr(encode_module.Lease, "check", late)
    work(clips, tmp_path / "out", FakeTokenizer)
    monkeypatch.undo()
    work(clips, tmp_path / "whole", FakeTokenizer)
    assert records(tmp_path / "out") == records(tmp_path / "whole") and len(taken) == 1


def test_clips_are_decoded_while_others_are_encoded(monkeypatch, tmp_path):
    """With a tokenizer that takes longer for a batch than decoding does, nothing but the first batch is waited for."""
    folder = tmp_path / "clips"
    for i in range(12):
        write_video(folder / f"{i:02d}.mp4", numbered_video(9), 12)
    index(folder, tmp_path / "m.jsonl", DataConfig())
    monkeypatch.setattr("lumos.data.sources.read_clip", lambda *a, **k: time.sleep(0.02) or numbered_video(9))
    spent, encode = Spent(), encode_module.encode_shards
    monkeypatch.setattr("lumos.tokenizers.tokenize.encode_shards", lambda *a: encode(*a, spent))

    class Busy(FakeTokenizer):
        def encode(self, video_BFYX3):
            time.sleep(0.08)
            return super().encode(video_BFYX3)

    config = make_config("clips", tmp_path / "m.jsonl", buckets=((9, 32, 48),), batch_size=2)
    began = time.perf_counter()
    tokenize(config, Busy(), tmp_path / "out", splits=("train",), clips_per_shard=2)
    assert time.perf_counter() - began < 6 * 0.08 + 6 * 2 * 0.02 + 1  # not one after the other
    assert (spent.waiting - spent.first) < 0.25 * spent.encoding


# lumos data check -----------------------------------------------------------------------------------------------------


class Decoding(FakeTokenizer):
    """Decodes tokens to grey frames of their level."""

    def decode(self, tokens_BTHW):
        frames, (height, width) = 1 + 4 * (tokens_BTHW.shape[1] - 1), np.array(tokens_BTHW.shape[2:]) * 8
        return np.full((len(tokens_BTHW), frames, height, width, 3), 16 + 4 * tokens_BTHW[0, 0, 0, 0], np.uint8)


def test_a_whole_folder_has_no_problem_and_a_picture_shows_it(clips, tmp_path):
    from PIL import Image

    work(clips, tmp_path / "out", Decoding)
    report = check(tmp_path / "out", tokenizer=Decoding(), sheet=tmp_path / "sheet.png", samples=3)
    assert report.num_problems == 0 and report.records == len(records(tmp_path / "out")) and report.shards > 3
    found = {value for _, tokens in records(tmp_path / "out") for value in np.ravel(tokens).tolist()}
    assert report.codes_used == pytest.approx(len(found) / 4096)
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape[0] == 3 * (32 * 3 + 20)


def test_what_is_wrong_with_tokens_is_told(clips, tmp_path, capsys):
    out = tmp_path / "out"
    work(clips, out, FakeTokenizer)
    shards = sorted(out.glob("*.array_record"))
    twice = [
        RecordSource(shards)[0],
        RecordSource(shards)[0] | {"id": "x", "tokens": np.full((3, 4, 6), 4096, np.uint32)},
    ]
    with RecordWriter(shards[1]) as writer:
        for record in twice:
            writer.write(record)
    data = bytearray(shards[2].read_bytes())
    data[120] ^= 255
    shards[2].write_bytes(data)
    shards[3].unlink()
    assert cli.main(["data", "check", str(out)]) == 1
    text = capsys.readouterr().out
    for problem in (
        f"{shards[3].name} is not there",
        "was there before",
        "code 4096 is outside",
        "is damaged",
        "records are there",
    ):
        assert text.count(problem) == 1, text

    class Other(FakeTokenizer):
        fingerprint = "other"

    with pytest.raises(UserError, match="was made by tokenizer fake, this one is other"):
        check(out, tokenizer=Other())
    assert cli.main(["data", "check", str(out), "--sheet=x.png"]) == 2
    assert "--sheet and --workdir stand together" in capsys.readouterr().err
