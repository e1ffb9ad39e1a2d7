"""Benchmarks find the files that their scorers read: names, counts, seeds."""

import json

import numpy as np
import pytest
from PIL import Image
from runs import write_runs

from lumos import cli
from lumos.data.video import probe, read_clip
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.videos import benchmarks
from lumos.videos.prompts import read_entries


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"), steps=(1,))


def names(files):
    return [item.name for item in files.items]


def test_vbench_has_five_clips_a_prompt_and_25_where_flickering_is_scored(tmp_path):
    info = [
        {"prompt_en": "a person swimming in ocean", "dimension": ["subject_consistency", "motion_smoothness"]},
        {"prompt_en": "a static view, a barn", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a person swimming in ocean", "dimension": ["dynamic_degree"]},
    ]
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(info))
    files = benchmarks.plan("vbench", str(tmp_path / "VBench_full_info.json"), "out")
    expected = [f"a person swimming in ocean-{i}.mp4" for i in range(5)] + [
        f"a static view, a barn-{i}.mp4" for i in range(25)
    ]
    assert names(files) == expected and "vbench evaluate --videos_path out" in files.command
    (tmp_path / "temporal_flickering.txt").write_text("a static view, a barn\n")
    assert len(benchmarks.plan("vbench", str(tmp_path / "temporal_flickering.txt"), "out").items) == 25
    (tmp_path / "scene.jsonl").write_text('{"prompt": "alley", "rewritten": "A narrow alley between old houses."}\n')
    files = benchmarks.plan("vbench-long", str(tmp_path / "scene.jsonl"), "out")
    assert names(files) == [f"alley-{i}.mp4" for i in range(5)] and files.items[0].text.startswith("A narrow")
    assert "eval_long.py" in files.command and "long_vbench_standard" in files.command


def test_vbench_i2v_begins_with_the_images_of_the_benchmark(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a cat.jpg")
    entries = [{"prompt_en": "a cat", "dimension": [d], "image_name": "a cat.jpg"} for d in ("i2v_subject", "motion")]
    (tmp_path / "info.json").write_text(json.dumps(entries))
    files = benchmarks.plan("vbench-i2v", str(tmp_path / "info.json"), "out", images=str(tmp_path))
    assert names(files) == [f"a cat-{i}.mp4" for i in range(5)] and files.items[0].image == str(tmp_path / "a cat.jpg")
    with pytest.raises(UserError, match="--image=FOLDER"):
        benchmarks.plan("vbench-i2v", str(tmp_path / "info.json"), "out")


def test_t2i_compbench_numbers_its_images_through(tmp_path):
    (tmp_path / "non_spatial_val.txt").write_text("a man reads a book\na dog runs\n")
    files = benchmarks.plan("t2i-compbench", str(tmp_path / "non_spatial_val.txt"), "out")
    assert len(files.items) == 20 and files.are_images
    assert names(files)[9:11] == [
        "non_spatial/samples/a man reads a book_000009.png",
        "non_spatial/samples/a dog runs_000010.png",
    ]
    assert "CLIP_similarity.py --outpath=out/non_spatial/" in files.command


def test_what_cannot_be_a_benchmark_is_refused(tmp_path):
    for name, text, layout, message in (
        ("a.txt", "a/b\nc\n", "vbench", "cannot be the name"), ("b.txt", "x" * 300, "vbench", "cannot be the name"),
        ("c.txt", "a\n", "geneval", "evaluation_metadata.jsonl"), ("d.txt", "a\n", "other", "allowed: vbench"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            benchmarks.plan(layout, str(tmp_path / name), "out")
    with pytest.raises(UserError, match="--prompts=FILE"):
        benchmarks.plan("vbench", "", "out")


@pytest.mark.slow
def test_geneval_is_written_as_its_scorer_reads_it_and_goes_on_where_it_stopped(run, tmp_path, capsys):
    lines = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a photo of a red car"},
    ]
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        "generate",
        f"--workdir={run}",
        "--layout=geneval",
        f"--prompts={tmp_path}/evaluation_metadata.jsonl",
        "--seed=3",
    ]
    assert cli.main([*command, f"--out={tmp_path}/g"]) == 0
    assert "8 files; score them with: python evaluation/evaluate_images.py" in capsys.readouterr().out
    listing = sorted(
        path.relative_to(tmp_path / "g").as_posix() for path in (tmp_path / "g").rglob("*") if path.is_file()
    )
    expected = [
        f"{i:05d}/{name}" for i in range(2) for name in ("metadata.jsonl", *(f"samples/{j:04d}.png" for j in range(4)))
    ]
    assert listing == expected
    assert [json.loads((tmp_path / "g" / f"{i:05d}" / "metadata.jsonl").read_text()) for i in range(2)] == lines
    image = Image.open(tmp_path / "g" / "00001" / "samples" / "0002.png")
    assert image.size == (32, 32) and image.text["seed"] == "9" and image.text["prompt"] == "a photo of a red car"
    before = (tmp_path / "g" / "00001" / "samples" / "0002.png").read_bytes()
    (tmp_path / "g" / "00001" / "samples" / "0002.png").unlink()
    assert cli.main([*command, f"--out={tmp_path}/g"]) == 0
    assert (tmp_path / "g" / "00001" / "samples" / "0002.png").read_bytes() == before
    assert cli.main([*command, f"--out={tmp_path}/g", "--seed=4"]) == 2
    assert "files of another seed" in capsys.readouterr().err
    assert cli.main(["report", f"{tmp_path}/g", f"--out={tmp_path}/page"]) == 0
    assert "python evaluation/evaluate_images.py" in (tmp_path / "page" / "index.html").read_text()


def test_tokenbench_gets_reconstructions_of_the_same_names_and_sizes(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    shapes = {"a.mp4": (7, 32, 48), "b.mp4": (5, 34, 30)}
    for name, shape in shapes.items():
        write_video(tmp_path / "videos" / name, rng.integers(0, 256, (*shape, 3), np.uint8), 12)
    command = ["generate", f"--workdir={run.parent / 'tokenizer'}", "--layout=tokenbench", f"--video={tmp_path}/videos"]
    assert cli.main([*command, f"--out={tmp_path}/made"]) == 0
    assert "--gtpath" in capsys.readouterr().out
    for name, (frames, height, width) in shapes.items():
        info = probe(tmp_path / "made" / name)
        assert (info.frames, info.height, info.width, info.fps) == (frames, height, width, 12)
        assert read_clip(tmp_path / "made" / name, height=height, width=width).shape == (frames, height, width, 3)
    assert cli.main([*command[:3], f"--out={tmp_path}/made"]) == 2


def test_entries_keep_what_their_lines_say(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,rewritten\na,b\n")
    assert read_entries(tmp_path / "a.csv") == [{"prompt": "a", "rewritten": "b"}]
    (tmp_path / "a.json").write_text('{"prompt_en": "a"}')
    assert read_entries(tmp_path / "a.json")[0]["prompt"] == "a"
