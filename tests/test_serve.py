"""The page of `lumos serve`, in a real browser, and what hostile pages get."""

import asyncio
import contextlib
import io
import json
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import untrained
from PIL import Image

from lumos.streaming import serve
from lumos.streaming.serve import Studio, Viewer, make_app

aiohttp = pytest.importorskip("aiohttp")
web = pytest.importorskip("aiohttp.web")


class Server:
    """The application in a thread of its own, on a free port."""

    def __init__(self, studio, token=""):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.loop, self.studio = asyncio.new_event_loop(), studio
        runner = web.AppRunner(make_app(studio, token))

        async def start():
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()

        # Playwright has a loop in the thread of the tests.
        self._runner, self._thread = runner, threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.run(start())

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.run(self._runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def generator():
    with untrained.make() as made:
        yield made


@pytest.fixture(scope="module")
def server(generator):
    studio = Studio(generator, 2)
    with Server(studio) as running:
        yield running
    studio.stop()


def until(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# A real browser.


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield made
        made.close()


def open_page(browser, server):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(error))
    page.goto(f"http://127.0.0.1:{server.port}/")
    return page


def number(page):
    words = page.inner_text("#facts").split()
    return int(words[2]) if words[:2] == ["latent", "frame"] else -1


def pixels(page):
    return page.evaluate(
        "() => Array.from(document.getElementById('screen').getContext('2d').getImageData(0, 0, 32, 32).data)"
    )


def test_a_page_plays_pauses_and_changes(browser, server):
    page = open_page(browser, server)
    page.fill("#prompt", "a red circle")
    page.click("#start")
    until(lambda: number(page) >= 3)
    before = pixels(page)
    until(lambda: pixels(page) != before)  # it moves
    page.click("#pause")
    until(lambda: page.inner_text("#pause") == "Go on")
    time.sleep(0.3)
    still, at = pixels(page), number(page)
    time.sleep(0.7)
    assert pixels(page) == still and number(page) == at
    page.click("#pause")
    until(lambda: number(page) > at)
    page.fill("#prompt", "a blue square")
    page.click("#switch")
    page.click("#rewind")
    page.click("#fork")
    page.click("#cut")
    at = number(page)
    until(lambda: number(page) > at + 2)
    assert page.inner_text("#error") == "" and not page.errors
    assert "frames a second" in page.inner_text("#facts") and "MiB" in page.inner_text("#facts")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")  # a phone shows all of it
    page.close()
    until(lambda: len(server.studio.pool.free) == 2)


def test_two_tabs_are_two_streams_and_closing_one_frees_its_seat(browser, server):
    one, two, three = (open_page(browser, server) for _ in range(3))
    for page, seed in ((one, 1), (two, 2)):
        page.fill("#seed", str(seed))
        page.click("#start")
    until(lambda: number(one) >= 2 and number(two) >= 2)
    assert "3 viewers" in one.inner_text("#facts")
    three.click("#start")
    until(lambda: "all 2 seats are taken" in three.inner_text("#error"))
    one.close()
    until(lambda: len(server.studio.pool.free) == 1)
    three.click("#start")
    until(lambda: number(three) >= 1)
    at = number(two)
    until(lambda: number(two) > at)
    for page in (two, three):
        page.close()
    until(lambda: len(server.studio.pool.free) == 2)


def test_an_image_is_where_a_video_begins(browser, server, tmp_path):
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(tmp_path / "first.png")
    page = open_page(browser, server)
    page.set_input_files("#file", tmp_path / "first.png")
    page.click("#start")
    until(lambda: number(page) >= 1)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    page.set_input_files("#file", tmp_path / "broken.mp4")
    page.click("#start")
    until(lambda: page.inner_text("#error"))
    assert "the upload" in page.inner_text("#error") and not page.errors
    page.close()


# Hostile input, without a browser.


def talk(server, *messages, until_one_has="error"):
    """Send messages over a connection; return the JSON messages that come back, up to one that has this key."""

    async def run():
        got = []
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"http://127.0.0.1:{server.port}/socket", max_msg_size=2**26) as ws:
                for message in messages:
                    if isinstance(message, bytes):
                        await ws.send_bytes(message)
                    else:
                        await ws.send_str(message if isinstance(message, str) else json.dumps(message))
                while not (got and until_one_has in got[-1]):
                    message = await asyncio.wait_for(ws.receive(), 60)
                    if message.type == aiohttp.WSMsgType.TEXT:
                        got.append(json.loads(message.data))
                    elif message.type != aiohttp.WSMsgType.BINARY:  # closed
                        break
        return got

    return server.run(run())


