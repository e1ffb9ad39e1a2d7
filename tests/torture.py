"""Kill a run at random moments and look at what is left: `python tests/torture.py --kills=100` (`make torture`).

Four kinds of work are killed with SIGKILL in turn: training with one process, training with two, tokenising, and
restoring (a training run killed early). After each kill the same command is started again, with another kill waiting
for it. At the end the run completes, and must be as if nothing had happened:

    checkpoints       every one that is left can be restored, and no kill made the newest one older
    losses            bit for bit those of an undisturbed run, at every step
    token records     neither missing nor twice, bit for bit those of an undisturbed run

Processes are forked from one that has imported everything, so that a restart costs a second, not ten. Prints one line
of JSON and exits with 1 when anything was lost.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(XLA_FLAGS="", JAX_PLATFORMS="cpu", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import worker  # noqa: E402
from tokens import run_config, write_tokens  # noqa: E402

from lumos import cli, config as config_lib  # noqa: E402, I001
from lumos.checkpoint import Checkpointer  # noqa: E402
from lumos.data.records import RecordSource  # noqa: E402
from lumos.data.video import write_video  # noqa: E402
from lumos.data.index import index  # noqa: E402
from lumos.tokenizers import pretrained, tokenize  # noqa: E402
from lumos.training import initialize, loop, metrics, optimizer, state, tasks  # noqa: E402, F401

STEPS = 12
CLIPS = 24


def fork(target, log: Path) -> int:
    """Run `target` in a child whose output goes to `log`; return its process id. Its exit code is what target returns."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = target()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int], kill_after: float | None = None, victim: int = 0) -> list[int]:
    """Wait for children and return their exit codes. One is killed after some time; then the others have to leave too."""
    began, codes = time.monotonic(), {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        waited = time.monotonic() - began
        if kill_after is not None and waited > kill_after:
            # All of them, as a scheduler does when one of a job has died; the victim first.
            for pid in [pids[victim], *pids]:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
            kill_after = None
        if waited > 600:
            raise SystemExit(f"children {pids} hang")
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


class Training:
    """A training run of one or two processes."""

    def __init__(self, folder: Path, processes: int, early: bool = False):
        self.folder, self.processes = folder, processes
        # Kills while restoring: in the first part of a run that has something to restore.
        self.part = 0.5 if early else 1.0
        self.workdir = folder / "run"
        self.newest = -1

    def start(self) -> list[int]:
        job = {"config": str(self.folder / "config.json"), "workdir": str(self.workdir), "count": self.processes}
        job["port"] = worker.free_port()
        return [
            fork(lambda p=p: worker.run(job | {"process": p}), self.folder / f"log-{p}") for p in range(self.processes)
        ]

    def check(self, codes: list[int]) -> list[str]:
        """Return what is wrong after a kill."""
        steps = [int(path.name) for path in (self.workdir / "checkpoints").glob("*") if path.name.isdigit()]
        newest, before = max(steps, default=-1), self.newest
        self.newest = newest
        problems = [f"the newest checkpoint went from {before} to {newest}"] if newest < before else []
        if any(code not in (0, -signal.SIGKILL) for code in codes):
            # A process whose peer was killed may see it before it is killed itself.
            if self.processes == 1:
                problems.append(f"exit codes {codes}: {(self.folder / 'log-0').read_text()[-500:]}")
        return problems

    def restorable(self) -> list[str]:
        """Return the checkpoints that cannot be restored. Runs in a child: jax must not start in this process."""

        def target():
            config = tasks.resolve(config_lib.load(str(self.folder / "config.json")))
            definition = tasks.make_task(config).definition
            mesh = loop.sharding.make_mesh(config.mesh)
            update = optimizer.make_optimizer(config.optimizer, config.train.num_steps)
            checkpointer = Checkpointer(self.workdir, read_only=True)
            for step in checkpointer._manager.all_steps():
                restored, meta = checkpointer.restore(state.abstract_state(definition, update, mesh, ema=True), step)
                assert meta["step"] == step and all(np.isfinite(x).all() for x in jax.tree.leaves(restored.params))
            return 0

        code = wait([fork(target, self.folder / "log-check")])[0]
        return [] if code == 0 else [f"a checkpoint cannot be restored: {(self.folder / 'log-check').read_text()[-500:]}"]

    def result(self):
        return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics.read(self.workdir, "train")]


