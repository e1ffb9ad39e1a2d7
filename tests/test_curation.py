"""Manifests made of manifests: cut at scenes or by a list, filtered by conditions and by what clips look like; each says where it comes from."""

import json

import numpy as np
import pytest
from test_pipeline import make_config, run
from test_video import frame_numbers, numbered_video

from lumos import cli
from lumos.config import DataConfig
from lumos.data import filter as filter_module
from lumos.data import lineage, look_alike
from lumos.data.candidates import Options
from lumos.data.cut import cut
from lumos.data.expressions import compile_condition, names_in
from lumos.data.filter import filter_manifest
from lumos.data.index import index
from lumos.data.manifest import fingerprint, read_manifest
from lumos.data.video_writer import write_video
from lumos.errors import UserError


def scenes(*lengths) -> np.ndarray:
    """Frames of plain colours, another one for every scene."""
    colours = [(250, 250, 250), (10, 10, 10), (200, 30, 30), (20, 20, 60)]
    return np.concatenate(
        [np.broadcast_to(np.array(colours[i], np.uint8), (n, 32, 48, 3)) for i, n in enumerate(lengths)]
    )


@pytest.fixture
def manifest(tmp_path):
    write_video(tmp_path / "a.mp4", scenes(24, 36, 6, 30), 12)
    write_video(tmp_path / "b.mp4", scenes(30), 12)
    (tmp_path / "a.txt").write_text("four scenes of it")
    return index(tmp_path, tmp_path / "m.jsonl", DataConfig()).manifest


@pytest.mark.parametrize("suffix", [".jsonl", ".arrow"])
def test_scenes_become_clips(manifest, tmp_path, suffix):
    out = tmp_path / f"cut{suffix}"
    found = cut(str(manifest), str(out), least=1.0, most=2.0)
    rows = list(read_manifest(out))
    times = [(row["start"], row["end"], row["frames"]) for row in rows]
    assert times == [
        (0, 2, 24),
        (2, 3.5, 18),
        (3.5, 5, 18),
        (5.5, 6.75, 15),
        (6.75, 8, 15),
        (0, 1.25, 15),
        (1.25, 2.5, 15),
    ]
    assert (found.clips, found.too_short, found.unreadable) == (7, 1, 0) and rows[0]["id"] == "a.mp4@0-2"
    (step,) = lineage.read(out)
    assert step["before"]["fingerprint"] == fingerprint(read_manifest(manifest)) and step["fingerprint"] == fingerprint(
        read_manifest(out)
    )
    config = make_config("clips", out, buckets=((13, 32, 48),), batch_size=1)
    for batch in run(config, 6):  # a clip has one colour
        assert np.ptp(batch["video"].astype(int), axis=(1, 2, 3)).max() < 16


def test_cuts_of_a_list_and_conditions_are_a_history(tmp_path):
    write_video(tmp_path / "a.mp4", numbered_video(48), 12)
    index(tmp_path / "a.mp4", tmp_path / "m.jsonl", DataConfig())
    (tmp_path / "cuts.csv").write_text("path,start,end\na.mp4,0:00:00.5,0:00:01.5\na.mp4,2,9\na.mp4,8,9\n")
    cut(str(tmp_path / "m.jsonl"), str(tmp_path / "c.jsonl"), cuts=str(tmp_path / "cuts.csv"))
    assert (
        cli.main(["data", "filter", f"--manifest={tmp_path}/c.jsonl", f"--out={tmp_path}/f.jsonl", "--where=start > 1"])
        == 0
    )
    (row,) = read_manifest(tmp_path / "f.jsonl")
    assert (row["start"], row["end"], row["frames"]) == (2.0, 4.0, 24)
    steps = lineage.read(tmp_path / "f.jsonl")
    assert [step["step"] for step in steps] == ["cut", "filter"] and steps[0]["fingerprint"] == steps[1]["before"][
        "fingerprint"
    ]
    assert [step["clips"] for step in steps] == [2, 1]
    (batch,) = run(make_config("clips", tmp_path / "f.jsonl", buckets=((9, 32, 48),), batch_size=1), 1)
    assert 24 <= frame_numbers(batch["video"][0])[0] <= 39
    (tmp_path / "bad.csv").write_text("path,start,end\nx.mp4,0,1\n")
    with pytest.raises(UserError, match="x.mp4 is neither id nor path of a clip"):
        cut(str(tmp_path / "m.jsonl"), str(tmp_path / "d.jsonl"), cuts=str(tmp_path / "bad.csv"))


def test_conditions():
    row = {"id": "a", "width": 640, "height": 360, "duration": 4.0, "split": "train", "aesthetic": 5.5}
    for text, holds in (
        ("width >= 640 and 2 < duration < 5", True), ("not width > 640", True), ("width / height > 2 or duration == 4", True),
        ("split in ['train', 'test']", True), ("split not in ['train']", False), ("missing > 3", False), ("not missing > 3", True),
        ("missing > 3 or width == 640", True), ("-width < 0 and aesthetic - 0.5 == 5", True), ("width", True),
    ):  # fmt: skip
        assert compile_condition(text)(row) is holds, text
    assert names_in("a > 1 and b in ['c']") == {"a", "b"}
    for text in (
        "__import__('os')",
        "width.real",
        "(lambda: 1)()",
        "[x for x in width]",
        "width ** 9",
        "f'{width}'",
        "width[0]",
        "1 if 1 else 2",
    ):
        with pytest.raises(UserError, match="is not allowed"):
            compile_condition(text)
    for text in ("width >", "", "a b"):
        with pytest.raises(UserError, match="not a condition"):
            compile_condition(text)
    with pytest.raises(UserError, match="not supported between"):
        compile_condition("split > 3")(row)


