"""`lumos play`: a trained world on a local page, or in the terminal. Keys in, frames out; every session can be recorded."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import termios
import time
import tty
from pathlib import Path
from typing import Any

import numpy as np

from lumos.errors import UserError
from lumos.streaming.live import Shown
from lumos.streaming.serve import FrameThread, Viewer, check_installed, run_app
from lumos.worlds.player import Player, keys_of
from lumos.worlds.world import World

_log = logging.getLogger(__name__)

_PAGE = Path(__file__).with_name("page.html")
_HELD = 0.25  # seconds for which a key of a terminal holds, which tells no release
_ESCAPES = {"A": "ArrowUp", "B": "ArrowDown", "C": "ArrowRight", "D": "ArrowLeft"}
_LEAVE = ("q", "\x03", "\x04")


def warm(world: World) -> None:
    """Compile what a session runs, and what of it is slow the first time."""
    world.reset(0)
    for _ in range(2):
        world.step({0: 0})


class Arcade(FrameThread):
    """Players of one world, a row each. Frames are made when they are due, under the key that is held then; where a latent frame is
    a frame, another key makes the next one at once, and the rate goes on from there."""

    def __init__(self, world: World, record: str = ""):
        self.world, self._record, self._players, self._sessions = world, record, {}, 0
        self.latencies: list[float] = []
        super().__init__(world.generator.config.generate.fps, 0.0)

    def _make(self, going: dict[int, Viewer]) -> None:
        began, players = time.perf_counter(), self._players
        held = {row: players[row].action for row in going}
        for row, pixels in self.world.step(held).items():
            players[row].took(pixels)
            self._show(going[row], pixels, held[row], time.perf_counter() - began)

    def _show(self, viewer: Viewer, pixels: np.ndarray, action: int, seconds: float) -> None:
        number = self._players[viewer.seat].num_frames - 1
        self._wait_for_next(viewer, len(pixels))
        facts = {"fps": self._fps, "action": action, "ms": 1000 * seconds}
        viewer.show(Shown(number, pixels[None], None), facts)

    def _give_back(self, viewer: Viewer) -> None:
        player = self._players.pop(viewer.seat)
        self.latencies += player.latencies
        if player.latencies:
            _log.info("key to frame: median %.0f ms of %d keys", player.latency_ms, len(player.latencies))
        if self._record and len(player.frames) > 1:
            self._sessions += 1
            path = player.save(self._record, f"session_{os.getpid()}_{self._sessions:03d}")
            _log.info("recorded %s", path)
        viewer.seat = None

    def _answer(self, viewer: Viewer, message: dict[str, Any]) -> None:
        what = message.get("do")
        if what == "hello":
            viewer.tell(actions=self.world.actions, keys=keys_of(self.world.actions))
        elif what == "start":
            self._start(viewer, message.get("seed", 0))
        elif viewer.seat is None:
            raise UserError("nothing runs yet: start first")
        elif what == "act":
            action = message.get("action")
            if type(action) is not int:
                raise UserError("action is a whole number")
            if self._players[viewer.seat].press(action) and self.world.stride == 1:
                viewer.due = min(viewer.due, time.monotonic())
        elif what == "pause":
            viewer.paused = bool(message.get("on", True))
            viewer.tell(paused=viewer.paused)
        elif what == "stop":
            self._give_back(viewer)
            viewer.tell(stopped=True)
        else:
            raise UserError(f"do={str(what)[:40]!r}; allowed: hello, start, act, pause, stop")

    def _start(self, viewer: Viewer, seed: Any) -> None:
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise UserError("seed is a whole number from 0 on")
        if viewer.seat is not None:
            self._give_back(viewer)
        free = [row for row in range(self.world.num_rows) if row not in self._players]
        if not free:
            raise UserError(f"all {self.world.num_rows} places are taken; try again when one is free")
        player = self._players[free[0]] = Player(self.world, free[0], seed=seed)
        viewer.seat, viewer.paused, viewer.due = free[0], False, time.monotonic()
        viewer.tell(started=seed)
        self._show(viewer, np.stack(player.frames), 0, 0.0)


def play_on_page(world: World, host: str, port: int, record: str = "") -> None:
    """Serve the page until the process is stopped. Raises UserError."""
    check_installed("lumos play")
    warm(world)
    arcade = Arcade(world, record)
    run_app(arcade, host, port, _PAGE.read_text())
    if arcade.latencies:
        print(f"key to frame: median {1000 * np.median(arcade.latencies):.0f} ms of {len(arcade.latencies)} keys")


def as_blocks(frame_YXC: np.ndarray) -> str:
    """Return a frame as lines of half blocks in true colour: two rows of pixels a line."""
    if len(frame_YXC) % 2:
        frame_YXC = np.concatenate([frame_YXC, frame_YXC[-1:]])
    lines = []
    for top, bottom in zip(frame_YXC[::2].tolist(), frame_YXC[1::2].tolist()):
        cells = (f"\x1b[38;2;{a};{b};{c};48;2;{d};{e};{f}m▀" for (a, b, c), (d, e, f) in zip(top, bottom))
        lines.append("".join(cells) + "\x1b[0m")
    return "\r\n".join(lines)


def play_in_terminal(world: World, *, seed: int = 0, record: str = "", speculate: bool = False) -> None:
    """Play until q or Ctrl-C. Raises UserError where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("lumos play --terminal needs a terminal; without --terminal it serves a page")
    warm(world)
    player, keys = Player(world, seed=seed, speculate=speculate), keys_of(world.actions)
    help_line = ", ".join(
        f"{name}: {'/'.join(k for k, n in keys.items() if n == i)}" for i, name in enumerate(world.actions)
    )
    sys.stdout.write("\x1b[2J\x1b[?25l")
    period, due, until = 1 / world.fps, time.perf_counter(), 0.0
    with _raw_keys() as read:
        while True:
            pressed = read(max(due - time.perf_counter(), 0.0))
            if any(key in _LEAVE for key in pressed):
                break
            known = [keys[key] for key in pressed if key in keys]
            now = time.perf_counter()
            if known:
                until = now + _HELD
                if player.press(known[-1]) and world.stride == 1:  # shown at once
                    due = min(due, now)
            elif now > until:
                player.press(0)
            if now < due:
                continue
            began = time.perf_counter()
            for frame in player.tick():
                sys.stdout.write("\x1b[H" + as_blocks(frame))
            ms = 1000 * (time.perf_counter() - began)
            facts = f"frame {player.num_frames - 1}  {world.actions[player.action]}  made in {ms:.0f} ms  key to frame {player.latency_ms:.0f} ms"
            sys.stdout.write(f"\r\n{facts}\x1b[K\r\n{help_line}, leave: q\x1b[K")
            sys.stdout.flush()
            due = max(due + period, time.perf_counter())
            player.look_ahead()
    sys.stdout.write("\x1b[?25h\r\n")
    print(
        f"{player.num_frames} frames; key to frame: median {player.latency_ms:.0f} ms of {len(player.latencies)} keys"
    )
    if record:
        print(player.save(record, f"session_{os.getpid()}"))


