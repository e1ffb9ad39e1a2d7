"""Kill a run at random moments and look at what is left: `python tests/torture.py --kills=100` (`make torture`).

Five kinds of work are killed with SIGKILL in turn: training with one process, with two, and with their number changing
at every start; tokenising; and restoring (a training run killed early). After each kill the same command is started
again, with another kill waiting for it. At the end the run completes, and must be as if nothing had happened:

    checkpoints       every one that is left can be restored; a run goes on from the newest one there was
    losses            bit for bit those of an undisturbed run, at every step (within 1e-5 on another number of processes)
    token records     neither missing nor twice, bit for bit those of an undisturbed run

With --bucket=gs or s3 the runs and the tokens are in a bucket of a server on this machine (tests/buckets.py, tests/s3_server.py).

Processes are forked from one that has imported everything, so that a restart costs a second, not ten; it must not use
any of it, for threads do not survive a fork. Prints one line
of JSON and exits with 1 when anything was lost.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.update(
    XLA_FLAGS="--xla_backend_optimization_level=0", JAX_PLATFORMS="cpu", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"
)
os.environ["GLIBC_TUNABLES"] = ""  # a command would start this very program again to set them
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

# ruff: noqa: E402
import buckets
import jax
import numpy as np
import s3_server
import worker
from tokens import run_config, write_tokens

from lumos import (
    config_loading,
    files,
    objective,  # noqa: F401
)
from lumos.checkpoint import Checkpointer
from lumos.data.index import index
from lumos.data.records import RecordSource
from lumos.data.video_writer import write_video
from lumos.runtime import metrics_writer  # noqa: F401
from lumos.tokenizers import pretrained, tokenize
from lumos.training import from_config, initialize, loop, match_data, optimizer, state  # noqa: F401

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
        code = target() or 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
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


def _server_of(url: str):
    return {"gs": buckets, "s3": s3_server}[url.partition("://")[0]]


class Training:
    """A training run; its starts take turns among the numbers of processes in `counts`."""

    def __init__(self, folder: Path, counts: tuple[int, ...], part: float = 1.0, bucket: str = ""):
        self.folder, self.part, self.starts = folder, part, 0
        self.workdir = f"{bucket}/{folder.name}/run" if bucket else folder / "run"
        self.counts, self.newest, self.lines = itertools.cycle(counts), -1, 0

    def start(self) -> list[int]:
        count = next(self.counts)
        job = {"config": str(self.folder / "config.json"), "workdir": str(self.workdir), "count": count}
        job["port"] = worker.free_port()
        return [fork(lambda p=p: worker.run(job | {"process": p}), self.folder / f"log-{p}") for p in range(count)]

    def check(self, codes: list[int]) -> list[str]:
        """Return what is wrong after a start that ended."""
        steps, text = self.left()
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        before, self.newest = self.newest, max(steps, default=-1)
        problems = [f"the newest checkpoint went from {before} to {self.newest}"] if self.newest < before else []
        if len(lines) > self.lines and lines[-1]["start_step"] != max(before, 0):
            problems.append(f"step {before} was saved, but the run went on from {lines[-1]['start_step']}")
        self.lines = len(lines)
        # A process whose peer was killed may notice before it is killed itself.
        if len(codes) == 1 and codes[0] not in (0, -signal.SIGKILL):
            problems.append(f"exit code {codes[0]}: {(self.folder / 'log-0').read_text()[-500:]}")
        return problems

    def left(self) -> tuple[list[int], str]:
        """Return the steps of the checkpoints, and the text of runs.jsonl."""
        if isinstance(self.workdir, Path):
            runs = self.workdir / "runs.jsonl"
            steps = [int(path.name) for path in (self.workdir / "checkpoints").glob("*") if path.name.isdigit()]
            return steps, runs.read_text() if runs.exists() else ""
        prefix = self.workdir.partition("://")[2].partition("/")[2]
        server = _server_of(self.workdir)
        names = [name.removeprefix(f"{prefix}/checkpoints/").split("/") for name in server.names(self.workdir)]
        # What has its marker is a checkpoint.
        steps = [int(parts[0]) for parts in names if parts[1:] == ["commit_success.txt"] and parts[0].isdigit()]
        return steps, server.read(f"{self.workdir}/runs.jsonl")

    def restorable(self) -> list[str]:
        """Return the checkpoints that cannot be restored. Runs in a child: jax must not start in this process."""
        if self.newest < 0:  # no start lived until its first checkpoint: nothing was saved, so nothing can be lost
            return []

        def target():
            config = match_data.match_data(config_loading.load(str(self.folder / "config.json")))
            definition = from_config.make_objective(config).definition
            mesh = loop.sharding.make_mesh(config.mesh)
            update = optimizer.make_optimizer(config.optimizer, config.train.num_steps)
            checkpointer = Checkpointer(self.workdir, read_only=True)
            steps = checkpointer._manager.all_steps()
            assert max(steps, default=-1) == self.newest, f"step {self.newest} was saved, found are {steps}"
            for step in steps:
                restored, meta = checkpointer.restore(state.abstract_state(definition, update, mesh, ema=True), step)
                assert meta["step"] == step and all(np.isfinite(x).all() for x in jax.tree.leaves(restored.params))
            return 0

        code = wait([fork(target, self.folder / "log-check")])[0]
        return (
            [] if code == 0 else [f"a checkpoint cannot be restored: {(self.folder / 'log-check').read_text()[-500:]}"]
        )

    def result(self):
        if isinstance(self.workdir, str):  # read without lumos, whose threads would not survive the next fork
            (self.folder / "copy").mkdir(exist_ok=True)
            text = _server_of(self.workdir).read(f"{self.workdir}/metrics.jsonl")
            (self.folder / "copy" / "metrics.jsonl").write_text(text)
        workdir = self.workdir if isinstance(self.workdir, Path) else self.folder / "copy"
        return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics_writer.read(workdir, "train")]


class Tokenising:
    """`lumos tokenize` of a folder of small clips."""

    part = 1.0

    def __init__(self, folder: Path, source: Path, bucket: str = ""):
        self.folder, self.source = folder, source
        self.out = f"{bucket}/{folder.name}/tokens" if bucket else str(folder / "tokens")
        folder.mkdir(exist_ok=True)

    def start(self) -> list[int]:
        def target():
            config = config_loading.load(str(self.source / "config.json"))
            tokenizer = pretrained.load(str(self.source / "tokenizer"))
            tokenize.tokenize(config, tokenizer, self.out, splits=("train",), clips_per_shard=3)
            return 0

        return [fork(target, self.folder / "log")]

    def check(self, codes: list[int]) -> list[str]:
        self.records()  # every shard under its final name is whole
        return (
            []
            if codes[0] in (0, -signal.SIGKILL)
            else [f"exit code {codes[0]}: {(self.folder / 'log').read_text()[-500:]}"]
        )

    def restorable(self) -> list[str]:
        return []

    def records(self) -> list:
        """Return the records of all finished shards."""

        def target():
            source = RecordSource(files.find(files.path(self.out), "*.array_record"))
            records = [(record["id"], record["caption"], record["tokens"].tolist()) for record in source]
            (self.folder / "records.json").write_text(json.dumps(records))

        assert wait([fork(target, self.folder / "log-records")]) == [0], (self.folder / "log-records").read_text()
        return json.loads((self.folder / "records.json").read_text())

    def result(self):
        return self.records()


def prepare_tokenizer(folder: Path) -> None:
    """Make clips, their manifest, and a tokenizer with random weights."""
    for i in range(CLIPS):
        clip = np.random.default_rng(i).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
        write_video(folder / "clips" / f"{i:02d}.mp4", clip, fps=8)
    config = config_loading.default()
    config.data.path, config.data.source = str(folder / "clips.jsonl"), "clips"
    config.data.buckets, config.data.batch_size, config.task = ((5, 16, 16),), 2, "tokenizer"
    config.tokenizer.channels, config.tokenizer.channel_mult, config.tokenizer.mid_attention = 8, (1, 1), False
    config = config_loading.parse(config)
    index(folder / "clips", folder / "clips.jsonl", config.data)
    (folder / "tokenizer").mkdir()
    config.save(folder / "config.json")
    config.save(folder / "tokenizer" / "config.json")

    mesh = loop.sharding.make_mesh(config.mesh)
    update = optimizer.make_optimizer(config.optimizer, 1)
    first = state.create_state(from_config.make_objective(config).definition, update, mesh, seed=0, ema=True)
    checkpointer = Checkpointer(folder / "tokenizer")
    checkpointer.save(1, first, {})
    checkpointer.wait()


def differences(kind: str, result: list, expected: list) -> str:
    """Return what differs: nothing may, but losses in the last bits where the number of processes changes."""
    if kind in ("two_processes_as_one", "changing_processes"):
        same = len(result) == len(expected) and np.allclose(result, expected, rtol=0, atol=1e-5)
    else:
        same = result == expected
    return "" if same else "the result differs from that of an undisturbed run"


def torture(folder: Path, kills: int, seed: int, until: float, only: str, bucket: str) -> dict:
    rng = random.Random(seed)
    tokens = folder / "data"
    prepare = [lambda: write_tokens(tokens) and 0]
    if only in "tokenize":
        prepare.append(lambda: prepare_tokenizer(folder))
    for target in prepare:
        assert wait([fork(target, folder / "log")]) == [0], (folder / "log").read_text()
    config = run_config(tokens, train__num_steps=STEPS, train__checkpoint_every=2, train__keep_checkpoints=3)

    def training(name, counts, part=1.0):
        (folder / name).mkdir()
        config.save(folder / name / "config.json")
        # What an undisturbed run gives is measured on a local disk.
        return Training(folder / name, counts, part, bucket if not name.endswith("-whole") else "")

    # Kills while restoring: in the first part of a run that has something to restore.
    kinds = {
        "train": (0.4, lambda name: training(name, (1,))),
        "restore": (0.2, lambda name: training(name, (1,), part=0.5)),
        "tokenize": (0.2, lambda name: Tokenising(folder / name, folder, "" if name.endswith("-whole") else bucket)),
        "two_processes": (0.1, lambda name: training(name, (2,))),
        "changing_processes": (0.1, lambda name: training(name, (2, 1))),
    }

    @functools.cache
    def undisturbed(kind: str) -> tuple[list, float]:
        """Return the result of a run that is not killed, and its seconds."""
        whole, began = kinds[kind][1](f"{kind}-whole"), time.monotonic()
        codes = wait(whole.start())
        assert codes == [0] * len(codes), [path.read_text()[-2000:] for path in whole.folder.glob("log*")]
        return whole.result(), time.monotonic() - began

    report = {"kills": {}, "problems": []}
    for kind, (share, make) in kinds.items():
        if only not in kind:
            continue
        expected, seconds = undisturbed({"restore": "train", "changing_processes": "train"}.get(kind, kind))
        wanted, landed, rounds = max(1, round(kills * (1.0 if only else share))), 0, 0
        while landed < wanted and time.monotonic() < until:
            work = make(f"{kind}-{rounds}")
            rounds += 1
            problems = []
            for _ in range(4):  # at most four kills in one run, then it may finish
                began, pids = time.monotonic(), work.start()
                codes = wait(
                    pids, kill_after=rng.uniform(0, max(seconds * work.part, 0.3)), victim=rng.randrange(len(pids))
                )
                problems += work.check(codes)
                if -signal.SIGKILL not in codes:  # too late: it was faster than the undisturbed one, which compiled
                    seconds = min(seconds, time.monotonic() - began)
                    break
                landed += 1
                if landed == wanted:
                    break
            problems += work.restorable()
            codes = wait(work.start())
            if any(codes):
                problems.append(f"cannot go on: {codes} {next(iter(work.folder.glob('log*'))).read_text()[-500:]}")
            else:
                problems.append(differences(kind, work.result(), expected))
            report["problems"] += [f"{work.folder.name}: {problem}" for problem in filter(None, problems)]
            print(*problems, sep="\n", end="", file=sys.stderr, flush=True)
        report["kills"][kind] = landed
        print(kind, landed, "kills, problems:", len(report["problems"]), file=sys.stderr, flush=True)
    if not only:
        problem = differences("two_processes_as_one", undisturbed("two_processes")[0], undisturbed("train")[0])
        report["problems"] += [f"two processes against one: {problem}"] if problem else []
    if sum(report["kills"].values()) < kills and not only:
        report["problems"].append("the time was up before all kills were done")
    return report


@contextlib.contextmanager
def bucket_of(kind: str | None, folder: Path):
    """Give the URL of a bucket of a new server; "" for none."""
    if kind is None:
        yield ""
    elif kind == "gs":
        storage = buckets.start(proxy_for_arrays=False)
        try:
            yield buckets.make(storage, "torture")
        finally:
            storage.process.terminate()
    else:
        (folder / "server").mkdir()
        server = s3_server.start(folder / "server")
        try:
            assert wait([fork(lambda: s3_server.make("torture") and 0, folder / "log")]) == [0]
            yield "s3://torture"
        finally:
            s3_server.stop(server)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", default="", help="one kind of work, for finding out what is wrong")
    parser.add_argument("--minutes", type=float, default=30, help="when to give up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bucket", choices=("gs", "s3"), help="in a bucket, of a server that is started here")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "cache"))
        with bucket_of(arguments.bucket, Path(folder)) as bucket:
            until = began + 60 * arguments.minutes
            report = torture(Path(folder), arguments.kills, arguments.seed, until, arguments.only, bucket)
    print(json.dumps(report | {"seconds": round(time.monotonic() - began)}))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
