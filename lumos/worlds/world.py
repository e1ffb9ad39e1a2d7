"""Worlds that are played: rows of videos whose next frame an action leads to, each with a seed and a start of its own.

A row is a seat of a pool (lumos/streaming/pool.py): all rows that go on are made in one program, tokens and pixels, and each may begin
anew at any time. What a row shows depends on its start, its seed and its actions alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

import numpy as np

from lumos.errors import UserError
from lumos.streaming.live import Live, Options
from lumos.streaming.pool import Pool
from lumos.videos.conditions import following
from lumos.videos.generator import Generator
from lumos.worlds.starts import Starts


@dataclasses.dataclass
class _Row:
    seat: int
    rows: list[np.ndarray]  # actions of each row of the stream up to now, [1] each
    actions: list[int]  # that led to its latent frames, for a recording
    start: int


class World:
    """`num_rows` worlds of one model. The model has one stream of one number, the action; its cache must be bounded."""

    def __init__(
        self, generator: Generator, num_rows: int = 1, *, given: int = 1, undo: int = 0, starts: Starts | None = None
    ):
        """given: latent frames of a held-out clip that a world begins with. undo: frames that can be taken back. Raises UserError."""
        config = generator.config
        if len(config.sequence.streams) != 1:
            raise UserError(
                f"config.sequence.streams={config.sequence.streams}: a world that is played has one stream, the action; train it with "
                "config.sequence.streams=((actions + 1, 1),) on tokens made with config.data.streams"
            )
        if not config.generate.cache.bounded:
            raise UserError(
                f"config.generate.cache={config.generate.cache.name!r} ends with the trained length; a world needs 'window' or 'fifo'"
            )
        self.generator, self.starts = generator, starts or Starts(config)
        size, self._tokens = config.sequence.streams[0]
        self.num_actions = size - 1  # the last code says that there was none
        stream = self.starts.streams[0] if self.starts.streams else None
        names = stream.names if stream else ()
        self.actions = names if len(names) == self.num_actions else tuple(map(str, range(self.num_actions)))
        if stream and stream.high > stream.low:
            raise UserError(f"stream {stream.name!r} sorts values into bins: keys choose whole numbers alone")
        if self._tokens > 1 and not (stream and stream.rows == self._tokens):
            raise UserError(f"the action of a latent frame has {self._tokens} tokens: keys choose a single number")
        self._given, self.stride = given, generator.tokenizer.config.temporal_compression  # frames of a latent frame
        self._pool = Pool(generator, num_rows, options=Options(undo=undo))
        self._rows: dict[int, _Row] = {}

    @classmethod
    def load(
        cls, workdir: str | Path, num_rows: int = 1, overrides: dict[str, Any] | None = None, **options: Any
    ) -> Self:
        """Load the world of a training workdir or a release. Raises UserError."""
        return cls(Generator.load(workdir, overrides), num_rows, **options)

    @property
    def num_rows(self) -> int:
        return self._pool.num_seats

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.generator.frame_size

    @property
    def fps(self) -> float:
        """Latent frames a second of the recordings that the world was learnt from."""
        return self.generator.config.generate.fps / self.stride

    def reset(self, row: int, *, seed: int = 0, start: int | None = None) -> np.ndarray:
        """Begin a row anew, at the start of this number (by default that of the seed); return its given frames, uint8 [F, Y, X, 3]."""
        if row in self._rows:
            self._pool.leave(self._rows.pop(row).seat)
        start = seed if start is None else start
        clip = self.starts.clip(start)
        given, streams = clip.codes[None, : self._given], [x[None, : self._given] for x in clip.streams]
        seat, shown = self._pool.join(clip.caption, seed=seed, given=given, streams=streams)
        history = list(clip.streams[0][self._given - 1])
        self._rows[row] = _Row(seat, history, [int(x[-1]) for x in clip.streams[0][: self._given]], start)
        return np.concatenate([frame.pixels[0] for frame in shown])

    def step(self, actions: dict[int, int]) -> dict[int, np.ndarray]:
        """Make the next latent frame of these rows, each led to by its action; return their pixels, uint8 [F, Y, X, 3] each."""
        codes = np.zeros((self.num_rows, self._tokens), np.int32)
        for row, action in actions.items():
            if row not in self._rows:
                raise UserError(f"world {row} has not begun: reset it first")
            if not 0 <= action < self.num_actions:
                raise UserError(
                    f"action {action} of world {row}; allowed: 0 to {self.num_actions - 1} ({', '.join(self.actions)})"
                )
            state = self._rows[row]
            state.rows = following(state.rows, action, self.stride, self._tokens)
            state.actions.append(action)
            codes[state.seat] = state.rows
        seats = {self._rows[row].seat: row for row in actions}
        made = self._pool.step(set(seats), [codes])
        return {seats[seat]: shown.pixels[0] for seat, shown in made.items()}

    def fork(self, row: int, other: int, *, seed: int | None = None) -> None:
        """Let another row go on from where a row is, with other random numbers where a seed is given; both share their past."""
        if other in self._rows:
            self._pool.leave(self._rows.pop(other).seat)
        state = self._rows[row]
        seat = self._pool.fork(state.seat, seed=seed)
        self._rows[other] = _Row(seat, list(state.rows), list(state.actions), state.start)

    def rewind(self, row: int, frames: int) -> None:
        """Take the last frames of a row back, at most `undo`."""
        state = self._rows[row]
        self._pool.rewind(state.seat, frames)
        if frames:
            state.actions = state.actions[:-frames]
            state.rows = list(self.starts.clip(state.start).streams[0][self._given - 1])
            for action in state.actions[self._given :]:
                state.rows = following(state.rows, action, self.stride, self._tokens)

    def live(self, row: int) -> Live:
        """Return the video of a row, to look at."""
        return self._pool.at(self._rows[row].seat)

    def actions_of(self, row: int) -> list[int]:
        """Return the action that led to each latent frame of a row; that of its first frame is what the start says."""
        return list(self._rows[row].actions)
