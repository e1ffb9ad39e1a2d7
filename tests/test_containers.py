"""Clips inside of other files: tars, parquet files, LeRobot sets, lists with times. They are those of loose files, bit for bit."""

import json
import tarfile

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from test_pipeline import assert_same, make_config, run
from test_token_folder import FakeTokenizer
from test_video import frame_numbers, numbered_video

from lumos.config import DataConfig
from lumos.data import actions, captions, media
from lumos.data.candidates import Options
from lumos.data.decoder import read_clip
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.records import RecordSource
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.tokenizers.tokenize import tokenize

DATA = DataConfig()
NAMES = ["000.mp4", "001.gif", "002.mp4", "003.png", "004.webp", "005.mp4"]


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """Clips and pictures of several formats, each with two files of text beside it."""
    folder = tmp_path_factory.mktemp("loose")
    for i, name in enumerate(NAMES):
        video = numbered_video(1 if name.endswith(("png", "webp")) else 7 + i)
        if name.endswith("webp"):
            from PIL import Image

            Image.fromarray(video[0]).save(folder / name, lossless=True)
        else:
            write_video(folder / name, video, 12)
        (folder / f"{name[:3]}.txt").write_text(f"clip {i}")
        (folder / f"{name[:3]}.json").write_text(json.dumps({"caption": "other", "aesthetic score": i + 0.5}))
    return folder


def make_tar(path, folder, names=NAMES):
    with tarfile.open(path, "w") as tar:
        for name in names:
            for part in (name, f"{name[:3]}.txt", f"{name[:3]}.json"):
                tar.add(folder / part, f"part/{part}")
    return path


def make_parquet(path, folder, **options):
    rows = [
        {"video": {"bytes": (folder / name).read_bytes(), "path": name}, "text": f"clip {i}"}
        for i, name in enumerate(NAMES)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4, **options)
    return path


