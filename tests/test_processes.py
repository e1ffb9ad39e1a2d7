"""What real processes do: SIGTERM, a second one, a stuck peer."""

import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tokens import run_config, write_tokens
from worker import free_port, start

from lumos import sharding
from lumos.checkpoint import Checkpointer
from lumos.data import moving_shapes, video, video_writer
from lumos.data.pipeline import make_pipeline
from lumos.errors import EXIT_PREEMPTED, EXIT_STUCK
from lumos.runtime import metrics_writer
from lumos.tokenizers import pretrained
from lumos.training.from_config import make_objective
from lumos.training.match_data import match_data
from lumos.training.optimizer import make_optimizer
from lumos.training.state import create_state
from lumos.videos.generator import Generator

DEADLINE = 6.0  # seconds of a step where a peer is stuck or dead


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run that would not end for hours, and a cache of its compiled programs."""
    folder = tmp_path_factory.mktemp("run")
    config = run_config(write_tokens(folder / "tokens"), train__num_steps=10**6, train__checkpoint_every=10**6)
    config.save(folder / "config.json")
    return {"config": str(folder / "config.json"), "cache": folder / "cache"}


def with_deadlines(job, folder, deadlines):
    """Return the job with other deadlines (of start, restore, compile, step, save, evaluate)."""
    config = json.loads(Path(job["config"]).read_text())
    config["train"]["deadlines"] = deadlines
    (folder / "config.json").write_text(json.dumps(config))
    return job | {"config": str(folder / "config.json")}


def launch(job, workdir, count=1, **trouble):
    """Start the processes of a run; `trouble` goes to the last of them."""
    workdir.mkdir(exist_ok=True)
    base = {"config": job["config"], "workdir": str(workdir), "count": count, "port": free_port()}
    return [start(base | {"process": p} | (trouble if p == count - 1 else {}), job["cache"]) for p in range(count)]


def wait_for_steps(workdir, processes, num=3, seconds=300):
    limit = time.monotonic() + seconds
    while not [line for line in metrics_writer.read(workdir, "train") if line["step"] >= num]:
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1][-3000:]
        assert time.monotonic() < limit
        time.sleep(0.1)


def finish(processes, seconds):
    """Return (exit codes, stderr texts), killing what is left after `seconds`."""
    limit, texts = time.monotonic() + seconds, []
    try:
        for process in processes:
            texts.append(process.communicate(timeout=max(0.1, limit - time.monotonic()))[1])
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], texts


@pytest.mark.fast("2")
@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_saves_and_leaves_with_the_restart_code(job, tmp_path, count):
    """With two processes only one hears the signal, and both leave after the same step."""
    processes = launch(job, tmp_path / "run", count)
    wait_for_steps(tmp_path / "run", processes)
    processes[-1].send_signal(signal.SIGTERM)
    codes, texts = finish(processes, 30)
    assert codes == [EXIT_PREEMPTED] * count, texts[0][-3000:]
    saved = Checkpointer(tmp_path / "run", read_only=True).latest_step()
    assert saved >= 3 and all(f"step {saved} is saved" in text for text in texts)
    assert "Traceback" not in texts[0]


@pytest.mark.slow
def test_a_second_sigterm_ends_the_process_at_once(job, tmp_path):
    processes = launch(job, tmp_path / "run", slow_save=1000)
    wait_for_steps(tmp_path / "run", processes)
    processes[0].send_signal(signal.SIGTERM)
    time.sleep(2)
    assert processes[0].poll() is None
    processes[0].send_signal(signal.SIGTERM)
    codes, _ = finish(processes, 10)
    assert codes == [-signal.SIGTERM]


@pytest.mark.slow
def test_a_stuck_peer_takes_no_one_hostage(job, tmp_path):
    """Process 1 hangs: both processes dump their stacks and leave within the deadline and 10 seconds."""
    job = with_deadlines(job, tmp_path, [600.0, 600.0, 600.0, DEADLINE, 600.0, 600.0])
    processes = launch(job, tmp_path / "run", 2, stuck_at=8)
    wait_for_steps(tmp_path / "run", processes, num=6)
    codes, texts = finish(processes, DEADLINE + 10)
    assert EXIT_STUCK in codes and 0 not in codes, (codes, texts[0][-2000:])
    assert "no progress for" in texts[1] and "in stuck" in texts[1] and "phase 'step'" in texts[1]
    stacks = list((tmp_path / "run").glob("stacks-*.txt"))
    assert len(stacks) == 2  # whichever process gave up first


@pytest.mark.slow
def test_a_dead_peer_takes_no_one_hostage(job, tmp_path):
    job = with_deadlines(job, tmp_path, [600.0, 600.0, 600.0, DEADLINE, 600.0, 600.0])
    first, second = launch(job, tmp_path / "run", 2)
    wait_for_steps(tmp_path / "run", [first, second])
    second.kill()
    codes, texts = finish([first, second], DEADLINE + 10)
    assert codes[0] not in (0, None) and codes[1] == -signal.SIGKILL, texts[0][-2000:]


@pytest.mark.slow
def test_a_peer_that_never_comes_is_not_waited_for(job, tmp_path):
    first, second = launch(with_deadlines(job, tmp_path, [DEADLINE] + 5 * [600.0]), tmp_path / "run", 2)
    second.kill()
    codes, texts = finish([first], 60)
    assert codes == [EXIT_STUCK] and "phase 'start'" in texts[0] and "runtime/processes.py" in texts[0], texts[0][
        -2000:
    ]
    second.wait()


def save_tokenizer(folder, config):
    """Write the workdir of a tokenizer with random weights."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    update = make_optimizer(config.optimizer, 1)
    state = create_state(make_objective(config).definition, update, mesh, seed=0, ema=True)
    checkpointer = Checkpointer(folder)
    config.save(folder / "config.json")
    checkpointer.save(1, state, {})
    checkpointer.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", [pytest.param("tokenizer", marks=pytest.mark.slow), "transformer"])
