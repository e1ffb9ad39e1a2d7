"""`lumos serve`: a small web page that shows streams live and takes prompts.

One thread makes frames for all viewers (`Pool`), a web server (aiohttp) talks to their pages over WebSockets. A page sends JSON
messages (`_Viewer.take`), and an image or a video as bytes; it gets every latent frame as one picture, its frames below each other,
behind a JSON header. What a page sends is never trusted: what cannot be done is answered with a line, and harms no other viewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.util
import io
import ipaddress
import json
import logging
import queue
import secrets
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lumos.errors import UserError
from lumos.generation.session import SWITCHES
from lumos.streaming.live import Options, Shown, read_beginning
from lumos.streaming.pool import Pool
from lumos.videos.generator import Generator

_log = logging.getLogger(__name__)

_MOST_CHARACTERS = 2_000  # of a prompt
_MOST_BYTES = 16 << 20  # of a message: an upload
_AHEAD = 0.5  # seconds that are made before they are due
_MOST_WAITING = 16  # latent frames that are on their way to a page
_PAGE = Path(__file__).with_name("page.html")


class Viewer:
    """One page: its seat, and what it wants next. Messages are put in by the server, and taken by the thread that makes frames."""

    def __init__(self, send):
        self.send, self.seat, self.paused, self.due = send, None, False, 0.0
        self.backlog = 0  # latent frames that are on their way to the page
        self.upload: bytes | None = None
        self.wants: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.gone = False

    def tell(self, **message: Any) -> None:
        """Send a JSON message."""
        self.send(json.dumps(message))

    def show(self, shown: Shown, facts: dict[str, Any]) -> None:
        """Send a latent frame: a line of JSON, then a PNG with its frames below each other."""
        frames = shown.pixels[0]
        picture = io.BytesIO()
        Image.fromarray(frames.reshape(-1, *frames.shape[2:])).save(picture, format="png", compress_level=1)
        header = json.dumps({"number": shown.number, "frames": len(frames)} | facts)
        self.backlog += 1
        self.send(header.encode() + b"\n" + picture.getvalue())

    def is_due(self, now: float) -> bool:
        """Return whether its next frame is to be made; a page that cannot follow waits."""
        return self.seat is not None and not self.paused and self.due <= now and self.backlog < _MOST_WAITING


class FrameThread:
    """The thread that makes frames for all viewers. Subclasses say what viewers may ask for, and how frames are made.

    `ahead`: seconds that frames are made before they are due.
    """

    def __init__(self, fps: float, ahead: float):
        self._fps, self._ahead = fps, ahead
        self._viewers: set[Viewer] = set()
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._thread.start()

    def enter(self, viewer: Viewer) -> None:
        """Begin to serve a viewer."""
        self._viewers.add(viewer)

    def leave(self, viewer: Viewer) -> None:
        """Stop serving a viewer; its seat is free before the next frame."""
        viewer.gone = True
        self._wake.set()

    def ask(self, viewer: Viewer, message: dict[str, Any]) -> None:
        """Do what a viewer wants before its next frame."""
        viewer.wants.put(message)
        self._wake.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            for viewer in list(self._viewers):
                if viewer.gone:
                    self._viewers.discard(viewer)
                    if viewer.seat is not None:
                        self._give_back(viewer)
                    continue
                for message in _latest(viewer.wants):
                    self._do(viewer, message)
            now, viewers = time.monotonic(), list(self._viewers)
            going = {viewer.seat: viewer for viewer in viewers if viewer.is_due(now + self._ahead)}
            if not going:
                self._wake.wait(0.02 if any(v.seat is not None and not v.paused for v in viewers) else None)
                self._wake.clear()
                continue
            self._make(going)

    def _wait_for_next(self, viewer: Viewer, num_frames: int) -> None:
        """Say when a viewer's next frame is due, behind so many frames that are shown now."""
        viewer.due = max(viewer.due, time.monotonic() - self._ahead) + num_frames / self._fps

    def _make(self, going: dict[int, Viewer]) -> None:
        """Make and show the next frame of these seats."""
        raise NotImplementedError

    def _give_back(self, viewer: Viewer) -> None:
        """Free the seat of a viewer."""
        raise NotImplementedError

    def _answer(self, viewer: Viewer, message: dict[str, Any]) -> None:
        """Do one thing. Raises UserError where it cannot be done."""
        raise NotImplementedError

    def _do(self, viewer: Viewer, message: dict[str, Any]) -> None:
        """Do one thing; what cannot be done is told."""
        try:
            self._answer(viewer, message)
        except UserError as error:
            viewer.tell(error=str(error))
        except Exception:  # of one viewer's doing: the others go on
            _log.exception("a viewer's message failed")
            viewer.tell(error="that failed; the server's log has the reason")


