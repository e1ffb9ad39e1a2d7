"""Sources of different kinds in one run: shares by weight, epochs counted for each, and what `lumos info` says of it."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import tiny
import untrained
from test_containers import make_tar
from test_pipeline import assert_same, clip_ids, make_config, run, write_tokens
from test_token_folder import FakeTokenizer
from test_video import frame_numbers, numbered_video
from tokens import one_device, run_config  # noqa: F401

from lumos.config import DataConfig
from lumos.data.index import index
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.geometry import token_shape
from lumos.info import mixture
from lumos.info.kinds import describe
from lumos.runtime import metrics_writer
from lumos.tokenizers import pretrained
from lumos.tokenizers.tokenize import tokenize
from lumos.training.loop import train
from lumos.training.match_data import encoder_of, match_data


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Loose videos, a tar of others (which begin with a later number), and pictures."""
    folder = tmp_path_factory.mktemp("mixture")
    for kind, start in (("loose", 0), ("packed", 20)):
        for i in range(3):
            write_video(folder / kind / f"{i:03d}.mp4", numbered_video(50)[start + i : start + i + 7], 12)
            (folder / kind / f"{i:03d}.txt").write_text(kind)
            (folder / kind / f"{i:03d}.json").write_text("{}")
    for i in range(5):
        write_video(folder / "pictures" / f"{i}.png", numbered_video(50)[45 + i :][:1], 12)
    make_tar(folder / "packed.tar", folder / "packed", [f"{i:03d}.mp4" for i in range(3)])
    found = {}
    for name, source in (("loose", "loose"), ("packed", "packed.tar"), ("pictures", "pictures")):
        path = index(folder / source, folder / f"{name}.jsonl", DataConfig()).manifest
        rows = [json.loads(line) | {"split": "train"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found[name] = path
    return found


def make(manifests, **data):
    path = ",".join(f"{manifests[name]}={weight}" for name, weight in (("loose", 3), ("packed", 1), ("pictures", 1)))
    return make_config("clips", path, buckets=((5, 32, 48),), batch_size=4, image_fraction=0.5, **data)


def test_videos_and_pictures_share_by_their_weights(manifests):
    config = make(manifests)
    batches = run(config, 40)
    counts = {True: Counter(), False: Counter()}
    for batch in batches:
        for video in batch["video"]:
            first = frame_numbers(video[:1])[0]
            counts[len(video) == 1][0 if first < 15 else 1 if first < 40 else 2] += 1
    videos, images = counts[False], counts[True]
    assert videos.total() == 20 * 4 and images.total() == 20 * 8  # a picture has half the tokens of a clip
    assert (videos[0], videos[1], videos[2]) == (60, 20, 0) and (images[0], images[1], images[2]) == (96, 32, 32)
    assert_same(run(config, 4, start_step=20), batches[20:24])
    halves = [run(config, 4, process=(p, 2)) for p in range(2)]
    for step in range(4):
        assert np.array_equal(np.concatenate([half[step]["video"] for half in halves]), batches[step]["video"])


def test_info_says_what_a_mixture_draws(manifests, tmp_path):
    config = make(manifests)
    config.save(tmp_path / "config.json")
    facts = describe(tmp_path / "config.json")
    assert facts["problems"] == []
    steps = config.train.num_steps
    loose, packed, pictures = facts["draws"].values()
    assert loose["video_clips"] == 3 and loose["video_examples"] == round(0.5 * steps * 4 * 3 / 4)
    assert loose["video_epochs"] == loose["video_examples"] / 3
    assert (pictures["image_clips"], "video_clips" in pictures) == (5, False)
    assert pictures["image_examples"] == pytest.approx(0.5 * steps * 8 / 5, abs=4)
    assert sum(row["share"] for row in facts["draws"].values()) == pytest.approx(1, abs=1e-3)
    problems = []
    assert mixture.draws(make_config("clips", tmp_path / "absent.jsonl"), problems) == {} and len(problems) == 1


def test_pictures_without_picture_batches_are_refused(manifests):
    with pytest.raises(UserError, match="pictures.jsonl .train.: no clip fills a bucket"):
        run(make_config("clips", f"{manifests['loose']},{manifests['pictures']}", buckets=((5, 32, 48),)), 1)
    with pytest.raises(UserError, match="pictures.jsonl .train.: no clip fills a bucket"):
        run(make_config("clips", manifests["pictures"], buckets=((5, 32, 48),), image_fraction=0.5), 1)


def test_tokens_of_videos_and_of_pictures_share_by_their_weights(tmp_path):
    write_tokens(tmp_path / "videos", range(10))
    write_tokens(tmp_path / "pictures", range(100, 104), shape=(1, 4, 6))
    config = make_config(
        "tokens", f"{tmp_path}/videos=3,{tmp_path}/pictures=1", buckets=((3, 4, 6), (1, 4, 6)), batch_size=4
    )
    counts = Counter()
    for batch in run(config, 60):
        counts.update("picture" if clip >= 100 else "video" for clip in clip_ids(batch))
    assert counts["video"] / counts.total() == pytest.approx(0.75, abs=0.05)


def test_tokens_tars_and_pictures_share_by_their_weights(manifests, tmp_path):
    """Clips in pixels beside tokens are encoded when they are needed, whatever the process, the step and the batch."""
    write_tokens(tmp_path / "tokens", range(100, 104))
    path = ",".join([f"{tmp_path}/tokens=2", *(f"{manifests[name]}=1" for name in ("loose", "packed", "pictures"))])
    config = make_config("tokens", path, buckets=((2, 4, 6),), batch_size=4, image_fraction=0.5)
    encode = FakeTokenizer().encode
    batches = run(config, 40, encode=encode)
    counts = {frames: Counter() for frames in (1, 2)}
    for batch in batches:
        kinds = (
            "loose" if i < 15 else "packed" if i < 40 else "pictures" if i < 60 else "tokens" for i in clip_ids(batch)
        )
        counts[batch["tokens"].shape[1]].update(kinds)
    assert counts[2] == {"tokens": 40, "loose": 20, "packed": 20}
    assert counts[1] == {"tokens": 64, "loose": 32, "packed": 32, "pictures": 32}
    assert_same(run(config, 4, start_step=20, encode=encode), batches[20:24])
    halves = [run(config, 4, process=(p, 2), encode=encode) for p in range(2)]
    for step in range(4):
        assert np.array_equal(np.concatenate([half[step]["tokens"] for half in halves]), batches[step]["tokens"])
    config.save(tmp_path / "config.json")
    assert [row["share"] for row in describe(tmp_path / "config.json")["draws"].values()] == [
        0.4333,
        0.2167,
        0.2167,
        0.1333,
    ]


@pytest.mark.parametrize("composition, parts", [("single", 1), ("grouped", 2), ("layers", 2)])
def test_clips_are_cut_for_the_grids_of_their_tokens(manifests, composition, parts):
    """The pixels of a grid are those that the tokenizer makes it of."""
    config = make_config("tokens", manifests["loose"], buckets=((2, 4, 6),))
    tokenizer = dataclasses.replace(config.tokenizer, composition=composition, parts=parts)
    grid = token_shape(tokenizer, 5, 32, 48)
    config = dataclasses.replace(config, tokenizer=tokenizer, data=dataclasses.replace(config.data, buckets=(grid,)))
    seen = []
    encode = lambda video: (seen.append(video.shape), np.zeros((1, *grid), np.int32))[1]
    (batch,) = run(config, 1, encode=encode)
    assert batch["tokens"].shape[1:] == grid and set(seen) == {(1, 5, 32, 48, 3)}


@pytest.fixture
def tokenizer():
    with untrained.make() as generator:
        assert pretrained.load("fake") is generator.tokenizer
        yield generator.tokenizer


def test_encoded_clips_are_those_of_a_folder_of_tokens(manifests, tmp_path, tokenizer):
    """Clips as long as the bucket, so that both have the same cut."""
    clips = make_config("clips", manifests["loose"], buckets=((5, 32, 32),), batch_size=3)
    clips = dataclasses.replace(clips, tokenizer=tokenizer.config)
    rows = [json.loads(line) | {"frames": 5} for line in manifests["loose"].read_text().splitlines()]
    (tmp_path / "five.jsonl").write_text(
        "".join(json.dumps(r | {"path": str(manifests["loose"].parent / r["path"])}) + "\n" for r in rows)
    )
    clips = dataclasses.replace(clips, data=dataclasses.replace(clips.data, path=f"{tmp_path}/five.jsonl"))
    tokenize(clips, tokenizer, str(tmp_path / "tokens"), splits=("train",), clips_per_shard=3)
    found = []
    for path in ("tokens", "five.jsonl"):
        config = make_config(
            "tokens", f"{tmp_path}/{path}", buckets=(token_shape(tokenizer.config, 5, 32, 32),), batch_size=3
        )
        config = dataclasses.replace(config, tokenizer=tokenizer.config, tokenizer_workdir="fake")
        (batch,) = run(config, 1, train=False, encode=encoder_of(config))
        found.append(sorted(batch["tokens"].tolist()))
    assert found[0] == found[1] and len(found[0]) == 3


def test_what_clips_in_pixels_need_beside_tokens_is_said(manifests, tmp_path, tokenizer):
    write_tokens(tmp_path / "tokens", range(10))
    facts = {"codebook_size": 30, "grid": [2, 4, 6], "tokenizer": {"fingerprint": None}, "fps": 8}
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(facts))
    config = tiny.transformer(
        data__path=f"{tmp_path}/tokens,{manifests['loose']}",
        data__buckets=(),
        sequence__grid=(0, 0, 0),
        train__num_samples=0,
        model__text_vocab=0,
    )
    with pytest.raises(UserError, match="set config.tokenizer_workdir to the tokenizer"):
        match_data(config)
    config = dataclasses.replace(config, tokenizer_workdir="fake")
    with pytest.raises(UserError, match="different frames a second, 8 .*, 12 .*loose.jsonl"):
        match_data(config)
    matched = match_data(dataclasses.replace(config, data=dataclasses.replace(config.data, fps=8.0)))
    assert matched.tokenizer == tokenizer.config and matched.data.buckets == ((2, 4, 6),)
    with pytest.raises(UserError, match="names no folder of tokens"):
        match_data(dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(manifests["loose"]))))
    with pytest.raises(UserError, match="do not go with config.sequence.streams"):
        run(dataclasses.replace(matched, sequence=dataclasses.replace(matched.sequence, streams=((4, 1),))), 1)
    with pytest.raises(UserError, match="tokens is a folder, not a manifest"):
        run(make_config("clips", f"{manifests['loose']},{tmp_path}/tokens"), 1)