@pytest.mark.parametrize(
    "message, words",
    [
        ("{", "JSON objects"),
        ("[1]", "JSON objects"),
        ({"do": "start", "prompt": "x" * 3000}, "at most 2000 characters"),
        ({"do": "start", "prompt": 7}, "at most 2000 characters"),
        ({"do": "start", "seed": -1}, "seed is a whole number"),
        ({"do": "start", "given": True}, "no image or video was sent"),
        ({"do": "switch", "prompt": "a"}, "start first"),
        ({"do": "fly"}, "start first"),
    ],
)
def test_what_cannot_be_done_is_said(server, message, words):
    assert words in talk(server, message)[0]["error"]


def test_wrong_requests_on_a_seat_are_said_and_the_stream_goes_on(server):
    wrong = {"do": "switch", "prompt": "b", "how": "magic"}, {"do": "rewind", "frames": 999}, {"do": "fly"}
    got = talk(server, {"do": "start", "prompt": "a", "seed": 1}, *wrong, {"do": "stop"}, until_one_has="stopped")
    assert "started" in got[0] and len(got) == 5
    words = "allowed: keep, recache, flush", "rewind by 999 frames", "allowed: start, switch"
    assert all(text in message["error"] for text, message in zip(words, got[1:4], strict=True))


def test_a_thousand_requests_harm_nobody(server):
    """Another viewer goes on; of a thousand switches the last one counts."""
    sent = []
    other = Viewer(lambda data: sent.append(data))
    server.studio.enter(other)
    server.studio.ask(other, {"do": "start", "prompt": "a", "seed": 2})
    until(lambda: len(sent) > 3)
    switches = [{"do": "switch", "prompt": f"prompt {i}"} for i in range(1000)]
    got = talk(server, {"do": "start", "prompt": "b"}, *switches, {"do": "stop"}, until_one_has="stopped")
    assert "started" in got[0] and got[-2]["switched"] == "prompt 999" and len(got) < 900
    other.backlog = 0
    before = len(sent)
    until(lambda: len(sent) > before)
    server.studio.leave(other)
    until(lambda: len(server.studio.pool.free) == 2)


def test_uploads_have_a_limit(server):
    assert talk(server, b"x" * 1000, until_one_has="uploaded")[0] == {"uploaded": 1000}
    with contextlib.suppress(ConnectionError):  # it is closed while the rest is sent, or behind it
        assert talk(server, b"x" * (serve._MOST_BYTES + 1), until_one_has="uploaded") == []
    assert talk(server, b"x", until_one_has="uploaded")[0] == {"uploaded": 1}


def test_a_token_is_asked_for_and_pages_of_other_sites_are_refused(generator):
    studio = Studio(generator, 1)
    with Server(studio, token="secret") as running:

        async def status(query, headers):
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{running.port}/{query}", headers=headers) as answer:
                    return answer.status

        get = lambda query="", **headers: running.run(status(query, headers))
        assert [get(), get("?token=wrong"), get("?token=secret")] == [403, 403, 200]
        assert get("?token=secret", Origin="http://evil.example") == 403
        assert get("?token=secret", Origin=f"http://127.0.0.1:{running.port}") == 200
    studio.stop()
    assert serve._is_here("127.0.0.1") and serve._is_here("localhost") and not serve._is_here("0.0.0.0")


def test_a_slow_page_is_waited_for(generator):
    viewer = Viewer(lambda data: None)
    viewer.seat = 0
    assert viewer.is_due(0.0)
    viewer.backlog = serve._MOST_WAITING
    assert not viewer.is_due(0.0)
    frame = np.zeros((1, 4, 2, 2, 3), np.uint8)
    sent = []
    viewer = Viewer(sent.append)
    viewer.show(serve.Shown(3, frame, None), {"fps": 8})
    header, _, picture = sent[0].partition(b"\n")
    assert json.loads(header) == {"number": 3, "frames": 4, "fps": 8} and Image.open(io.BytesIO(picture)).size == (2, 8)
