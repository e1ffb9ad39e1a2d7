"""`lumos convert --from=clips`: frames and actions as another code base reads them."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from lumos import cli, config_loading
from lumos.config import Config, DataConfig
from lumos.data.index import index
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.interop import frames
from lumos.sequence.streams import StreamConfig


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A clip of 13 frames in each split, brighter from frame to frame, and the config of windows of nine of them."""
    folder = tmp_path_factory.mktemp("clips")
    video = np.repeat(np.arange(0, 260, 20, dtype=np.uint8), 32 * 32 * 3).reshape(13, 32, 32, 3)
    lines = ["path,caption,split,actions"]
    for split in ("train", "validation", "test"):
        write_video(folder / f"{split}.mp4", video, 8)
        np.savez(folder / f"{split}.npz", action=np.arange(13) % 5)
        lines.append(f"{split}.mp4,a clip,{split},{split}.npz")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    index(folder / "clips.csv", folder / "m.jsonl", DataConfig())
    config = config_loading.override(Config(), {
        "task": "tokenizer", "data.source": "clips", "data.path": str(folder / "m.jsonl"), "data.buckets": "((9, 32, 32),)",
        "data.batch_size": "1", "data.streams": (dataclasses.asdict(StreamConfig(codes=5)),),
    })  # fmt: skip
    config.save(folder / "config.json")
    return folder, config


def records(path):
    return [pickle.loads(data) for data in ArrayRecordReader(str(path)).read_all()]


def test_frames_come_with_the_actions_that_are_chosen_at_them(clips, tmp_path, capsys):
    folder, _ = clips
    assert cli.main(["convert", "--from=clips", f"{folder}/config.json", f"--to={tmp_path}/frames"]) == 0
    assert "clips of 32x32 with 5 actions, 2 of train, 2 of val, 2 of test" in capsys.readouterr().out
    for split in ("train", "val", "test"):
        first, second = records(tmp_path / "frames" / split / "data_0000.array_record")
        for record, begin in ((first, 0), (second, 4)):  # windows cover the clip from its first frame to its last
            video = np.frombuffer(record["raw_video"], np.uint8).reshape(record["sequence_length"], 32, 32, 3)
            assert len(video) == 9
            np.testing.assert_array_equal(np.rint(video.mean((1, 2, 3)) / 20), begin + np.arange(9))
            leading = (begin + np.arange(9)) % 5  # row i of the recording led to frame i
            np.testing.assert_array_equal(record["actions"][:-1], leading[1:])
            assert record["actions"].dtype == np.uint8 and record["actions"][-1] == 0
    facts = json.loads((tmp_path / "frames" / "metadata.json").read_text())
    assert facts["num_actions"] == 5 and facts["num_episodes_val"] == 2 and facts["avg_episode_len_train"] == 9


def test_actions_that_are_chosen_at_their_frames_stay(clips, tmp_path):
    folder, config = clips
    streams = (dataclasses.replace(config.data.streams[0], leads=False),)
    frames.export(dataclasses.replace(config, data=dataclasses.replace(config.data, streams=streams)), tmp_path)
    np.testing.assert_array_equal(
        records(tmp_path / "train" / "data_0000.array_record")[0]["actions"], np.arange(9) % 5
    )


def test_clips_without_an_action_are_refused(clips, tmp_path):
    _, config = clips
    with pytest.raises(
        UserError, match="with config.data.streams of 0: frames are exported from clips with one stream"
    ):
        frames.export(dataclasses.replace(config, data=dataclasses.replace(config.data, streams=())), tmp_path)
    wide = (StreamConfig(codes=300),)
    with pytest.raises(UserError, match="300 codes; actions are exported as bytes"):
        frames.export(dataclasses.replace(config, data=dataclasses.replace(config.data, streams=wide)), tmp_path)
