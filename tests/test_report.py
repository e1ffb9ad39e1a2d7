"""The page of a report: what is in it without a browser, and what a real one makes of it."""

import csv
import json
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from lumos.evaluation import metric, report, rows
from lumos.evaluation.subject import Clip

EVIL = "a </script><img src=x onerror=document.title='pwned'> \"cat\" & <b>dog</b>"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Four cells (two steps, two scales) with a clip of each of two prompts, and one that failed."""
    out, rng = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    for step in (1, 2):
        for scale in (1.5, 3.0):
            folder = out / "cells" / f"{step}-{scale}"
            folder.mkdir(parents=True)
            values = rng.normal(step * scale, 1, (16, 3))
            metrics = {
                "prompts/colour": metric.mean(values[:, 0], "16 prompts", "high"),
                "likelihood/nll": metric.mean(-values[:, 1], EVIL, "low"),
            }
            metrics["drift/motion_frames"] = metric.mean(values, "16 clips")
            clips = [
                Clip("prompts", rng.integers(0, 256, (5, 16, 16, 3), np.uint8), text, 7)
                for text in (EVIL, "a red circle   [colour ok]")
            ]
            rows.write(
                folder, rows.Row({"run": "r", "step": step, "generate.guidance.scale": scale}, metrics), clips, 8.0, {}
            )
    report.write(out, [out / "cells"], failed=[{"cell": {"step": 3}, "reason": EVIL}], title="sweep")
    return out


def test_csv_and_json_have_everything(sweep):
    found = json.loads((sweep / "rows.json").read_text())
    with open(sweep / "rows.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(found) == len(lines) == 5
    for row, line in zip(found[:4], lines):
        assert (
            line["step"] == str(row["cell"]["step"])
            and float(line["likelihood/nll"]) == row["metrics"]["likelihood/nll"]["value"]
        )
        assert float(line["likelihood/nll low"]) < float(line["likelihood/nll"]) < float(line["likelihood/nll high"])
        assert line["likelihood/nll n"] == "16"
    assert lines[4]["failed"] == EVIL


def test_videos_are_linked_and_there(sweep, tmp_path):
    page = (sweep / "index.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    sources = [video["src"] for row in data["rows"] for video in row["videos"]]
    assert len(sources) == 8 and all((sweep / source).is_file() for source in sources)
    assert {video["prompt"] for row in data["rows"] for video in row["videos"]} == {EVIL, "a red circle"}
    metrics = data["rows"][0]["metrics"]
    assert data["protocols"][metrics["likelihood/nll"]["protocol"]] == EVIL and page.count("16 prompts") == 1
    assert len(page) < 60_000 and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    merged = report.merge([str(sweep), str(sweep / "cells" / "1-1.5")], tmp_path / "merged")
    again = json.loads(merged.read_text().split('id="data">')[1].split("</script>")[0])
    assert len(again["rows"]) == 4 and all(
        (tmp_path / "merged" / v["src"]).exists() for r in again["rows"] for v in r["videos"]
    )


def dump(folder, address, size="1280,1600"):
    """Return the page as a real browser has built it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder}", f"--window-size={size}"]
    command = [chromium, *flags, "--virtual-time-budget=3000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


DRIVER = """<!doctype html><iframe id="page" style="width: 1200px; height: 1600px" src="%s"></iframe><script>
const frame = document.getElementById("page"), sleep = ms => new Promise(done => setTimeout(done, ms)), found = {};
const finish = () => fetch("http://127.0.0.1:%d/", { method: "POST", mode: "no-cors", body: JSON.stringify(found) });
frame.onload = async () => { try {
  const page = frame.contentDocument, all = what => [...page.querySelectorAll(what)];
  const order = () => all("#table tbody th").map(cell => cell.firstChild.data), head = name => all("#table th button").find(b => b.textContent === name);
  const choose = (key, value) => { const select = page.querySelector(`select[data-key="${key}"]`); select.value = value; select.dispatchEvent(new Event("change")); };
  found.start = order();
  head("likelihood/nll").click();
  found.up = [order(), head("likelihood/nll").parentNode.getAttribute("aria-sort")];
  head("likelihood/nll").click();
  found.down = [order(), head("likelihood/nll").parentNode.getAttribute("aria-sort")];
  choose("f.generate.guidance.scale", "3");
  found.filtered = [order(), all("#videos video").length, all("#pareto circle").length];
  const find = page.getElementById("find");
  find.value = "step 2"; find.dispatchEvent(new Event("input"));
  found.found = [order(), page.getElementById("count").textContent];
  find.value = ""; find.dispatchEvent(new Event("input"));
  choose("f.generate.guidance.scale", "");
  found.hash = frame.contentWindow.location.hash;
  for (const video of all("#videos video")) for (let i = 0; i < 100 && video.readyState < 2; i++) await sleep(50);
  const times = () => all("#videos video").map(video => [video.currentTime, video.paused, video.videoWidth]);
  page.getElementById("play").click();
  const together = () => { const now = times().map(time => time[0]); return Math.min(...now) > .05 && Math.max(...now) - Math.min(...now) < .15; };
  for (let i = 0; i < 500 && !together(); i++) await sleep(20);
  found.playing = times();
  page.getElementById("play").click();
  const seek = page.getElementById("seek");
  seek.value = 0.5; seek.dispatchEvent(new Event("input"));
  await sleep(300);
  found.sought = [times(), all("#videos video")[0].duration];
  found.prompts = [page.getElementById("prompt").value];
  page.getElementById("next").click();
  found.prompts.push(page.getElementById("prompt").value);
  frame.style.width = "390px";
  await sleep(200);
  found.phone = [page.documentElement.scrollWidth, page.documentElement.clientWidth, all("#table thead th")[1].textContent];
  found.title = page.title;
} catch (error) { found.error = String(error); } finish(); };
</script>"""


def browse(tmp_path, page):
    """Let a real browser open the page from the disk and use it; return what it found there."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    posted = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        log_message = lambda *_: None

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        (tmp_path / "drive.html").write_text(DRIVER % (page.as_uri(), server.server_port))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"]
        flags += [f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"]  # it stays open
        browser = subprocess.Popen([chromium, *flags, (tmp_path / "drive.html").as_uri()], stderr=subprocess.DEVNULL)
        server.timeout = 60
        try:
            server.handle_request()
        finally:
            browser.terminate()
            browser.wait()
    (found,) = posted
    assert "error" not in found, found["error"]
    return found


def test_a_browser_plays_sorts_and_filters(sweep, tmp_path):
    found = browse(tmp_path, sweep / "index.html")
    nll = [row["metrics"]["likelihood/nll"]["value"] for row in json.loads((sweep / "rows.json").read_text())[:4]]
    up = [str(i + 1) for i in np.argsort(nll)]
    assert found["start"] == ["1", "2", "3", "4", "5"]
    assert found["up"] == [[*up, "5"], "ascending"] and found["down"] == [
        [*up[::-1], "5"],
        "descending",
    ]  # failed: last
    assert found["filtered"] == [[i for i in up[::-1] if i in "24"], 2, 2]
    assert found["found"][0] == ["4"] and found["found"][1].startswith("1 of 5 cells")
    assert found["hash"] == "#down=1&sort=likelihood%2Fnll"  # a link to what is seen
    assert len(found["playing"]) == 4
    moved = [time for time, paused, width in found["playing"] if not paused and width == 16]
    assert len(moved) == 4 and min(moved) > 0.05 and max(moved) - min(moved) < 0.2  # five frames of 1/8 s
    times, duration = found["sought"]
    assert all(paused and abs(time - duration / 2) < 0.02 for time, paused, _ in times)
    assert found["prompts"] == ["0", "1"]
    assert found["phone"][0] <= found["phone"][1] <= 390 and found["phone"][2] == "prompts/colour"  # not cut off
    assert found["title"] == "sweep"  # hostile captions are text


def test_a_link_shows_what_its_sender_saw(sweep, tmp_path):
    """The address filters by scale, sorts by a metric, and compares one prompt across cells."""
    dom = dump(tmp_path, f"file://{sweep}/index.html#f.generate.guidance.scale=3&sort=likelihood/nll&down=1&prompt=0")
    assert "<title>sweep</title>" in dom and "onerror" not in dom.split("<script")[0].replace(
        "&lt;img src=x onerror", ""
    )
    table = dom.split('id="table">')[1].split("</table>")[0]
    assert table.count("<tr") == 3 and 'aria-sort="descending"' in table and "2 of 5 cells" in dom
    assert table.count('<th scope="row"') == 2
    figures = dom.split('id="videos">')[1].split("</section>")[0]
    assert figures.count("<video") == 2 and "&lt;b&gt;dog&lt;/b&gt;" in figures and "<b>dog" not in figures
    assert dom.split('id="pareto">')[1].split("</svg>")[0].count("<circle") == 2
    assert dom.split('id="steps">')[1].split("</svg>")[0].count("<circle") == 2
    assert dom.split('id="frames">')[1].split("</svg>")[0].count("<circle") == 6
