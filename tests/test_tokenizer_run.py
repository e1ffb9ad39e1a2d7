"""A tokenizer run with the adversarial stage, by the command line: training, evaluation, tokens."""

import json

import numpy as np
import pytest
from test_end_to_end import lumos
from test_rates import rate_of

from lumos.data.records import RecordSource
from lumos.data.video_writer import write_video

CONFIG = "--config=configs/tokenizer_quantizers.py:vq,gan,smoke"
ADAMW = "--config.optimizer.name=adamw"  # compiles in a third of the time of Muon


def write_clips(folder, splits, shape, fps):
    """Write clips of moving stripes, their list, and the manifest of it; return the manifest's path."""
    rng, rows = np.random.default_rng(0), []
    frames, height, width = shape
    for i, split in enumerate(splits):
        colour, phase = rng.uniform(60, 255, 3), np.arange(width) + np.arange(frames)[:, None] * (1 + i % 3)
        stripes = (phase // 8 % 2)[:, None, :, None] * colour
        video = np.broadcast_to(stripes, (frames, height, width, 3)).astype(np.uint8)
        write_video(folder / f"{i}.mp4", video, fps)
        rows.append({"path": f"{i}.mp4", "caption": f"stripes {i}", "split": split})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lumos("data", "index", f"--input={folder / 'list.jsonl'}", f"--out={folder / 'manifest.jsonl'}", cwd=folder)
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a finished run, and the manifest that it learnt from."""
    folder = tmp_path_factory.mktemp("tokenizer_run")
    (folder / "clips").mkdir()
    manifest = write_clips(folder / "clips", ["train"] * 4 + ["validation"] * 2 + ["test"] * 3, (9, 48, 64), 8)
    lumos("train", CONFIG, ADAMW, "--workdir=run", f"--config.data.path={manifest}", cwd=folder)
    return folder / "run", manifest


@pytest.mark.slow
def test_the_adversarial_stage_is_evaluated_without_its_discriminator(run, tmp_path):
    workdir, _ = run
    lumos("evaluate", f"--workdir={workdir}", f"--out={tmp_path}", "--config.evaluate.batch_size=2", cwd=tmp_path)
    found = json.loads((tmp_path / "results.jsonl").read_text())["reconstruction"]
    assert found["fps"] == rate_of(tmp_path / "reconstruction" / "00.mp4") == 8  # that of the clips
    assert rate_of(sorted((workdir / "samples").rglob("*.mp4"))[0]) == 8
    assert np.isfinite(found["psnr"]) and 0 < found["usage"] <= 1
    # Three test clips in batches of two: one is left out, and the protocol says so.
    assert found["num_clips"] == 2 and found["protocol"].startswith("2 clips of split 'test', 5 frames of 32x32")
    assert (tmp_path / "index.html").exists() and (tmp_path / "reconstruction.png").exists()


@pytest.mark.slow
def test_it_is_evaluated_on_clips_of_another_collection(run, tmp_path):
    """Another size, frame rate and length than the clips of training."""
    workdir, _ = run
    (tmp_path / "other").mkdir()
    manifest = write_clips(tmp_path / "other", ["test"] * 3, (21, 40, 72), 30)
    lumos(
        "evaluate", f"--workdir={workdir}", f"--out={tmp_path / 'report'}", f"--config.data.path={manifest}",
        "--config.data.fps=10", "--config.evaluate.num_clips=3", cwd=tmp_path,
    )  # fmt: skip
    found = json.loads((tmp_path / "report" / "results.jsonl").read_text())
    assert rate_of(tmp_path / "report" / "reconstruction" / "00.mp4") == 10
    assert found["reconstruction"]["num_clips"] == 3 and np.isfinite(found["reconstruction"]["psnr"])


@pytest.mark.slow
def test_its_tokens_are_those_of_the_trained_tokenizer(run, tmp_path):
    workdir, manifest = run
    lumos(
        "tokenize", CONFIG, f"--workdir={workdir}", f"--config.data.path={manifest}", f"--out={tmp_path}",
        "--splits=train,validation,test", cwd=tmp_path,
    )  # fmt: skip
    records = list(RecordSource(sorted(tmp_path.glob("*.array_record"))))
    # Nine clips of nine frames, in two windows of five each.
    assert len(records) == 18 and all(r["tokens"].shape == (2, 4, 4) and r["tokens"].max() < 1024 for r in records)
    assert json.loads((tmp_path / "manifest.json").read_text())["codebook_size"] == 1024