def test_two_processes_write_the_samples_of_one(tmp_path, task):
    """Processes hold other rows of the data and other parts of the weights, and make the same videos together."""
    shapes = {"data__source": "moving_shapes", "data__path": str(tmp_path / "shapes"), "shapes__num_train": 8}
    shapes |= {
        "shapes__num_validation": 8,
        "shapes__num_test": 8,
        "tokenizer__levels": (5, 6),
        "tokenizer__channels": 8,
    }
    shapes |= {"tokenizer__channel_mult": (1, 1), "tokenizer__num_res_blocks": 0, "tokenizer__mid_attention": False}
    shapes |= {"train__num_steps": 1, "train__num_samples": 3, "data__buckets": ((9, 32, 32),)}
    config = run_config(shapes["data__path"], task="tokenizer", **shapes)
    if task == "tokenizer":
        moving_shapes.prepare(config.data.path, config.shapes, config.data.buckets[0], config.seed)
    else:
        save_tokenizer(tmp_path / "tokenizer", config)
        changes = {"tokenizer_workdir": str(tmp_path / "tokenizer"), "model__text_vocab": 0}
        config = run_config(write_tokens(tmp_path / "tokens"), train__num_steps=1, train__num_samples=3, **changes)
        manifest = tmp_path / "tokens" / "manifest.json"
        maker = pretrained.load(config.tokenizer_workdir).fingerprint
        manifest.write_text(manifest.read_text().replace('"none"', f'"{maker}"'))
    config.save(tmp_path / "config.json")
    job = {"config": str(tmp_path / "config.json"), "cache": tmp_path / "cache"}
    codes, texts = finish(launch(job, tmp_path / "run", 2), 300)
    assert codes == [0, 0], texts[0][-3000:]
    pipeline = make_pipeline(match_data(config), "validation", process_index=0, process_count=2, train=False)
    batch = {name: rows[:3] for name, rows in next(pipeline).items()}
    pipeline.close()
    if task == "tokenizer":
        tokenizer = pretrained.load(tmp_path / "run")
        recon = tokenizer.decode(tokenizer.encode(batch["video"]))
        error = np.abs(recon.astype(int) - batch["video"]).astype(np.uint8)
        wanted = np.concatenate([batch["video"], recon, error], axis=3)
    else:
        generator = Generator.load(tmp_path / "run")
        wanted = generator.generate([generator.text.decode(ids) for ids in batch["text"]], seed=config.seed).videos
    for i in range(3):
        path = tmp_path / "run" / "samples" / "step_00000001" / f"{i:02d}.mp4"
        video_writer.write_video(tmp_path / "wanted.mp4", wanted[i], 8.0)
        found, clip = (video.read_clip(p, height=32, width=wanted.shape[3]) for p in (path, tmp_path / "wanted.mp4"))
        # A code or pixel may round the other way, and the codec carries that on; other rows differ by 20 and more.
        assert np.abs(found.astype(int) - clip).mean() < 5
        assert clip.std() > 5