def test_clips_are_filtered_by_columns(manifest, tmp_path):
    found = filter_manifest(
        str(manifest), str(tmp_path / "f.arrow"), where="words >= 3 and pixels < 2000 and aspect > 1"
    )
    assert found.clips == 1 and found.dropped == {"by --where": 1}
    assert [row["id"] for row in read_manifest(tmp_path / "f.arrow")] == ["a.mp4"]
    for where, message in (("motion > 1", "no row has 'motion'"), ("duration > 99", "no clip is left of 2")):
        with pytest.raises(UserError, match=message):
            filter_manifest(str(manifest), str(tmp_path / "g.jsonl"), where=where)
    assert not (tmp_path / "g.jsonl").exists()
    with pytest.raises(UserError, match="would overwrite"):
        filter_manifest(str(manifest), str(manifest), where="duration > 0")


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Six clips: 2 is 0 but brighter, 4 is 1 but brighter, 5 has the middle of 0 between other frames; 3 is not there any more."""
    folder, rng = tmp_path_factory.mktemp("alike"), np.random.default_rng(0)
    pictures = [rng.integers(0, 249, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(4)]
    for i, (picture, shift) in enumerate([(0, 0), (1, 0), (0, 6), (2, 0), (1, 3), (0, 0)]):
        clip = np.repeat(pictures[picture][None] + np.uint8(shift), 8, axis=0)
        if i == 5:
            clip[:3] = clip[5:] = pictures[3]
        write_video(folder / f"{i}.mp4", clip, 12)
    index(folder, folder / "m.jsonl", DataConfig(), Options())
    (folder / "3.mp4").unlink()
    return folder


def test_of_clips_that_look_alike_the_first_is_kept(alike, tmp_path):
    found = filter_manifest(str(alike / "m.jsonl"), str(alike / "f.jsonl"), near_duplicates=6)
    assert [row["id"] for row in read_manifest(alike / "f.jsonl")] == ["0.mp4", "1.mp4", "5.mp4"]
    assert found.dropped == {"that look like one before": 2, "that cannot be read": 1}
    assert json.loads((alike / "f.jsonl.lineage.json").read_text())[0]["near_duplicates"] == 6
    with pytest.raises(UserError, match="no clip is left of 6"):
        filter_manifest(str(alike / "m.jsonl"), str(alike / "g.jsonl"), where="id == '3.mp4'", near_duplicates=6)
    assert not list(alike.glob(".*")) and not (alike / "g.jsonl").exists()


def test_what_was_looked_at_before_a_kill_is_not_looked_at_again(alike, monkeypatch):
    """Whatever the parts, the clips that are kept are the same; parts of another condition are not used."""
    source, out = str(alike / "m.jsonl"), alike / "h.jsonl"
    filter_manifest(source, str(out), where="id > '0.mp4'", near_duplicates=6)
    wanted = out.read_text()
    out.unlink()
    monkeypatch.setattr(filter_module, "_CLIPS_OF_PART", 2)
    hashes_of, looked_at = look_alike.hashes_of, []

    def killed(row):
        looked_at.append(row["id"])
        if row["id"] == "4.mp4":
            raise KeyboardInterrupt
        return hashes_of(row)

    monkeypatch.setattr(look_alike, "hashes_of", killed)
    with pytest.raises(KeyboardInterrupt):
        filter_manifest(source, str(out), where="id > '0.mp4'", near_duplicates=6, threads=1)
    monkeypatch.setattr(look_alike, "hashes_of", lambda row: (looked_at.append(row["id"]), hashes_of(row))[1])
    found = filter_manifest(source, str(out), where="id > '0.mp4'", near_duplicates=6)
    assert out.read_text() == wanted and found.dropped["by --where"] == 1 and found.clips == 3
    assert looked_at.count("1.mp4") == looked_at.count("2.mp4") == 1 and looked_at.count("5.mp4") >= 1
    (alike / ".h.jsonl.parts").mkdir()
    (alike / ".h.jsonl.parts" / "plan").write_text("of something else")
    (alike / ".h.jsonl.parts" / "000000.jsonl").write_text("null\n" * 2)
    assert filter_manifest(source, str(out), where="id > '0.mp4'", near_duplicates=6) == found


@pytest.mark.parametrize("distance", [0, 1, 4, 13])
def test_like_hashes_are_found(distance):
    """Against all pairs."""
    rng = np.random.default_rng(distance)
    clips = [rng.integers(0, 1 << 64, look_alike.FRAMES, dtype=np.uint64) for _ in range(40)]
    flips = lambda: np.packbits(rng.random((look_alike.FRAMES, 64)) < rng.random() * 14 / 64, axis=1).view(np.uint64)[
        :, 0
    ]
    clips += [clip ^ flips() for clip in clips]
    seen, kept = look_alike.Seen(distance), []
    for clip in clips:
        expected = any(np.bitwise_count(clip ^ other).mean() <= distance for other in kept)
        assert seen.has_like(clip.tolist()) == expected
        if not expected:
            seen.add(clip.tolist())
            kept.append(clip)
    assert len(kept) < len(clips) or distance < 1
