"""Sources of different kinds in one run: shares by weight, epochs counted for each, and what `lumos info` says of it."""

import json
from collections import Counter

import numpy as np
import pytest
from test_containers import make_tar
from test_pipeline import assert_same, clip_ids, make_config, run, write_tokens
from test_video import frame_numbers, numbered_video

from lumos.config import DataConfig
from lumos.data.index import index
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.info import mixture
from lumos.info.kinds import describe


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


def test_tokens_and_clips_do_not_mix(manifests, tmp_path):
    write_tokens(tmp_path / "tokens", range(10))
    for source in ("clips", "tokens"):
        with pytest.raises(UserError, match="all sources of a run are of one kind"):
            run(
                make_config(
                    source,
                    f"{manifests['loose']},{tmp_path}/tokens",
                    buckets=((3, 4, 6),) if source == "tokens" else ((5, 32, 48),),
                ),
                1,
            )