class Studio(FrameThread):
    """Streams that go on by themselves, and take prompts."""

    def __init__(self, generator: Generator, num_seats: int, undo: int = 8):
        self.pool = Pool(generator, num_seats, options=Options(undo=undo))
        super().__init__(generator.config.generate.fps, _AHEAD)

    def _make(self, going: dict[int, Viewer]) -> None:
        for seat, shown in self.pool.step(set(going)).items():
            self._show(going[seat], shown)

    def _give_back(self, viewer: Viewer) -> None:
        self.pool.leave(viewer.seat)

    def _show(self, viewer: Viewer, shown: Shown) -> None:
        self._wait_for_next(viewer, len(shown.pixels[0]))
        live = self.pool.at(viewer.seat)
        viewer.show(shown, {"fps": self._fps, "cache_bytes": live.session.num_bytes, "viewers": len(self._viewers)})

    def _answer(self, viewer: Viewer, message: dict[str, Any]) -> None:
        what = message.get("do")
        if what == "start":
            self._start(viewer, message)
        elif viewer.seat is None:
            raise UserError("nothing runs yet: start first")
        elif what == "switch":
            self.pool.switch(viewer.seat, _prompt(message), _choice(message, "how", SWITCHES))
            viewer.tell(switched=_prompt(message), after=self.pool.at(viewer.seat).frame)
        elif what == "cut":
            self.pool.cut(viewer.seat)
        elif what == "pause":
            viewer.paused = bool(message.get("on", True))
            viewer.tell(paused=viewer.paused)
        elif what == "rewind":
            self.pool.rewind(viewer.seat, _whole(message, "frames"))
            viewer.tell(rewound=self.pool.at(viewer.seat).frame)
        elif what == "fork":
            seat = self.pool.fork(viewer.seat, seed=_whole(message, "seed"))
            self.pool.leave(viewer.seat)
            viewer.seat = seat
            viewer.tell(forked=self.pool.at(seat).frame)
        elif what == "stop":
            self.pool.leave(viewer.seat)
            viewer.seat = None
            viewer.tell(stopped=True)
        else:
            raise UserError(f"do={str(what)[:40]!r}; allowed: start, switch, cut, pause, rewind, fork, stop")

    def _start(self, viewer: Viewer, message: dict[str, Any]) -> None:
        prompt, seed = _prompt(message), _whole(message, "seed")
        given = self._read_upload(viewer) if message.get("given") else None
        if viewer.seat is not None:
            self.pool.leave(viewer.seat)
            viewer.seat = None
        seat, shown = self.pool.join(prompt, seed=seed, given=given)
        viewer.seat, viewer.paused, viewer.due = seat, False, time.monotonic()
        viewer.tell(started=prompt, seed=seed)
        for frame in shown:
            self._show(viewer, frame)

    def _read_upload(self, viewer: Viewer) -> np.ndarray:
        if not viewer.upload:
            raise UserError("no image or video was sent before")
        with tempfile.NamedTemporaryFile() as file:
            file.write(viewer.upload)
            file.flush()
            try:
                return read_beginning(self.pool.generator, file.name)
            except UserError as error:
                raise UserError(str(error).replace(file.name, "the upload")) from error


