"""Data, manifests and tokens on s3://: the same rows, tokens and batches as on a local disk."""

import dataclasses
import json

import numpy as np
import pytest
import s3_server
from s3_server import s3, s3_bucket  # noqa: F401
from test_containers import make_tar
from test_pipeline import make_config
from test_token_folder import FakeTokenizer
from test_video import numbered_video

from lumos import files
from lumos.config import DataConfig
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.pipeline import make_pipeline
from lumos.data.records import RecordSource
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.leases import Leases
from lumos.tokenizers.check_tokens import check
from lumos.tokenizers.tokenize import tokenize

s3_server.needed()


@pytest.mark.slow
def test_clips_tars_and_tokens_are_those_of_a_local_folder(s3_bucket, tmp_path):  # noqa: F811
    for i in range(4):
        write_video(tmp_path / "loose" / f"{i:03d}.mp4", numbered_video(9 + i), 12)
        (tmp_path / "loose" / f"{i:03d}.txt").write_text(f"clip {i}")
        (tmp_path / "loose" / f"{i:03d}.json").write_text("{}")
    (tmp_path / "set").mkdir()
    make_tar(tmp_path / "set" / "a.tar", tmp_path / "loose", [f"{i:03d}.mp4" for i in range(4)])
    write_video(tmp_path / "set" / "loose.mp4", numbered_video(9), 12)
    files.put_tree(tmp_path / "set", files.path(f"{s3_bucket}/set"))
    found = {}
    for root in (s3_bucket, str(tmp_path)):
        summary = index(f"{root}/set", f"{root}/m.arrow", DataConfig())
        assert (summary.accepted, summary.rejected) == (5, 0)
        rows = [row | {"path": row["path"].removeprefix(root)} for row in read_manifest(f"{root}/m.arrow")]
        config = make_config("clips", f"{root}/m.arrow", buckets=((9, 32, 48),), batch_size=2)
        tokenize(config, FakeTokenizer(), f"{root}/tokens", splits=("train",), clips_per_shard=2)
        records = RecordSource(files.find(files.path(f"{root}/tokens"), "*.array_record"))
        tokens = [record["tokens"].tolist() for record in records]
        batches = []
        for source, path, bucket in (("clips", "m.arrow", (9, 32, 48)), ("tokens", "tokens", (3, 4, 6))):
            config = make_config(source, f"{root}/{path}", buckets=(bucket,), batch_size=2)
            with make_pipeline(_wide(config), "train", process_index=0, process_count=1) as pipeline:
                batches += [next(pipeline)["video" if source == "clips" else "tokens"].tolist() for _ in range(3)]
        report = check(f"{root}/tokens")
        assert report.num_problems == 0
        found[root] = json.dumps([rows, tokens, batches, report.records])
    assert found[s3_bucket] == found[str(tmp_path)]


def _wide(config):
    """A config whose vocabulary has room for the codes of the fake tokenizer."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, visual_vocab=4096))


def test_leases_and_single_files_on_s3(s3_bucket):  # noqa: F811
    root = files.path(f"{s3_bucket}/x")
    first, second = Leases(root / "leases"), Leases(root / "leases")
    with first.hold("a") as lease, second.hold("a") as other:
        assert other is None
        lease.check()
    with second.hold("a") as other:
        assert other is not None
    assert files.create_text(root / "once", "1") and not files.create_text(root / "once", "2")
    assert files.size_and_time(root / "once")[0] == 1 and files.size_and_time(root / "once")[1] > 1.7e9
    with pytest.raises(UserError, match="absent: cannot be read .no such bucket or object"):
        files.kept(root / "absent")
    assert np.frombuffer(files.read_range(root / "once", 0, 1), np.uint8).tolist() == [ord("1")]