@pytest.fixture(scope="module")
def manifests(loose, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifests")
    sources = {
        "loose": loose,
        "tar": make_tar(folder / "a.tar", loose),
        "plain": make_parquet(folder / "plain.parquet", loose, compression="NONE"),
        "dictionary": make_parquet(folder / "dictionary.parquet", loose, compression="NONE", use_dictionary=True),
        "snappy": make_parquet(folder / "train-00000-of-00001.parquet", loose, compression="snappy"),
    }
    found = {}
    for name, source in sources.items():
        found[name] = index(source, folder / f"{name}.jsonl", DATA)
        assert (found[name].accepted, found[name].rejected) == (6, 0)
    return {name: summary.manifest for name, summary in found.items()}


def test_rows_say_where_the_bytes_are(manifests, loose):
    rows = {name: list(read_manifest(path)) for name, path in manifests.items()}
    for name, found in rows.items():
        for row, other, clip in zip(found, rows["loose"], NAMES):
            assert {k: row[k] for k in ("frames", "fps", "width", "height", "duration", "caption")} == {
                k: other[k] for k in ("frames", "fps", "width", "height", "duration", "caption")
            }
            if name != "snappy" and name != "loose":
                with open(row["path"], "rb") as file:
                    file.seek(row["offset"])
                    assert file.read(row["size"]) == (loose / clip).read_bytes()
    assert [row["row"] for row in rows["snappy"]] == list(range(6)) and {row["split"] for row in rows["snappy"]} == {
        "train"
    }
    assert [row["id"] for row in rows["tar"]] == [f"a.tar/part/{name}" for name in NAMES]
    assert rows["plain"][1]["id"] == "plain.parquet/1-001.gif"
    for row in rows["snappy"]:
        with media.fetched(media.of_row(row)) as clip:
            assert clip.data == (loose / row["id"].split("-")[-1]).read_bytes()


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_batches_are_those_of_loose_files(manifests, cache_gb):
    """For one process and two, from the first step on and from a later one."""
    for images in (False, True):
        buckets, options = ((1, 32, 48),) if images else ((5, 32, 48),), {"batch_size": 2, "cache_gb": cache_gb}
        batches = {}
        for name in manifests:
            # Ids, by which a split is chosen, differ: so every clip is for training here.
            text = manifests[name].read_text().splitlines()
            every = manifests[name].with_name(f"{name}-all.jsonl")
            every.write_text("".join(json.dumps(json.loads(line) | {"split": "train"}) + "\n" for line in text))
            config = make_config("clips", every, buckets=buckets, **options)
            batches[name] = run(config, 4)
            assert_same(run(config, 2, start_step=2), batches[name][2:])
            halves = [run(config, 2, process=(p, 2)) for p in range(2)]
            for step in range(2):
                both = np.concatenate([half[step]["video"] for half in halves])
                assert np.array_equal(both, batches[name][step]["video"])
            assert_same(batches[name], batches["loose"])


def test_what_is_damaged_is_named_and_the_rest_is_used(loose, tmp_path):
    whole = make_tar(tmp_path / "whole.tar", loose).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        places = {info.name.rpartition("/")[2]: info for info in tar}
    (tmp_path / "sets").mkdir()
    last = places["005.mp4"]
    (tmp_path / "sets" / "cut.tar").write_bytes(whole[: last.offset_data + last.size // 2])
    damaged = bytearray(whole)
    first = places["000.mp4"]
    damaged[first.offset_data : first.offset_data + first.size] = bytes(first.size)
    (tmp_path / "sets" / "damaged.tar").write_bytes(damaged)
    (tmp_path / "sets" / "nothing.tar").write_bytes(b"x" * 3000)
    (tmp_path / "sets" / "empty.tar").write_bytes(b"")
    rows = [
        {"image": {"bytes": (loose / "003.png").read_bytes(), "path": None}},
        {"image": {"bytes": None, "path": "x.png"}},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "sets" / "rows.parquet")
    summary = index(tmp_path / "sets", tmp_path / "m.jsonl", DATA)
    reasons = {
        (row := json.loads(line))["path"].rpartition("/sets/")[2]: row["reason"]
        for line in summary.rejected_list.open()
    }
    assert summary.accepted == 5 + 5 + 1 and len(reasons) == 6
    assert "cut short" in next(reason for name, reason in reasons.items() if name.endswith("cut.tar: part/005.mp4"))
    assert any(name.endswith("damaged.tar: part/000.mp4") for name in reasons)
    assert (
        "damaged or compressed tar" in reasons["nothing.tar"]
        and reasons["rows.parquet: 1-x.png"] == "the row holds nothing"
    )
    assert "damaged or compressed tar" in reasons["empty.tar"]
    # A shard that was cut after it was indexed costs its clips and not the run.
    (tmp_path / "a.tar").write_bytes(whole)
    index(tmp_path / "a.tar", tmp_path / "a.jsonl", DATA)
    (tmp_path / "a.tar").write_bytes(whole[: places["002.mp4"].offset_data + 100])
    with pytest.raises(UserError, match=r"a.tar: a.tar/part/005.mp4: cut short"):
        read_clip(media.of_row(read_manifest(tmp_path / "a.jsonl")[5]), height=32, width=48, num_frames=5)
    config = make_config("clips", tmp_path / "a.jsonl", buckets=((5, 32, 48),), batch_size=1, cache_gb=0.0)
    assert all(batch["video"].shape == (1, 5, 32, 48, 3) for batch in run(config, 6))


def test_fields_of_a_tar_are_kept(loose, tmp_path):
    make_tar(tmp_path / "a.tar", loose)
    for suffix in (".jsonl", ".arrow"):
        index(tmp_path / "a.tar", tmp_path / f"m{suffix}", DATA, Options(keep=("aesthetic_score",)))
        assert [row["aesthetic_score"] for row in read_manifest(tmp_path / f"m{suffix}")] == [i + 0.5 for i in range(6)]
    with pytest.raises(UserError, match="'frames' is a field of every manifest"):
        Options(keep=("frames",))


# Lists and folders of known sets ------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path):
    write_video(tmp_path / "abc.mp4", numbered_video(48), 12)
    (tmp_path / "p" / "Make UpTest").mkdir(parents=True)
    write_video(tmp_path / "p" / "Make UpTest" / "77.mp4", numbered_video(6), 12)
    return tmp_path


def test_lists_of_known_sets(clips):
    (clips / "panda.csv").write_text(
        "url,videoID,timestamp,caption,matching_score\n"
        "u,abc,\"[['0:00:00.500', '0:00:01.500'], ['0:00:02.000', '0:00:09.000']]\",\"['one', \"\"it's two\"\"]\",\"[0.4, 0.5]\"\n"
        "u,abc,\"[['0:00:08.000', '0:00:09.000']]\",\"['late']\",[0.1]\nu,abc,\"[['1', '2']]\",\"['a', 'b']\",[0.1]\n"
    )
    summary = index(clips / "panda.csv", clips / "m.arrow", DATA, Options(keep=("matching_score",)))
    rows = list(read_manifest(summary.manifest))
    assert [(row["id"], row["start"], row["end"], row["frames"], row["caption"]) for row in rows] == [
        ("abc@0.5-1.5", 0.5, 1.5, 12, "one"),
        ("abc@2-9", 2.0, 4.0, 24, "it's two"),
    ]
    assert [row["matching_score"] for row in rows] == [0.4, 0.5]
    reasons = [json.loads(line)["reason"] for line in summary.rejected_list.open()]
    assert reasons[0].startswith("it has 4.00 s, so nothing from 8 s on") and "1 times and 2 captions" in reasons[1]
    for cache_gb in (0.0, 1.0):  # frames of the clip, and no others
        config = make_config("clips", clips / "m.arrow", buckets=((9, 32, 48),), batch_size=2, cache_gb=cache_gb)
        for batch in run(config, 3):
            for video in batch["video"]:
                numbers = frame_numbers(video)
                assert numbers == list(range(numbers[0], numbers[0] + 9))
                assert 6 <= numbers[0] <= 9 or 24 <= numbers[0] <= 39
    (clips / "webvid.csv").write_text("videoid,contentUrl,duration,page_dir,name\n77,u,PT00H,p/Make UpTest,a test\n")
    (clips / "openvid.csv").write_text("video,caption,aesthetic score,fps,frame\nabc.mp4,a clip,5.5,12,48\n")
    assert [row["caption"] for row in read_manifest(index(clips / "webvid.csv", clips / "w.jsonl", DATA).manifest)] == [
        "a test"
    ]
    (row,) = read_manifest(
        index(clips / "openvid.csv", clips / "o.jsonl", DATA, Options(keep=("aesthetic_score",))).manifest
    )
    assert (row["aesthetic_score"], row["frames"], row["caption"]) == (5.5, 48, "a clip")
    (row,) = read_manifest(index(clips / "p", clips / "f.jsonl", DATA, Options(captions="folder")).manifest)
    assert row["caption"] == "make up test"


@pytest.mark.fast("making up", "val/making_up")
@pytest.mark.parametrize("folder", ["", "making up", "making_up", "val", "val/making_up"])
def test_lists_of_kinetics(clips, folder):
    """The clip of a row has its times in its name, and lies in any of the folders in use; one that is not there is rejected."""
    place = clips / "kinetics" / folder / "abc_000010_000020.mp4"
    place.parent.mkdir(parents=True)
    place.write_bytes((clips / "abc.mp4").read_bytes())
    (clips / "kinetics" / "validate.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nmaking up,gone,1,11,validate\nmaking up,abc,10,20,validate\n"
        "making up,gone,2,12,validate\nmaking up,abc,x,20,validate\n"
    )
    summary = index(clips / "kinetics" / "validate.csv", clips / "k.jsonl", DATA)
    (row,) = read_manifest(summary.manifest)
    assert (row["id"], row["caption"], row["split"]) == ("abc_000010_000020.mp4", "making up", "validation")
    assert "start" not in row and row["frames"] == 48
    found = [json.loads(line) for line in summary.rejected_list.open()]
    assert [fact["path"].removeprefix(str(clips / "kinetics")).lstrip("/") for fact in found] == [
        "gone_000001_000011.mp4", f"{folder}/gone_000002_000012.mp4".lstrip("/"), "abc",
    ]  # fmt: skip
    assert [fact["reason"] for fact in found[:2]] == ["no such file"] * 2 and "could not convert" in found[2]["reason"]


def test_times_of_lists(clips):
    (clips / "m.jsonl").write_text(
        "".join(
            json.dumps({"path": "abc.mp4", "caption": "x", "start": start, "end": end}) + "\n"
            for start, end in ((0, 1), ("0:01", "0:02.5"), (3, 2), ("x", 2), (None, None))
        )
    )
    summary = index(clips / "m.jsonl", clips / "out.jsonl", DATA)
    assert [row.get("start") for row in read_manifest(summary.manifest)] == [0.0, 1.0, None]
    reasons = [json.loads(line)["reason"] for line in summary.rejected_list.open()]
    assert "before it begins" in reasons[0] and "is no time" in reasons[1]


# Captions and actions -----------------------------------------------------------------------------------------------


def test_one_of_several_captions_is_drawn_by_the_example(clips):
    (clips / "l.jsonl").write_text(
        json.dumps({"path": "abc.mp4", "caption": ["short", "a very long caption of it", "short"]})
    )
    (row,) = read_manifest(index(clips / "l.jsonl", clips / "m.jsonl", DATA).manifest)
    assert row["caption"] == "short" and row["captions"] == ["short", "a very long caption of it"]
    config = make_config("clips", clips / "m.jsonl", buckets=((5, 32, 48),), batch_size=1)
    batches = run(config, 16)
    lengths = [int(batch["text_length"][0]) for batch in batches]
    assert len(set(lengths)) == 2
    assert_same(run(config, 8, start_step=8), batches[8:])
    draws = np.random.default_rng(0)
    for power, share in ((0.0, 1 / 2), (1.0, 6 / 7), (-1.0, 1 / 7)):
        drawn = [captions.draw(row["captions"], draws, power) != "short" for _ in range(2000)]
        assert abs(np.mean(drawn) - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    assert captions.draw(row["captions"], None, 1.0) == "short" and captions.draw("one", draws, 0.0) == "one"


def make_robot(folder, version):
    """Two episodes of 12 and 16 frames; action i of an episode is (frame number in the video, episode)."""
    lengths, camera = [12, 16], "observation.images.top"
    rows = lambda first, n, e: [
        {"action": [float(first + i), float(e)], "episode_index": e, "frame_index": i} for i in range(n)
    ]
    info = {
        "codebase_version": version, "fps": 12, "chunks_size": 1000, "splits": {"train": "0:2"},
        "features": {camera: {"dtype": "video"}, "action": {"dtype": "float32", "shape": [2]}},
    }  # fmt: skip
    (folder / "meta").mkdir(parents=True)
    if version == "v2.1":
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        for e, n in enumerate(lengths):
            write_video(folder / f"videos/chunk-000/{camera}/episode_{e:06d}.mp4", numbered_video(n), 12)
            (folder / "data/chunk-000").mkdir(parents=True, exist_ok=True)
            parquet.write_table(
                pyarrow.Table.from_pylist(rows(0, n, e)), folder / f"data/chunk-000/episode_{e:06d}.parquet"
            )
        lines = [json.dumps({"episode_index": e, "tasks": [f"task {e}"], "length": n}) for e, n in enumerate(lengths)]
        (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    else:
        info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", numbered_video(28), 12)
        (folder / "data/chunk-000").mkdir(parents=True)
        (folder / "meta/episodes/chunk-000").mkdir(parents=True)
        parquet.write_table(
            pyarrow.Table.from_pylist(rows(0, 12, 0) + rows(12, 16, 1)), folder / "data/chunk-000/file-000.parquet"
        )
        episodes = [
            {
                "episode_index": e, "tasks": [f"task {e}"], "length": n, "data/chunk_index": 0, "data/file_index": 0,
                "dataset_from_index": first, "dataset_to_index": first + n, f"videos/{camera}/chunk_index": 0,
                f"videos/{camera}/file_index": 0, f"videos/{camera}/from_timestamp": first / 12,
                f"videos/{camera}/to_timestamp": (first + n) / 12, "stats/action/mean": [0.0],
            }
            for e, n, first in ((0, 12, 0), (1, 16, 12))
        ]  # fmt: skip
        parquet.write_table(pyarrow.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet")
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("fps", [0.0, 6.0])
def test_episodes_of_robots_keep_their_actions(tmp_path, version, fps):
    """Every frame in a record has the action of its own time, wherever the window begins."""
    make_robot(tmp_path / "set", version)
    index(tmp_path / "set", tmp_path / "m.arrow", DATA)
    rows = list(read_manifest(tmp_path / "m.arrow"))
    assert [(row["caption"], row["frames"], row["split"]) for row in rows] == [
        ("task 0", 12, "train"),
        ("task 1", 16, "train"),
    ]
    assert actions.read(rows[1]["actions"]).shape == (16, 2)
    config = make_config("clips", tmp_path / "m.arrow", buckets=((5, 32, 48),), batch_size=2, fps=fps)

    class Numbers(FakeTokenizer):
        def encode(self, videos):
            return np.array(
                [np.pad(np.array(frame_numbers(video))[:, None, None], ((0, 0), (0, 3), (0, 5))) for video in videos]
            )

    tokenize(config, Numbers(), tmp_path / "tokens", splits=("train",))
    records = list(RecordSource(sorted((tmp_path / "tokens").glob("*.array_record"))))
    assert len(records) == (7 if fps == 0 else 4)
    for record in records:
        episode = int(record["caption"][-1])
        numbers = record["tokens"][:, 0, 0].astype(int)
        assert record["actions"].tolist() == [[float(n), float(episode)] for n in numbers]


def test_bad_references_to_actions_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 2)))
    assert actions.read(f"{tmp_path}/a.npy:[1:3]").shape == (2, 2)
    for text, message in (
        ("a.npy", "expected file:column"),
        (f"{tmp_path}/a.npy:[1:9]", "4 rows"),
        (f"{tmp_path}/b.npy:[0:1]", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            actions.read(text)