def _latest(wants: queue.SimpleQueue) -> list[dict[str, Any]]:
    """Return what a viewer wants, in order; of several switches and pauses in a row the last one counts."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(queue.Empty):
        while True:
            message = wants.get_nowait()
            if found and message.get("do") in ("switch", "pause", "start") and found[-1].get("do") == message.get("do"):
                found.pop()
            found.append(message)
    return found


def _prompt(message: dict[str, Any]) -> str:
    prompt = message.get("prompt", "")
    if not isinstance(prompt, str) or len(prompt) > _MOST_CHARACTERS:
        raise UserError(f"a prompt is a text of at most {_MOST_CHARACTERS} characters")
    return prompt


def _whole(message: dict[str, Any], name: str) -> int:
    value = message.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise UserError(f"{name} is a whole number from 0 on")
    return value


def _choice(message: dict[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    value = message.get(name, "recache")
    if value not in allowed:
        raise UserError(f"{name}={str(value)[:40]!r}; allowed: {', '.join(allowed)}")
    return value


def make_app(studio: FrameThread, token: str = "", page_text: str = ""):
    """Return the web application, by default with the page of streams; with a token, whoever does not know it is refused."""
    from aiohttp import WSMsgType, web

    def check(request) -> None:
        if token and not hmac.compare_digest(request.query.get("token", "").encode(), token.encode()):
            raise web.HTTPForbidden(text="wrong token: open the address that lumos serve has printed\n")
        # A page of another site may not use the viewer's browser to come here.
        origin = request.headers.get("Origin")
        if origin and origin.split("://")[-1] != request.headers.get("Host"):
            raise web.HTTPForbidden(text="this page is of another site\n")

    async def page(request):
        check(request)
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"
        return web.Response(
            text=page_text or _PAGE.read_text(), content_type="text/html", headers={"Content-Security-Policy": policy}
        )

    async def socket(request):
        check(request)
        ws = web.WebSocketResponse(max_msg_size=_MOST_BYTES, heartbeat=20)
        await ws.prepare(request)
        loop, out = asyncio.get_running_loop(), asyncio.Queue()
        viewer = Viewer(lambda data: loop.call_soon_threadsafe(out.put_nowait, data))

        async def deliver():
            while True:
                data = await out.get()
                if isinstance(data, str):
                    await ws.send_str(data)
                else:
                    await ws.send_bytes(data)
                    viewer.backlog -= 1

        studio.enter(viewer)
        task = asyncio.create_task(deliver())
        try:
            async for message in ws:
                if message.type == WSMsgType.BINARY:
                    viewer.upload = message.data
                    viewer.tell(uploaded=len(message.data))
                elif message.type == WSMsgType.TEXT:
                    try:
                        data = json.loads(message.data)
                        if not isinstance(data, dict):
                            raise ValueError
                    except ValueError:
                        viewer.tell(error="messages are JSON objects")
                        continue
                    studio.ask(viewer, data)
        finally:
            studio.leave(viewer)
            task.cancel()
        return ws

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/socket", socket)])
    return app


def serve(workdir: str | Path, host: str, port: int, num_seats: int, overrides: dict[str, Any] | None = None) -> None:
    """Serve a run until the process is stopped. Beyond this machine a token is asked for, which the printed address holds."""
    check_installed("lumos serve")
    generator = Generator.load(workdir, overrides)
    if generator.config.sequence.streams:
        raise UserError(f"{workdir}: the frames of this model come with actions: use lumos play --workdir={workdir}")
    run_app(Studio(generator, num_seats), host, port)


def check_installed(command: str) -> None:
    """Raise UserError where there is no web server."""
    if importlib.util.find_spec("aiohttp") is None:
        raise UserError(f"{command} needs a web server: pip install 'lumos-video[serve]'")


def run_app(studio: FrameThread, host: str, port: int, page_text: str = "") -> None:
    """Answer pages until the process is stopped; see `serve`. Raises UserError where the port is taken."""
    from aiohttp import web

    token = "" if _is_here(host) else secrets.token_urlsafe(16)
    address = f"http://{host}:{port}/" + (f"?token={token}" if token else "")
    try:
        app = make_app(studio, token, page_text)
        web.run_app(app, host=host, port=port, print=lambda *_: print(address, flush=True))
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: cannot listen there ({error.strerror or error})") from error
    finally:
        studio.stop()


def _is_here(host: str) -> bool:
    """Return whether a host name is that of this machine alone."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
