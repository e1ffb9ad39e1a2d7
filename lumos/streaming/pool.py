"""Videos of many viewers in one batch: they join, go on and leave at any latent frame (continuous batching).

Every viewer has a seat. All seats advance by a latent frame together, in one program for tokens and pixels, whatever frame each of
them is at: what a seat goes on from is one entry of a batch of states. An event takes its entry out, and puts it back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.errors import UserError
from lumos.streaming.live import Live, Options, Shown
from lumos.tokenizers.pixel_quality import to_uint8
from lumos.videos.generator import Generator


class Pool:
    """Seats for so many viewers, each with a video of its own. `step` makes the next frame of every seat that is taken."""

    def __init__(self, generator: Generator, num_seats: int, *, options: Options | None = None):
        """`options`: of every seat, but for the seed and `ahead`. The plan must finish frame by frame. Raises UserError."""
        if num_seats < 1:
            raise UserError(f"a pool of {num_seats} seats: there must be at least 1")
        self.generator, self.num_seats = generator, num_seats
        self.options = dataclasses.replace(options or Options(), ahead=0)
        self._seats: dict[int, Live] = {}
        self._batch: Any = None  # of states and of what the decoder remembers, [seats, ...]
        self._program = None
        self._put = jax.jit(lambda batch, seat, one: jax.tree.map(lambda x, y: x.at[seat].set(y), batch, one))
        self._take = jax.jit(lambda batch, seat: jax.tree.map(lambda x: x[seat], batch))

    @property
    def free(self) -> list[int]:
        """The seats that nobody has."""
        return [seat for seat in range(self.num_seats) if seat not in self._seats]

    def join(
        self, prompt: str, *, seed: int = 0, given: np.ndarray | None = None, streams: Sequence[np.ndarray] = ()
    ) -> tuple[int, list[Shown]]:
        """Take a seat; return it and its first frames: those that are given (with `streams`, see `Live`), or the one that begins the
        video. Raises UserError."""
        seat = self._free_seat()
        options = dataclasses.replace(self.options, seed=seed)
        live = Live(self.generator, [prompt], given=given, options=options, streams=streams)
        if live.session.width > 1:
            raise UserError(
                "a pool needs a plan that finishes one frame at a time: use config.generate.plan='one_by_one'"
            )
        shown = [next(live)]
        while live.frame < live.session.frame:
            shown.append(next(live))
        self._seats[seat] = live
        self._return(seat)
        return seat, shown

    def leave(self, seat: int) -> None:
        """Give a seat back."""
        self._live(seat)
        del self._seats[seat]

    def step(self, seats: Container[int] | None = None, streams: Sequence[np.ndarray] = ()) -> dict[int, Shown]:
        """Make the next latent frame of these seats, by default of all that are taken; the others stay where they are.

        streams: the codes int32 [seats, tokens] of each stream beside the video, of the coming frame of every seat.
        """
        going = [seat for seat in self._seats if seats is None or seat in seats]
        if not going:
            return {}
        params = self.generator.params, self.generator.tokenizer.params
        before, goes_N = self._batch, np.isin(np.arange(self.num_seats), going)
        of_frame = tuple(np.asarray(x, np.int32) for x in streams)
        if len(of_frame) != len(self.generator.config.sequence.streams):
            raise UserError(
                f"{len(of_frame)} streams for the next frame; config.sequence.streams={self.generator.config.sequence.streams}"
            )
        self._batch, codes, pixels = self._program(params, before, goes_N, of_frame)
        pixels, out = np.asarray(pixels), {}
        for seat in going:
            live = self._seats[seat]
            number = live.session.took(codes[seat], tuple(x[seat : seat + 1] for x in of_frame))
            live.shown(number, functools.partial(self._remembered, before, seat))
            out[seat] = Shown(number, pixels[seat], np.asarray(live.session.codes(number)))
        return out

    def _remembered(self, batch, seat: int) -> tuple:
        return self._seats[seat].with_memory(self._take(batch, seat)[1])

    def switch(self, seat: int, prompt: str, how: str = "recache") -> None:
        """Go on with another prompt on a seat; see `Session.switch`. Raises UserError."""
        self._borrow(seat).switch([prompt], how)
        self._return(seat)

    def cut(self, seat: int, frames: int | None = None) -> None:
        """Begin a new scene on a seat; see `Live.cut`. Raises UserError."""
        self._borrow(seat).cut(frames)
        self._return(seat)

    def rewind(self, seat: int, frames: int) -> None:
        """Take the last frames of a seat back; see `Live.rewind`. Raises UserError."""
        self._borrow(seat).rewind(frames)
        self._return(seat)

    def fork(self, seat: int, *, seed: int | None = None) -> int:
        """Take another seat, whose video goes on from here by itself; return it. Raises UserError where none is free."""
        live = self._borrow(seat)
        other = self._free_seat()
        self._seats[other] = live.fork(seed)
        self._return(other)
        return other

    def at(self, seat: int) -> Live:
        """Return the video of a seat, to look at. Raises UserError."""
        return self._live(seat)

    def _free_seat(self) -> int:
        if not self.free:
            raise UserError(f"all {self.num_seats} seats are taken; try again when one is free")
        return self.free[0]

    def _live(self, seat: int) -> Live:
        if seat not in self._seats:
            raise UserError(f"nobody has seat {seat}")
        return self._seats[seat]

    def _borrow(self, seat: int) -> Live:
        """Return a seat's video, which goes on from its entry of the batch."""
        live = self._live(seat)
        live.go_on_from(self._take(self._batch, seat))
        return live

    def _return(self, seat: int) -> None:
        """Put what a seat's video goes on from into the batch."""
        one = self._seats[seat].state
        if self._batch is None:
            self._batch = jax.tree.map(lambda x: jnp.stack([x] * self.num_seats), one)
            self._program = _program(self._seats[seat])
        self._batch = self._put(self._batch, seat, one)


def _program(live: Live):
    """Return the compiled step: (params, batch, bool [seats], which of them go on, codes [seats, tokens] of their streams) -> batch, codes
    [seats, 1, H * W], uint8 pixels [seats, 1, F, Y, X, 3]."""
    make, decode = live.session.make_frame, live.decode_frame
    _, *grid = live.generator.config.sequence.grid

    def one(params, entry, goes, streams):
        (of_model, of_tokenizer), (state, memory) = params, entry
        state, codes = make(of_model, state, tuple(x[None] for x in streams))
        pixels, memory = decode(of_tokenizer, codes.reshape(1, 1, *grid), memory)
        after = jax.tree.map(lambda new, old: jnp.where(goes, new, old), (state, memory), entry)
        return after, codes, to_uint8(pixels)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, 0, 0)))