class Tokenising:
    """`lumos tokenize` of a folder of small clips."""

    part = 1.0

    def __init__(self, folder: Path, source: Path, out: str = "tokens"):
        self.folder, self.source, self.out = folder, source, folder / out
        folder.mkdir(exist_ok=True)

    def start(self) -> list[int]:
        def target():
            config = config_lib.load(str(self.source / "config.json"))
            tokenizer = pretrained.load(str(self.source / "tokenizer"))
            tokenize.tokenize(config, tokenizer, self.out, splits=("train",), clips_per_shard=3)
            return 0

        return [fork(target, self.folder / "log")]

    def check(self, codes: list[int]) -> list[str]:
        self.records()  # every shard under its final name is whole
        return [] if codes[0] in (0, -signal.SIGKILL) else [(self.folder / "log").read_text()[-500:]]

    def restorable(self) -> list[str]:
        return []

    def records(self):
        return [record for shard in sorted(self.out.glob("*.array_record")) for record in RecordSource([shard])]

    def result(self):
        assert (self.out / "manifest.json").exists()
        return [(r["id"], r["caption"], r["tokens"].tolist()) for r in self.records()]


def prepare_tokenizer(folder: Path) -> None:
    """Make clips, their manifest, and a tokenizer with random weights."""
    for i in range(CLIPS):
        clip = np.random.default_rng(i).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
        write_video(folder / "clips" / f"{i:02d}.mp4", clip, fps=8)
    config = config_lib.default()
    config.data.path, config.data.source = str(folder / "clips.jsonl"), "clips"
    config.data.buckets, config.data.batch_size, config.task = ((5, 16, 16),), 2, "tokenizer"
    config.tokenizer.channels, config.tokenizer.channel_mult, config.tokenizer.mid_attention = 8, (1, 1), False
    config = config_lib.parse(config)
    index(folder / "clips", folder / "clips.jsonl", config.data)
    (folder / "tokenizer").mkdir()
    config.save(folder / "config.json")
    config.save(folder / "tokenizer" / "config.json")

    def target():
        mesh = loop.sharding.make_mesh(config.mesh)
        update = optimizer.make_optimizer(config.optimizer, 1)
        first = state.create_state(tasks.make_task(config).definition, update, mesh, seed=0, ema=True)
        checkpointer = Checkpointer(folder / "tokenizer")
        checkpointer.save(1, first, {})
        checkpointer.wait()
        return 0

    assert wait([fork(target, folder / "log")]) == [0], (folder / "log").read_text()


def torture(folder: Path, kills: int, seed: int) -> dict:
    rng = random.Random(seed)
    tokens = write_tokens(folder / "data")
    prepare_tokenizer(folder)
    config = run_config(tokens, train__num_steps=STEPS, train__checkpoint_every=2, train__keep_checkpoints=3)

    def training(name, processes, early=False):
        (folder / name).mkdir()
        config.save(folder / name / "config.json")
        return Training(folder / name, processes, early)

    makers = {
        "train": lambda name: training(name, 1),
        "restore": lambda name: training(name, 1, early=True),
        "tokenize": lambda name: Tokenising(folder / name, folder),
        "train_two_processes": lambda name: training(name, 2),
    }
    shares = {"train": 0.4, "restore": 0.2, "tokenize": 0.2, "train_two_processes": 0.2}
    report = {"kills": {}, "problems": []}
    for kind, make in makers.items():
        for name in ("warm", "whole"):  # the first fills the cache of compiled programs, the second is timed
            whole, began = make(f"{kind}-{name}"), time.monotonic()
            codes = wait(whole.start())
            assert codes == [0] * len(codes), next(iter(whole.folder.glob("log*"))).read_text()
        expected = whole.result()
        seconds = time.monotonic() - began
        duration = max(seconds * whole.part, 0.5)
        wanted, done, rounds, landed = max(1, round(kills * shares[kind])), 0, 0, 0
        while done < wanted:
            work = make(f"{kind}-{rounds}")
            rounds += 1
            for _ in range(4):  # at most four kills in one run, then it may finish
                pids = work.start()
                codes = wait(pids, kill_after=rng.uniform(0, duration), victim=rng.randrange(len(pids)))
                report["problems"] += [f"{work.folder.name}: {text}" for text in work.check(codes)]
                done += 1
                landed += any(code == -signal.SIGKILL for code in codes)
                if done == wanted:
                    break
            report["problems"] += [f"{work.folder.name}: {text}" for text in work.restorable()]
            codes = wait(work.start())
            if any(codes):
                text = next(iter(work.folder.glob("log*"))).read_text()[-500:]
                report["problems"].append(f"{work.folder.name} cannot go on: {codes} {text}")
            elif work.result() != expected:
                report["problems"].append(f"{work.folder.name}: the result differs from that of an undisturbed run")
        report["kills"][kind] = {"attempts": done, "while_running": landed}
        print(kind, report["kills"][kind], "problems:", len(report["problems"]), file=sys.stderr, flush=True)
    return report


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "cache"))
        report = torture(Path(folder), arguments.kills, arguments.seed)
    print(json.dumps(report | {"seconds": round(time.monotonic() - began)}))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    assert cli  # imported before the fork
    sys.exit(main())