@pytest.mark.slow
def test_a_run_on_tokens_and_pixels_resumes_bit_for_bit(manifests, tmp_path, tokenizer, one_device):  # noqa: F811
    clips = make_config("clips", manifests["loose"], buckets=((5, 32, 32),), batch_size=3)
    clips = dataclasses.replace(clips, tokenizer=tokenizer.config)
    tokenize(clips, tokenizer, str(tmp_path / "tokens"), splits=("train",), clips_per_shard=3)
    path, found = f"{tmp_path}/tokens=1,{manifests['packed']}=1,{manifests['pictures']}=1", {}
    for name, starts in (("whole", (6,)), ("parts", (2, 6))):
        for steps in starts:
            options = {
                "train__num_steps": steps,
                "tokenizer_workdir": "fake",
                "data__image_fraction": 0.3,
                "data__batch_size": 4,
            }
            options |= {
                "data__buckets": (),
                "sequence__grid": (0, 0, 0),
                "optimizer__schedule": "constant",
                "optimizer__warmup_steps": 0,
                "data__eval_split": "train",
            }
            train(run_config(path, **options), str(tmp_path / name))
        found[name] = [(line["step"], line["loss"]) for line in metrics_writer.read(tmp_path / name, "train")]
    assert found["whole"] == found["parts"] and len(found["whole"]) == 6
