"""Worlds of codes: a block of 2 x 2 cells moves over a background, and every cell is one code.

This is an exact palette codec: a clip has no pixels but its cells, so no tokenizer blurs what is measured. Codes 0 .. textures - 1 are
those of the background, four more for each colour of a block, one for each of its cells. Other worlds write the same clips in other ways
(`tokens_of`, `cells_of`): with a tokenizer that they train, as files of a codec.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lumos.data.records import RecordWriter

COLOURS = ("red", "green", "blue", "yellow")
HEADINGS = {"down": (1, 0), "up": (-1, 0), "right": (0, 1), "left": (0, -1)}
_SPLITS = {"train": 1, "validation": 2, "test": 3}
_STRIPES = ((0, 1), (1, 0), (1, 1), (1, -1))  # a and b of code = a y + b x + c, modulo the textures
BLOCK = 2  # rows and columns of a block


class Clips(NamedTuple):
    """codes: int32 [N, T, H, W]. captions: N texts. background: int32 [N, T, H, W]. corner: int32 [N, T, 2], of the block. colour: [N].
    step: [N, 2], how the block moves at first."""

    codes: np.ndarray
    captions: list[str]
    background: np.ndarray
    corner: np.ndarray
    colour: np.ndarray
    step: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """What clips show.

    background: "noise" (every cell any code, for good), "stripes" (rows, columns or diagonals of codes that follow each other, so a
    few cells tell all others), or "plain". motion: "straight" (one cell a frame along one of four headings, back from the walls), "diagonal", or "turning"
    (a heading of its own for every step).
    """

    frames: int = 5
    side: int = 5
    textures: int = 4
    background: str = "stripes"
    motion: str = "straight"
    pan: bool = False  # the background moves one column to the left in every frame
    captions: str = "full"  # "full" (colour and heading) | "colour" | "none"
    classes: bool = False  # colour and heading decide the direction of the stripes
    exemplar: str = ""  # what stands before the frames: "class" (a frame of another clip of the class), "random" (any codes), "" (nothing)
    num_train: int = 4096
    num_test: int = 128

    def __post_init__(self):
        for name, value, allowed in (
            ("background", self.background, ("noise", "stripes", "plain")),
            ("motion", self.motion, ("straight", "diagonal", "turning")),
            ("captions", self.captions, ("full", "colour", "none")),
            ("exemplar", self.exemplar, ("", "class", "random")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}; allowed: {', '.join(allowed)}")

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.frames + bool(self.exemplar), self.side, self.side

    @property
    def num_codes(self) -> int:
        return self.textures + len(COLOURS) * BLOCK**2

    @property
    def fps(self) -> float:
        return 8.0

    def for_run(self, seed: int, smoke: bool) -> World:
        """Return the world of one run: with few clips in miniature, and with what depends on the seed."""
        return dataclasses.replace(self, num_train=32, num_test=4) if smoke else self

    def prepare(self, folder: Path) -> None:
        """Write what `tokens_of` and `cells_of` need into the token folder, before its tokens are written."""

    def tokens_of(self, codes: np.ndarray, folder: Path) -> np.ndarray:
        """Return clips of cells [N, T, H, W] as what a model learns, int32 [N, *grid]; `folder`: as `write` has written it."""
        return codes

    def cells_of(self, tokens: np.ndarray, folder: Path) -> np.ndarray:
        """Return the cells [N, T, H, W] that tokens [N, *grid] show; -1 = none."""
        return tokens

    def clips(self, split: str, num: int, frames: int = 0) -> Clips:
        """Draw the first `num` clips of a split, of `frames` latent frames (0 = as trained)."""
        rng = np.random.default_rng([_SPLITS[split], 20])
        clips = Clips(*map(_stacked, zip(*(self._clip(rng, frames or self.frames) for _ in range(num)))))
        if not self.exemplar:
            return clips
        first = rng.integers(0, self.num_codes, clips.codes[:, :1].shape)
        if self.exemplar == "class":
            first = np.stack(
                [self._clip(rng, 1, int(colour), step.tolist())[0] for colour, step in zip(clips.colour, clips.step)]
            )
        double = lambda x, before: np.concatenate([before, x], axis=1).astype(np.int32)
        return clips._replace(
            codes=double(clips.codes, first),
            background=double(clips.background, clips.background[:, :1]),
            corner=double(clips.corner, clips.corner[:, :1]),
        )

    def _clip(self, rng, num_frames, colour=None, step=None):
        drawn, heading = int(rng.integers(len(COLOURS))), str(rng.choice(list(HEADINGS)))
        if step is not None:
            drawn, heading = colour, next(name for name, of in HEADINGS.items() if of == tuple(step))
        colour = drawn
        background = self._background(rng, num_frames, colour, heading)
        step = rng.choice([-1, 1], 2) if self.motion == "diagonal" else np.array(HEADINGS[heading])
        corner, codes, corners, first = rng.integers(0, self.side - BLOCK + 1, 2), [], [], step
        shape = (BLOCK, BLOCK)
        for t in range(num_frames):
            frame = background[t].copy()
            frame[corner[0] : corner[0] + BLOCK, corner[1] : corner[1] + BLOCK] = self.block(colour).reshape(shape)
            codes.append(frame)
            corners.append(corner)
            if self.motion == "turning":
                step = np.array(HEADINGS[str(rng.choice(list(HEADINGS)))])
            corner, step = self.move(corner, step)
        caption = {
            "full": f"a {COLOURS[colour]} block moves {heading}",
            "colour": f"a {COLOURS[colour]} block",
            "none": "a block",
        }
        return np.stack(codes).astype(np.int32), caption[self.captions], background, np.stack(corners), colour, first

    def _background(self, rng, num_frames, colour, heading):
        rows, columns = np.indices((self.side, self.side))
        pan = np.arange(num_frames)[:, None, None] * self.pan
        if self.background == "noise":
            wide = rng.integers(0, self.textures, (self.side, self.side + num_frames * self.pan))
            found = np.stack([wide[:, t * self.pan : t * self.pan + self.side] for t in range(num_frames)])
        elif self.background == "stripes":
            which, c = rng.integers(len(_STRIPES)), rng.integers(self.textures)
            if self.classes:
                which = (colour + list(HEADINGS).index(heading)) % len(_STRIPES)
            a, b = _STRIPES[which]
            found = (a * rows + b * (columns + pan) + c) % self.textures
        else:
            found = np.full((num_frames, self.side, self.side), rng.integers(self.textures))
        return np.broadcast_to(found, (num_frames, self.side, self.side)).astype(np.int32)

    def block(self, colour: int) -> np.ndarray:
        """Return the four codes of a block of this colour."""
        return self.textures + BLOCK**2 * colour + np.arange(BLOCK**2)

    def move(self, corner: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return corner and step one frame later: a block that would leave the frame turns back."""
        outside = (corner + step < 0) | (corner + step > self.side - BLOCK)
        step = np.where(outside, -step, step)
        return corner + step, step

    def path(self, corner: np.ndarray, step: np.ndarray, num_frames: int) -> np.ndarray:
        """Return where blocks go that begin at a corner [N, 2] with a step [N, 2], int [N, T, 2]."""
        places = [corner]
        for _ in range(num_frames - 1):
            corner, step = self.move(corner, step)
            places.append(corner)
        return np.stack(places, axis=1)

    def in_stripes(self, codes: np.ndarray) -> np.ndarray:
        """Return for each frame [N, T, H, W] the share of its background cells that fit the stripes that fit it best, float [N, T]."""
        rows, columns = np.indices((self.side, self.side))
        patterns = np.stack(
            [(a * rows + b * columns + c) % self.textures for a, b in _STRIPES for c in range(self.textures)]
        )
        shares = np.zeros(codes.shape[:2])
        for n, t in np.ndindex(codes.shape[:2]):
            is_background = codes[n, t] < self.textures
            fits = ((patterns == codes[n, t]) & is_background).sum((1, 2)).max()
            shares[n, t] = fits / max(is_background.sum(), 1)
        return shares

    def find(self, codes: np.ndarray, colour: np.ndarray) -> np.ndarray:
        """Return where each frame [N, T, H, W] shows one whole block of its clip's colour, int32 [N, T, 2]; -1 = it does not."""
        found = np.full((*codes.shape[:2], 2), -1)
        for n, t in np.ndindex(codes.shape[:2]):
            frame, block = codes[n, t], self.block(int(colour[n]))
            corner = np.argwhere(frame == block[0])
            if len(corner) == 1 and (frame >= self.textures).sum() == len(block):
                y, x = corner[0]
                if frame[y : y + BLOCK, x : x + BLOCK].reshape(-1).tolist() == block.tolist():
                    found[n, t] = y, x
        return found

    def write(self, folder: Path) -> Path:
        """Write a token folder of the world, unless it is there; return it. Several processes may do so at once."""
        if (folder / "manifest.json").exists():
            return folder
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        self.prepare(partial)
        for split, num in (("train", self.num_train), ("validation", self.num_test)):
            clips = self.clips(split, num)
            tokens = self.tokens_of(clips.codes, partial)
            with RecordWriter(partial / f"{split}-00000-of-00001.array_record") as writer:
                for i, (codes, caption) in enumerate(zip(tokens, clips.captions)):
                    writer.write({"tokens": codes.astype(np.uint32), "caption": caption, "id": f"{split}/{i}"})
        facts = {"grid": self.grid, "codebook_size": self.num_codes, "tokenizer": {"fingerprint": "codes of a world"}}
        (partial / "manifest.json").write_text(json.dumps(facts))
        try:
            os.rename(partial, folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
        return folder

    def picture(self, codes: np.ndarray) -> np.ndarray:
        """Return the colours of codes, uint8 [..., 3]."""
        palette = self.palette
        return palette[np.clip(codes, 0, len(palette) - 1)]

    @property
    def palette(self) -> np.ndarray:
        """The colours of all codes, uint8 [codes, 3]: grey for the background, the block's colour in four shades."""
        grey = np.linspace(50, 200, self.textures)[:, None].repeat(3, 1)
        pure = np.array([(230, 60, 60), (60, 190, 80), (70, 110, 240), (235, 205, 60)])
        shades = np.array([1.0, 0.88, 0.76, 0.64])
        return np.concatenate([grey, (pure[:, None] * shades[:, None]).reshape(-1, 3)]).astype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelWorld(World):
    """A world whose cells are squares of pixels; a cell is read back as the code whose colour is nearest to the mean of its square."""

    pixels: int = 8  # rows and columns of a cell

    def video(self, codes: np.ndarray) -> np.ndarray:
        """Return cells [..., H, W] as pixels, uint8 [..., Y, X, 3]."""
        return self.picture(codes).repeat(self.pixels, axis=-3).repeat(self.pixels, axis=-2)

    def read(self, video: np.ndarray) -> np.ndarray:
        """Return the cells int32 [..., H, W] that pixels [..., Y, X, 3] show."""
        squares = video.reshape(*video.shape[:-3], self.side, self.pixels, self.side, self.pixels, 3)
        distance = np.square(squares.mean((-4, -2))[..., None, :] - self.palette.astype(float)).sum(-1)
        return distance.argmin(-1).astype(np.int32)


def _stacked(values):
    return list(values) if isinstance(values[0], str) else np.stack(values)
