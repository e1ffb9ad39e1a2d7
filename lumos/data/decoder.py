"""Decoding in worker processes: a file that crashes, hangs or bloats FFmpeg ends a worker and never the run.

`probe` and `read_clip` are those of lumos/data/video.py, run by a pool of small Python processes that talk JSON and raw
pixels over pipes (nothing is unpickled). A worker limits itself: its memory, and the seconds of one file, after
which the kernel ends it, wherever in C code it hangs. The file is then reported like any damaged one.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lumos.data import video
from lumos.data.media import Media, Member, fetched
from lumos.errors import UserError

SECONDS_PER_FILE = 600  # of decoding one file, which may be an hour long
BYTES_OF_WORKER = 4 << 30  # address space of a worker

# Only what decoding needs is imported there: no jax. Errors of FFmpeg go to nowhere, ours come as answers.
_COMMAND = (sys.executable, "-m", "lumos.data.decoder")
_LENGTH = struct.Struct("<Q")


def probe(clip: str | Path | Member, max_pixels: int = 0) -> video.VideoInfo:
    """As `video.probe`. Raises UserError, also when the decoder crashes, hangs or needs too much memory."""
    answer, _ = _call({"do": "probe", "max_pixels": max_pixels}, clip)
    return video.VideoInfo(**answer)


def read_clip(clip: str | Path | Member, **arguments: Any) -> np.ndarray:
    """As `video.read_clip`. Raises UserError, also when the decoder crashes, hangs or needs too much memory."""
    answer, data = _call({"do": "read_clip", "arguments": arguments}, clip)
    return np.frombuffer(data, np.uint8).reshape(answer["shape"])


class _Worker:
    def __init__(self):
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def call(self, request: dict[str, Any], clip: Media) -> tuple[dict[str, Any], bytes]:
        if isinstance(clip, Path):
            where, data = {"path": str(clip)}, b""
        else:
            where, data = dataclasses.asdict(clip) | {"data": None}, clip.data or b""
        try:
            _send(self._process.stdin, json.dumps(request | {"clip": where}).encode(), data)
            return _receive(self._process.stdout)
        except (EOFError, BrokenPipeError):
            code = self._process.wait()
            self.close()
            raise UserError(f"{clip}: {_cause_of_death(code)}") from None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _cause_of_death(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"decoding took longer than {SECONDS_PER_FILE} s"
    if code < 0:
        return f"the decoder crashed ({signal.Signals(-code).name})"
    return f"the decoder ended (exit code {code})"


_idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
_started: list[_Worker] = []
_lock = threading.Lock()


def _call(request: dict[str, Any], clip: str | Path | Member) -> tuple[dict[str, Any], bytes]:
    """Run a request in an idle worker, or a new one: there are as many as threads that decode at a time."""
    # Of a bucket the worker gets a copy, and the message the name that the user knows.
    with fetched(clip) as local:
        try:
            worker = _idle.get_nowait()
        except queue.Empty:
            worker = _Worker()
            with _lock:
                _started.append(worker)
        try:
            answer, data = worker.call(request, local)
        except UserError:
            with _lock:
                _started.remove(worker)
            raise
    _idle.put(worker)
    if "error" in answer:
        raise UserError(answer["error"].replace(str(local), str(clip)))
    return answer, data


@atexit.register
def close() -> None:
    """End all workers; the next call starts new ones. (They also end by themselves when this process does.)"""
    with _lock:
        while _started:
            _started.pop().close()
        while not _idle.empty():
            _idle.get()


def _forget() -> None:
    """Leave the workers to the process that this one was forked from."""
    global _idle, _started, _lock
    _idle, _started, _lock = queue.SimpleQueue(), [], threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _send(pipe: BinaryIO, head: bytes, data: bytes | memoryview) -> None:
    pipe.write(_LENGTH.pack(len(head)) + _LENGTH.pack(len(data)) + head)
    pipe.write(data)
    pipe.flush()


def _receive(pipe: BinaryIO) -> tuple[dict[str, Any], bytes]:
    lengths = pipe.read(2 * _LENGTH.size)
    if len(lengths) < 2 * _LENGTH.size:
        raise EOFError
    head_length, data_length = (_LENGTH.unpack_from(lengths, i * _LENGTH.size)[0] for i in range(2))
    head, data = pipe.read(head_length), pipe.read(data_length)
    if len(head) < head_length or len(data) < data_length:
        raise EOFError
    return json.loads(head), data


def _serve() -> None:
    """Answer requests until the pipe closes."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES_OF_WORKER, BYTES_OF_WORKER))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The run decides when to stop: a scheduler that signals all processes must not make it miss clips.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request, data = _receive(requests)
        except EOFError:
            return
        signal.alarm(SECONDS_PER_FILE)
        answer, data = _answer(request, data)
        signal.alarm(0)
        try:
            _send(answers, json.dumps(answer).encode(), data)
        except BrokenPipeError:  # the run has ended
            return


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
    where = request["clip"]
    path = Member(**where | {"data": data or None}) if "name" in where else Path(where["path"])
    try:
        if request["do"] == "probe":
            return dataclasses.asdict(video.probe(path, request["max_pixels"])), b""
        clip = np.ascontiguousarray(video.read_clip(path, **request["arguments"]))
        return {"shape": clip.shape}, memoryview(clip).cast("B")
    except UserError as error:
        return {"error": str(error)}, b""
    except OSError as error:
        return {"error": f"{path}: {error.strerror or error}"}, b""
    except MemoryError:
        return {"error": f"{path}: decoding needs more than {BYTES_OF_WORKER >> 30} GiB of memory"}, b""


if __name__ == "__main__":
    _serve()
