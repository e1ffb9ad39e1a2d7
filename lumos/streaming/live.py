"""Videos that go on: tokens from a session, pixels from the causal decoder beside them, latent frame by latent frame.

The decoder remembers what it needs of earlier latent frames, so streamed pixels are those of the whole video. While the pixels of
a frame are decoded, the tokens of the next one are being made.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lumos.config import GenerateConfig
from lumos.errors import UserError
from lumos.generation.sampler import row_keys
from lumos.streaming.profile import Profile
from lumos.tokenizers.pixel_quality import to_uint8
from lumos.videos.generator import Generator

_MOST_GIVEN = 64  # latent frames that a stream begins with


class Shown(NamedTuple):
    """A latent frame as it is shown. number: 0, 1, ... pixels: uint8 [B, F, Y, X, 3]; the first has one frame, others as many as the
    tokenizer compresses to one. codes: int32 [B, H, W]."""

    number: int
    pixels: np.ndarray
    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Options:
    """seed: of the first video; video i has seed + i. settings: sampling; by default the run's `generate` section, whose cache must be
    bounded for videos without end. undo: latent frames that can be taken back. ahead: latent frames whose tokens are made before
    the one that is shown; with 0 an event applies to the very next frame, with 1 tokens and pixels are made side by side.
    """

    seed: int = 0
    settings: GenerateConfig | None = None
    undo: int = 0
    ahead: int = 1


def read_beginning(generator: Generator, path: str | Path) -> np.ndarray:
    """Read an image, or the first frames of a video, that a stream begins with: uint8 [F, Y, X, 3]. Raises UserError."""
    return generator.read_given(path, 1 + _MOST_GIVEN * generator.tokenizer.config.temporal_compression)


class Live:
    """A batch of videos that are made together. Iterating gives `Shown` without end (but for the cache "full", which ends)."""

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[str],
        *,
        given: np.ndarray | None = None,
        options: Options | None = None,
        streams: Sequence[np.ndarray] = (),
    ):
        """Begin with a prompt for each video; `given`: uint8 [F', Y, X, 3] or [B, F', Y, X, 3], first frames, or their codes int32 [B, T',
        H, W]; `streams`: codes int32 [B, T, tokens] of each stream beside the video, of these frames or of more. Raises UserError."""
        self.generator, self.options, self.profile = generator, options or Options(), Profile()
        options = self.options
        # What is taken back may have been made ahead of what is shown.
        undo = options.undo + options.ahead if options.undo else 0
        with self.profile.timed("prefill"):
            self.session = generator.session(
                list(prompts), seed=options.seed, given=given, settings=options.settings, undo=undo, streams=streams
            )
        self._decoder = generator.tokenizer.stream()
        self._made = deque((number, self.session.codes(number)) for number in range(self.session.frame))
        # What the decoder remembered before each of the last frames.
        self._before: deque[Callable[[], tuple]] = deque(maxlen=options.undo)
        self._events: list[tuple[int, Callable[[], None]]] = []
        self.frame = 0  # the number of the next latent frame that is shown

    def __iter__(self) -> Iterator[Shown]:
        return self

    def __next__(self) -> Shown:
        while len(self._made) <= self.options.ahead:
            while self._events and self._events[0][0] <= self.session.frame:
                self._events.pop(0)[1]()
            self._made.append((self.session.frame, self.session.advance()))
        number, codes = self._made.popleft()
        with self.profile.timed("tokens"):
            codes = np.asarray(codes)
        with self.profile.timed("decode"):
            remembered = self._decoder.remembered()
            pixels = np.asarray(to_uint8(self._decoder.decode(codes[:, None])))
        self.shown(number, lambda: remembered)
        self.profile.shown(pixels.shape[0] * pixels.shape[1])
        return Shown(number, pixels, codes)

    def shown(self, number: int, before: Callable[[], tuple]) -> None:
        """Note that a frame was shown; `before` returns what the decoder remembered before it."""
        self._before.append(before)
        self.frame = number + 1

    @property
    def frames_per_second(self) -> float:
        """Latent frames a second at which the videos are shown."""
        return self.generator.config.generate.fps / self.generator.tokenizer.config.temporal_compression

    @property
    def state(self) -> tuple:
        """What the videos go on from: the session's state, and what the decoder remembers. Arrays that nothing changes."""
        return self.session.state, self._decoder.remembered()[0]

    def go_on_from(self, state: tuple) -> None:
        """Go on from another `state`, of the same frame."""
        self.session.state, memory = state
        self._decoder.go_on_from(self.with_memory(memory))

    def with_memory(self, memory) -> tuple:
        """Return what the decoder goes on from with another memory (`VideoStream.go_on_from`)."""
        return (memory, *self._decoder.remembered()[1:])

    def decode_frame(self, params, codes_BTHW: jax.Array, memory) -> tuple[jax.Array, Any]:
        """Decode a latent frame behind the first one; return pixels in [-1, 1] and what is remembered then. To be compiled."""
        return self._decoder.decode_more(params, codes_BTHW, memory)

    # Events ---------------------------------------------------------------------------------------------------------

    def at(self, frame: int, event: Callable[[], None]) -> None:
        """Call `event` before latent frame `frame` is made, or before the next one, where that is made already."""
        self._events.append((frame, event))
        self._events.sort(key=lambda pair: pair[0])

    def switch(self, prompts: Sequence[str], how: str = "recache") -> None:
        """Go on with other prompts, one a video, from the next frame on that is made; see `Session.switch`. Raises UserError."""
        if len(prompts) != len(self.session.text[1]):
            raise UserError(f"{len(prompts)} prompts for {len(self.session.text[1])} videos")
        with self.profile.timed("switch"):
            self.session.switch(*self.generator.encode_prompts(list(prompts)), how)

    def cut(self, frames: int | None = None) -> None:
        """Begin a new scene with the next frame that is made; see `Session.cut`. By default it stands as many latent frames later
        as the cache policy says, or holds. Raises UserError."""
        settings = self.options.settings or self.generator.config.generate
        if frames is None and settings.cache.shot_offset is None:
            frames = settings.cache.num_frames(self.generator.config.sequence.grid[0])
        self.session.cut(frames)

    def rewind(self, frames: int) -> None:
        """Take the last frames that were shown back, and what was made ahead of them. Raises UserError."""
        if not 0 <= frames <= len(self._before):
            raise UserError(f"rewind by {frames} frames; allowed: 0 to {len(self._before)} (undo={self.options.undo})")
        self.session.rewind(self.session.frame - (self.frame - frames))
        self._made.clear()
        for _ in range(frames):
            remembered = self._before.pop()
        if frames:
            self._decoder.go_on_from(remembered())
        self.frame -= frames

    def fork(self, seed: int | None = None) -> Live:
        """Return videos that go on from here by themselves, with other random numbers where a seed is given."""
        rows = len(self.session.text[1])
        other = copy.copy(self)
        other.session = self.session.fork(range(rows), None if seed is None else row_keys(seed, rows))
        other._decoder = self.generator.tokenizer.stream()
        other._decoder.go_on_from(self._decoder.remembered())
        other._made, other._before = deque(self._made), deque(self._before, self._before.maxlen)
        other._events, other.profile = [], Profile()
        return other

    def save(self, path: str | Path) -> None:
        """Write everything that the videos go on from into a folder, which appears when it is complete."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        try:
            self.session.save(partial / "session.npz")
            arrays = {f"memory_{i}": x for i, x in enumerate(self._decoder.to_arrays())}
            arrays |= {f"made_{i}": np.asarray(codes) for i, (_, codes) in enumerate(self._made)}
            np.savez(partial / "decoder.npz", **arrays)
            facts = {"frame": self.frame, "made": len(self._made), "tokenizer": self.generator.config.tokenizer_workdir}
            (partial / "stream.json").write_text(json.dumps(facts))
            if path.exists():
                shutil.rmtree(path)
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def restore(self, path: str | Path) -> None:
        """Go on from what `save` wrote, bit for bit; model, settings and number of videos must be the same. Raises UserError."""
        path = Path(path)
        try:
            facts = json.loads((path / "stream.json").read_text())
            with np.load(path / "decoder.npz") as file:
                arrays = dict(file)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is not a saved stream: {error}") from error
        self.session.restore(path / "session.npz")
        rows = len(self.session.text[1])
        memory = [arrays[f"memory_{i}"] for i in range(sum(name.startswith("memory_") for name in arrays))]
        self._decoder.from_arrays(memory, (rows, 1, *self.generator.config.sequence.grid[1:]), facts["frame"])
        first = facts["frame"]
        self._made = deque((first + i, arrays[f"made_{i}"]) for i in range(facts["made"]))
        self._before.clear()
        self.frame = first