@contextlib.contextmanager
def _raw_keys():
    """Give the function that returns the keys pressed within so many seconds; the terminal is as before afterwards."""
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)

    def read(seconds: float) -> list[str]:
        if not select.select([number], [], [], seconds)[0]:
            return []
        return keys_in(os.read(number, 64).decode(errors="ignore"))

    try:
        yield read
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def keys_in(text: str) -> list[str]:
    """Return the keys behind what a terminal sends; arrows come as escapes."""
    keys, rest = [], text
    while rest:
        if rest.startswith("\x1b[") and len(rest) > 2:
            keys += [_ESCAPES[rest[2]]] if rest[2] in _ESCAPES else []
            rest = rest[3:]
        else:
            keys, rest = [*keys, rest[0]], rest[1:]
    return keys


def play(
    workdir: str | Path,
    *,
    terminal: bool = False,
    host: str = "127.0.0.1",
    port: int = 8080,
    seats: int = 1,
    seed: int = 0,
    record: str = "",
    speculate: bool = False,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Play the world of a training workdir or a release. Raises UserError."""
    if speculate and not terminal:
        raise UserError("--speculate is for --terminal: on the page the frames of all players are made together")
    world = World.load(workdir, 1 if terminal else seats, overrides, undo=int(speculate))
    if terminal:
        play_in_terminal(world, seed=seed, record=record, speculate=speculate)
    else:
        play_on_page(world, host, port, record)
