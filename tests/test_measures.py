"""Metrics: their intervals, what they say of clips made for them, and functions from outside."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from runs import write_runs
from test_video import numbered_video

from lumos import cli, config_loading
from lumos.data import bair
from lumos.data.video import probe, read_clip
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.evaluation import distribution, i3d, measures, metric
from lumos.evaluation.frames import compare_frames, frame_statistics
from lumos.evaluation.subject import Subject
from lumos.videos.generator import Generator

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    run = write_runs(tmp_path_factory.mktemp("runs"), steps=(1,), evaluate__num_given=1, evaluate__num_frames=8)
    tokenizer_config = config_loading.parse(json.loads((run.parent / "tokenizer" / "config.json").read_text()))
    return Subject(Generator.load(run), tokenizer_config, seed=3)


def test_intervals_cover_the_mean_and_shrink_with_the_root_of_the_clips():
    rng, covered, widths = np.random.default_rng(0), 0, {}
    for num in (25, 100, 400):
        found = [metric.mean(rng.normal(5, 2, num), "") for _ in range(100)]
        covered += sum(m.low <= 5 <= m.high for m in found)
        widths[num] = np.mean([m.high - m.low for m in found])
    assert 0.90 <= covered / 300 <= 0.99
    np.testing.assert_allclose([widths[25] / widths[100], widths[100] / widths[400]], 2, rtol=0.08)
    np.testing.assert_allclose(widths[400], 2 * 1.96 * 2 / 20, rtol=0.05)  # of a normal mean
    curve = metric.mean(rng.normal(5, 2, (50, 3)), "p", "low")
    assert np.shape(curve.value) == np.shape(curve.low) == (3,) and curve.n == 50 and curve.better == "low"
    share = metric.ratio([1.0, 0.0, 3.0], [1.0, 2.0, 3.0], "")
    assert share.value == pytest.approx(4 / 6) and share.low <= share.value <= share.high


def test_kernel_distance_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (5, 4)), rng.normal(0.5, 1, (7, 4))
    k = lambda x, y: (x @ y / 4 + 1) ** 3
    within = lambda x: np.mean([k(p, q) for i, p in enumerate(x) for j, q in enumerate(x) if i != j])
    expected = within(a) + within(b) - 2 * np.mean([k(p, q) for p in a for q in b])
    assert distribution.kernel_distance(a, b) == pytest.approx(expected)


def test_distances_stand_beside_their_controls(monkeypatch):
    """With features that know the order of frames, shuffled clips are further away than the two halves of the real ones."""
    weights = np.random.default_rng(0).normal(size=(6, 4))
    features = lambda video: video.mean((2, 3, 4)).astype(float) @ weights
    monkeypatch.setattr(distribution, "features", features)
    real = np.sort(np.random.default_rng(1).integers(0, 256, (40, 6, 8, 8, 3), np.uint8), axis=1)
    reference = distribution.reference(real[:30])
    found = distribution.distances(reference, real[::-1], "made for a test")
    protocol = found["fvd"].protocol
    assert (
        found["fvd"].n == 30
        and "30 made against 30 real clips; 6 frames of 8x8" in protocol
        and "for a test" in protocol
    )
    assert found["fvd"].value == pytest.approx(i3d.frechet_distance(features(real[:30]), features(real[10:][::-1])))
    assert (
        found["fvd_of_shuffled"].value > 10 * found["fvd_of_halves"].value
        and found["fvd_of_still"].value > found["fvd_of_halves"].value
    )
    assert found["fvd"].better == "low" and found["fvd_of_still"].better == ""
    assert "60 made" in distribution.distances(reference, np.concatenate([real, real]), "")["kvd"].protocol


def test_real_clips_are_looked_at_once_for_all_cells(subject, monkeypatch):
    calls = []
    features = lambda video: calls.append(len(video)) or video.mean((2, 3, 4)).astype(float)
    monkeypatch.setattr(distribution, "features", features)
    for cell in (subject, dataclasses.replace(subject, seed=4)):
        found, _ = measures.fvd(cell)
    assert calls == [8, 8, 8, 8, 8]  # real, still, shuffled; then what each cell has made
    assert "8 made against 8 real clips; 8 frames of 32x32" in found["fvd"].protocol
    assert "1 frames given" in found["fvd"].protocol and found["fvd"].low < found["fvd"].value < found["fvd"].high


def test_statistics_of_frames_tell_frozen_flickering_and_moving_clips_apart():
    still = np.full((6, 16, 16, 3), 90, np.uint8)
    flicker = still.copy()
    flicker[1::2] += 20
    ramp = still + 4 * np.arange(6, dtype=np.uint8)[:, None, None, None]
    found = frame_statistics(np.stack([still, flicker, ramp]))
    np.testing.assert_allclose(found["motion"].mean(1), [0, 20, 4])
    np.testing.assert_allclose(found["flicker"].mean(1), [0, 20, 0])
    np.testing.assert_allclose(found["colour_shift"][2], 4 * np.sqrt(3) * np.arange(6), rtol=1e-6)
    assert (found["sharpness"] == 0).all()
    compared = compare_frames(np.stack([still, ramp]), np.stack([still, still]))
    np.testing.assert_allclose(compared["psnr"][1, 1:], 20 * np.log10(255 / (4 * np.arange(1, 6))), rtol=1e-5)
    np.testing.assert_allclose(
        compared["ssim"][0], 1, rtol=1e-5
    )  # variances of 0 are differences of numbers near 90 ** 2, in float32
    assert set(frame_statistics(still[None, :1])) == {"sharpness", "colour_shift"}


def test_a_continuation_is_measured_frame_by_frame(subject):
    found, clips = measures.continuation(subject)
    assert np.shape(found["psnr_frames"].value) == (8,) == np.shape(found["ssim_frames"].low)  # of 9
    frames = found["psnr_frames"].value
    assert found["psnr_first_new_frame"].value == frames[1] and found["psnr_new_frames"].value == pytest.approx(
        np.mean(frames[1:])
    )
    assert (
        "1 frames given" in found["psnr_frames"].protocol
        and len(clips) == 6
        and clips[0].video.shape == (9 - 1, 32, 64, 3)
    )
    settings = config_loading.override(subject.generator.config, {"evaluate.num_given": "0"})
    with pytest.raises(UserError, match="num_given"):
        measures.continuation(dataclasses.replace(subject, generator=subject.generator.with_settings(settings)))


def test_tokens_and_drift_are_measured_on_the_clips_of_the_prompts(subject):
    found = measures.tokens(subject)[0] | measures.drift(subject)[0]
    made = subject.generated
    assert found["code_usage"].value == len(np.unique(made.tokens)) / 30
    assert found["repetition"].value == pytest.approx((made.tokens[:, 1:] == made.tokens[:, :-1]).mean())
    assert np.shape(found["sharpness_frames"].value) == (9,) and found["frozen"].value == 0
    assert subject.captions and len(made.videos) == 8 and measures.prompts(subject)[0]["colour"].n == 8


def test_functions_from_outside_score_clips(subject, tmp_path, monkeypatch):
    (tmp_path / "my_metrics.py").write_text(
        "def brightness(videos, prompts):\n    assert len(videos) == len(prompts)\n    return {'brightness': videos.mean((1, 2, 3, 4)), 'curve': videos.mean((2, 3, 4))}\n"
        "def wrong(videos, prompts):\n    return {'x': [1.0]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found, _ = measures.from_outside("my_metrics:brightness")(subject)
    assert (
        found["brightness"].value == pytest.approx(subject.generated.videos.mean())
        and "my_metrics:brightness" in found["curve"].protocol
    )
    with pytest.raises(UserError, match="one value or curve for each of 8 clips"):
        measures.from_outside("my_metrics:wrong")(subject)
    for path in ("my_metrics:absent", "absent_module:f", "my_metrics"):
        with pytest.raises(UserError, match="not module:function"):
            measures.from_outside(path)
    settings = config_loading.override(
        subject.generator.config, {"evaluate.metrics": '("my_metrics:brightness",)'}
    ).evaluate
    assert list(measures.chosen(settings, ("tokens",))) == ["tokens", "my_metrics:brightness"]
    assert "continuation" in measures.chosen(settings) and "fvd" not in measures.chosen(settings)
    with pytest.raises(UserError, match="unknown measure 'x'"):
        measures.chosen(settings, ("x",))


def test_the_worked_example_of_a_metric_is_one(subject, monkeypatch):
    """The code in docs/howto.md, with stand-ins for the packages that it brings: it scores what it is given."""
    lines = (REPO / "docs" / "howto.md").read_text().splitlines()
    lines = lines[lines.index("    import open_clip, torch                       # pip install open_clip_torch") - 3 :]
    code = "\n".join(itertools.takewhile(lambda line: not line or line.startswith("    "), lines))
    tensor = lambda x: types.SimpleNamespace(numpy=lambda: x)
    model = types.SimpleNamespace(encode_image=lambda x: x, encode_text=lambda x: x)
    model.eval = lambda: model
    clip = types.SimpleNamespace(
        create_model_and_transforms=lambda *_, **__: (model, None, lambda image: np.asarray(image, np.float64)),
        get_tokenizer=lambda _: lambda words: len(words[0]),
    )
    torch = types.SimpleNamespace(
        no_grad=contextlib.nullcontext,
        stack=np.stack,
        cosine_similarity=lambda x, length: tensor(x.mean((1, 2, 3)) + 1000 * length),
    )
    module = types.ModuleType("my_metrics")
    for name, stand_in in (("open_clip", clip), ("torch", torch), ("my_metrics", module)):
        monkeypatch.setitem(sys.modules, name, stand_in)
    exec(textwrap.dedent(code), module.__dict__)
    found, _ = measures.from_outside("my_metrics:similarity")(subject)
    lengths = np.array([len(caption) for caption in subject.captions])
    expected = subject.generated.videos.mean((2, 3, 4)) + 1000 * lengths[:, None]
    np.testing.assert_allclose(found["clip_frames"].value, expected.mean(0))
    assert found["clip"].value == pytest.approx(expected.mean()) and found["clip"].low < found["clip"].high


@pytest.mark.parametrize(
    "name, given, clips, samples, size",
    [("ucf101", 0, 10_000, 1, 128), ("kinetics600", 5, 50_000, 1, 64), ("bair", 1, 256, 100, 64)],
)
def test_protocols_give_and_count_what_the_papers_do(name, given, clips, samples, size):
    config = config_loading.load(f"configs/benchmarks.py:{name},transformer")
    c = config.evaluate
    assert c.num_frames == 16 and (c.num_clips, c.samples_per_prompt) == (clips, samples)
    assert (1 + (c.num_given - 1) * 4 if c.num_given else 0) == given
    made = config_loading.load(f"configs/benchmarks.py:{name},tokenizer").data.buckets[0][1]
    assert (c.frame_size or made) == size
    assert config_loading.load(f"configs/benchmarks.py:{name},tokenizer").data.buckets[0][0] == 17


def publish(name, folder, write):
    """Lay a stand-in of a benchmark out as it is published; `write` makes a clip."""
    if name == "ucf101":
        for split, groups in (("train", (8, 9)), ("test", (1, 2))):
            (folder / "ucfTrainTestlist").mkdir(parents=True, exist_ok=True)
            names = [
                f"{c}/v_{c}_g{g:02d}_c{i:02d}.avi" for c in ("ApplyEyeMakeup", "YoYo") for g in groups for i in (1, 2)
            ]
            end = " 1" if split == "train" else ""
            (folder / "ucfTrainTestlist" / f"{split}list01.txt").write_text("".join(f"{n}{end}\r\n" for n in names))
            for clip in names:
                write(folder / "UCF-101" / clip)
    elif name == "kinetics600":
        for split in ("train", "val"):
            for i in range(8):
                write(folder / split / "playing chess" / f"{i:011d}_000001_000011.mp4")
    else:
        for split in ("train", "test"):
            for first in (0, 256):  # two files of four clips
                write_records(
                    folder / split / f"traj_{first}_to_{first + 255}.tfrecords",
                    [trajectory(first + i) for i in range(4)],
                )


def trajectory(number):
    """A clip as BAIR has it: 30 frames of 64x64 of noise."""
    return np.random.default_rng(number).integers(0, 256, (30, 64, 64, 3), np.uint8)


def write_records(path, clips, encode=np.ndarray.tobytes):
    """Write clips into a TFRecord file with the features of BAIR; every number of it is restated from its published layout."""
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for clip in clips:
            example = Example()
            for i, frame in enumerate(clip):
                for camera, pixels in (("image_main", 255 - frame), ("image_aux1", frame)):
                    example.features.feature[f"{i}/{camera}/encoded"].bytes_list.value.append(encode(pixels))
                example.features.feature[f"{i}/action"].float_list.value.extend([0.0] * 4)
                example.features.feature[f"{i}/endeffector_pos"].float_list.value.extend([0.0] * 3)
            data = example.SerializeToString()
            file.write(struct.pack("<Q", len(data)) + b"\0" * 4 + data + b"\0" * 4)


def test_records_of_bair_are_its_clips(tmp_path):
    """Frames come back as they were, whether as bytes or as PNG; a call that was stopped goes on, and damage is named."""
    data, out = tmp_path / "train", tmp_path / "out"
    as_png = lambda frame: (Image.fromarray(frame).save(file := io.BytesIO(), "png"), file.getvalue())[1]
    write_records(data / "traj_0_to_255.tfrecords", [trajectory(0), trajectory(1)])
    write_records(data / "traj_256_to_511.tfrecords", [trajectory(256)[:20]], as_png)
    paths = bair.unpack(data, out)
    assert [path.name for path in paths] == [
        f"traj_{name}.mkv" for name in ("0_to_255_000", "0_to_255_001", "256_to_511_000")
    ]
    for path, clip in zip(paths, (trajectory(0), trajectory(1), trajectory(256)[:20])):
        info = probe(path)
        assert (info.frames, info.height, info.width) == (len(clip), 64, 64)
        np.testing.assert_array_equal(read_clip(path, height=64, width=64), clip)
    paths[1].unlink()
    before = paths[0].stat().st_mtime_ns
    assert bair.unpack(data, out) == paths and paths[1].exists() and paths[0].stat().st_mtime_ns == before
    whole = (data / "traj_0_to_255.tfrecords").read_bytes()
    for i, (damaged, message) in enumerate((
        (whole[:-5000], "traj_0_to_255.tfrecords: damaged or cut short"), (whole[:5], "damaged or cut short"),
        (b"\xff" * 12 + whole[12:], "damaged or cut short"), (whole[:12] + b"\xff" * 40 + whole[52:], "record 0: damaged"),
        (struct.pack("<Q", 0) + b"\0" * 8, "no frames 0/image_aux1/encoded"),
    )):  # fmt: skip
        (data / "traj_0_to_255.tfrecords").write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            bair.unpack(data, tmp_path / f"other_{i}")


@pytest.mark.parametrize(
    "name, counts, caption",
    [
        ("ucf101", {"train": 8, "test": 8}, "apply eye makeup"),
        ("kinetics600", {"train": 8, "validation": 8}, "playing chess"),
        ("bair", {"train": 8, "test": 8}, ""),
    ],
)
def test_benchmarks_are_listed_as_they_are_published(name, counts, caption, tmp_path, capsys):
    write = lambda path: (path.parent.mkdir(parents=True, exist_ok=True), path.write_bytes(b""))
    publish(name, tmp_path / "data", write)
    command = ["data", "benchmark", f"--name={name}", f"--input={tmp_path}/data", f"--out={tmp_path}/clips.csv"]
    assert cli.main(command) == 0 and "8 of split train" in capsys.readouterr().out
    with open(tmp_path / "clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["path"].startswith("clips_clips/" if name == "bair" else "data/")  # seen from the list
    assert cli.main([*command, f"--out={tmp_path}/data/deeper.csv"]) == 0
    assert {split: sum(row["split"] == split for row in rows) for split in counts} == counts
    assert all((tmp_path / row["path"]).is_file() for row in rows)
    first = {row["caption"] for row in [row for row in rows if row["split"] == "train"][:4]}
    assert first == ({"apply eye makeup", "yo yo"} if name == "ucf101" else {caption})  # of all classes
    for wrong, message in (
        ([f"--input={tmp_path}"], "--input is the folder with"),
        (["--name=x"], "allowed: ucf101, "),
    ):
        assert cli.main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def write_clip(path):
    """Write 12 frames: MPEG-4 in AVI, as UCF-101 has it, or an MP4."""
    video = numbered_video(12, height=32, width=32)
    if path.suffix == ".mp4":
        write_video(path, video, 8)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=8, width=32, height=32, pix_fmt="yuv420p")
        for frame in (*video, None):
            out.mux(stream.encode(None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ucf101", "kinetics600", "bair"])
def test_a_protocol_runs_on_the_users_folder(name, tmp_path):
    publish(name, tmp_path / "data", write_clip)
    (tmp_path / "configs").symlink_to(REPO / "configs")
    (tmp_path / name).mkdir()
    config = f"--config=configs/benchmarks.py:{name}"
    for command in (
        ["data", "benchmark", f"--name={name}", "--input=data", f"--out={name}/clips.csv"],
        ["data", "index", f"--input={name}/clips.csv", f"--out={name}/clips.jsonl"],
        ["train", f"{config},tokenizer,smoke", f"--workdir={name}/tokenizer"],
        ["tokenize", f"{config},tokenizer,smoke", f"--workdir={name}/tokenizer", f"--out={name}/tokens"],
        ["train", f"{config},transformer,smoke", f"--workdir={name}/transformer"],
        ["evaluate", f"--workdir={name}/transformer", "--out=report"],
    ):
        done = subprocess.run([sys.executable, "-m", "lumos", *command], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPO), "XLA_FLAGS": "--xla_backend_optimization_level=0"})  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((tmp_path / "report" / "row.json").read_text())
    assert ("continuation/psnr_frames" in row["metrics"]) == (name != "ucf101")
    assert ("continuation/psnr_new_frames_best" in row["metrics"]) == (name == "bair")
    if name == "kinetics600":
        assert "8 frames of 16x16" in row["metrics"]["continuation/psnr_frames"]["protocol"]
    captions = {video["caption"] for video in row["videos"] if video["group"] == "prompts"}
    assert captions == {"ucf101": {"apply eye makeup", "yo yo"}, "kinetics600": {"playing chess"}, "bair": {""}}[name]
