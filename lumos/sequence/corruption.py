"""Slot 4, corruption: which tokens are hidden or replaced in training, and how much of each frame.

A corruption is a level (how much) x frames (how the levels of a clip's frames hang together) x cells (which cells of a
frame) x kernel (what stands in their place), around frames that are given whole (`sequence.given`). AR-DF (Lumos-1 section 3.3) is cosine
levels with a floor, shared by all frames, in temporal tubes, replaced by [MASK].

The leak rule. A model that predicts in place and sees earlier frames can copy a masked token from the same cell of an
earlier frame wherever that cell is visible. With levels max(cos(pi u / 2), 0.7) and masks drawn over the whole clip
("clip"), a masked token of the frame after f earlier ones has a visible twin with probability .18 (f = 1), .32, .42,
.49, .55, .59, .68 (f = 9); with frames that draw levels and cells for themselves ("independent", "frame") .20, .36, .49,
.59, .67, .74, .87; in tubes 0. So losses of different masks cannot be compared: compare models under one evaluation
mask. Two copies of the sequence (`sequence.copies`) see all clean history by construction, and nothing of their targets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.sequence.errors import Errors, NoErrors
from lumos.sequence.given import Given, NoneGiven
from lumos.sequence.vocabulary import Vocabulary
from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.sequence.layout import Layout


def check_share(**values: float) -> None:
    """Raise ValueError for a setting outside [0, 1]."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}={value} must lie in [0, 1]")


class Level(Slot):
    """How much of a frame is corrupted: maps uniform numbers in [0, 1) to ratios in [0, 1]."""

    def __call__(self, u: jax.Array) -> jax.Array:
        raise NotImplementedError

    def of(self, num_cells: int) -> Callable[[jax.Array], jax.Array]:
        """Return the level where so many cells are chosen from at once."""
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Level, name="cosine"):
    """max(cos(pi u / 2), floor): Lumos-1, and MaskGIT with floor 0."""

    floor: float = 0.7  # least ratio

    def __post_init__(self):
        check_share(floor=self.floor)

    def __call__(self, u):
        return jnp.maximum(jnp.cos(jnp.pi * u / 2), self.floor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(Level, name="uniform"):
    """floor + (1 - floor) u: diffusion forcing."""

    floor: float = 0.0  # least ratio

    def __post_init__(self):
        check_share(floor=self.floor)

    def __call__(self, u):
        return self.floor + (1 - self.floor) * u


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts(Level, name="counts"):
    """1, 2, ... or all cells, each number as likely: uniform levels with which the likelihood bound is exact (`Bound`)."""

    def __call__(self, u):
        return u

    def of(self, num_cells):
        return lambda u: jnp.minimum(jnp.floor(u * num_cells) + 1, num_cells) / num_cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normal(Level, name="normal"):
    """A normal number with mean 1, cut to [floor, 1]: NOVA."""

    floor: float = 0.7  # least ratio
    deviation: float = 0.25  # before it is cut

    def __post_init__(self):
        check_share(floor=self.floor)
        if self.deviation <= 0:
            raise ValueError(f"deviation={self.deviation} must be positive")

    def __call__(self, u):
        low = jax.scipy.special.ndtr((self.floor - 1) / self.deviation)
        return 1 + self.deviation * jax.scipy.special.ndtri(low + (0.5 - low) * u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Level, name="constant"):
    """Always the same ratio: 1 hides everything, 0 nothing (next-token training)."""

    ratio: float = 1.0  # share of a frame that is hidden

    def __post_init__(self):
        check_share(ratio=self.ratio)

    def __call__(self, u):
        return jnp.full_like(u, self.ratio)


class Frames(Slot):
    """How the levels of a clip's frames hang together: (key, batch, frames, level) -> ratios [B, frames or 1]."""

    def __call__(self, key: jax.Array, batch: int, num_frames: int, level: Callable) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared(Frames, name="shared"):
    """One level for the whole clip."""

    def __call__(self, key, batch, num_frames, level):
        return level(jax.random.uniform(key, (batch, 1)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Independent(Frames, name="independent"):
    """A level of its own for every frame (diffusion forcing); a share of the frames stays clean (FAR)."""

    clean: float = 0.0  # probability that a frame is left clean

    def __post_init__(self):
        check_share(clean=self.clean)

    def __call__(self, key, batch, num_frames, level):
        ratio_BT = level(jax.random.uniform(key, (batch, num_frames)))
        if not self.clean:
            return ratio_BT
        stays = jax.random.uniform(jax.random.fold_in(key, 1), (batch, num_frames)) < self.clean
        return jnp.where(stays, 0.0, ratio_BT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonDecreasing(Frames, name="non_decreasing"):
    """Levels that never fall from frame to frame: FoPP of AR-Diffusion (arXiv 2503.07418 section 3.2).

    A frame and its level are drawn uniformly; the others follow as those of a uniformly drawn non-decreasing sequence
    through it. Level i of n has ratio level((i + 1) / n), in increasing order.
    """

    num_levels: int = 50  # n

    def __post_init__(self):
        if self.num_levels < 1:
            raise ValueError(f"num_levels={self.num_levels} must be at least 1")

    def __call__(self, key, batch, num_frames, level):
        u_S = (jnp.arange(self.num_levels) + 1.0) / self.num_levels
        return jnp.sort(level(u_S))[self.steps(key, batch, num_frames)]

    def steps(self, key: jax.Array, batch: int, num_frames: int) -> jax.Array:
        """Draw the level index of every frame, int32 [B, T]."""
        num = self.num_levels
        anchor_key, level_key, up_key, down_key = jax.random.split(key, 4)
        anchor_B = jax.random.randint(anchor_key, (batch,), 0, num_frames)
        start_B = jax.random.randint(level_key, (batch,), 0, num)
        # log_count[r, i]: how many non-decreasing sequences of r levels lie in [i, num): (num - i + r - 1 choose r).
        r, i = np.arange(num_frames)[:, None], np.arange(num)[None]
        lgamma = np.vectorize(math.lgamma)
        log_count = jnp.asarray(lgamma(num - i + r) - lgamma(r + 1.0) - lgamma(num - i), jnp.float32)
        # Going down mirrors going up: level i becomes num - 1 - i, and frames count from the end.
        up_BT = self._walk(up_key, start_B, num_frames - 1 - anchor_B, num_frames, log_count)
        down_BT = num - 1 - self._walk(down_key, num - 1 - start_B, anchor_B, num_frames, log_count)
        offset_BT = jnp.arange(num_frames)[None] - anchor_B[:, None]
        pick = lambda walk_BT, index: jnp.take_along_axis(walk_BT, jnp.clip(index, 0, num_frames - 1), axis=1)
        return jnp.where(offset_BT >= 0, pick(up_BT, offset_BT), pick(down_BT, -offset_BT)).astype(jnp.int32)

    def _walk(self, key, start_B, length_B, num_frames, log_count):
        """Return the start and the levels of the `length_B` frames behind it, never falling, [B, T]."""
        index_S = jnp.arange(self.num_levels)

        def step(level_B, slices):
            n, key = slices
            after_B = jnp.maximum(length_B - n - 1, 0)  # frames that are still to come behind this one
            logits_BS = jnp.where(index_S >= level_B[:, None], log_count[after_B], -jnp.inf)
            level_B = jax.random.categorical(key, logits_BS)
            return level_B, level_B

        slices = jnp.arange(num_frames - 1), jax.random.split(key, max(num_frames - 1, 1))[: num_frames - 1]
        _, levels_TB = jax.lax.scan(step, start_B, slices)
        return jnp.concatenate([start_B[None], levels_TB]).T


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp(Frames, name="ramp"):
    """Rises linearly from a drawn level at the first frame to 1 at the last (the released code's "tubeDecay")."""

    def __call__(self, key, batch, num_frames, level):
        first_B1 = level(jax.random.uniform(key, (batch, 1)))
        return first_B1 + (1 - first_B1) * jnp.linspace(0.0, 1.0, num_frames)[None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanPrefix(Frames, name="clean_prefix"):
    """A clean prefix of random length, then a ramp from a drawn level to 1 (1X world model), or the drawn level (ViD-GPT)."""

    least: int = 1  # frames of the shortest prefix
    rising: bool = True  # False: all frames behind the prefix have the drawn level

    def __post_init__(self):
        if self.least < 0:
            raise ValueError(f"least={self.least} must be at least 0")

    def __call__(self, key, batch, num_frames, level):
        level_key, length_key = jax.random.split(key)
        first_B1 = level(jax.random.uniform(level_key, (batch, 1)))
        least = min(self.least, num_frames - 1)  # of an image, nothing is clean
        prefix_B1 = jax.random.randint(length_key, (batch, 1), least, num_frames)
        frame_T = jnp.arange(num_frames)[None]
        ramp = (frame_T - prefix_B1) / jnp.maximum(num_frames - 1 - prefix_B1, 1) if self.rising else 0.0
        return jnp.where(frame_T < prefix_B1, 0.0, first_B1 + (1 - first_B1) * ramp)


class Cells(Slot):
    """Which cells of each frame: (key, ratios [B, frames or 1], frames, cells) -> mask bool [B, T, cells]."""

    def __call__(self, key: jax.Array, ratio_BT: jax.Array, num_frames: int, num_cells: int) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tube(Cells, name="tube"):
    """One permutation of the cells for all frames: with equal ratios the same set in each (Lumos-1)."""

    def __call__(self, key, ratio_BT, num_frames, num_cells):
        u = jax.random.uniform(key, (ratio_BT.shape[0], 1, num_cells))
        return choose(jnp.broadcast_to(u, (*ratio_BT.shape, num_cells)), ratio_BT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerFrame(Cells, name="frame"):
    """A permutation of its own for every frame."""

    def __call__(self, key, ratio_BT, num_frames, num_cells):
        return choose(jax.random.uniform(key, (ratio_BT.shape[0], num_frames, num_cells)), ratio_BT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Cells, name="clip"):
    """One permutation over all cells of the clip (MaskGIT, MAGVIT); needs one level for the clip."""

    def __call__(self, key, ratio_BT, num_frames, num_cells):
        u = jax.random.uniform(key, (ratio_BT.shape[0], num_frames * num_cells))
        return choose(u, ratio_BT[:, 0]).reshape(-1, num_frames, num_cells)


def choose(u: jax.Array, ratio: jax.Array) -> jax.Array:
    """Mask exactly max(1, round(n * ratio)) of the n cells on the last axis by the permutation argsort(u); none at ratio 0."""
    num_cells = u.shape[-1]
    count = jnp.where(ratio > 0, jnp.maximum(1, jnp.round(num_cells * ratio)), 0).astype(jnp.int32)
    return jnp.argsort(u, axis=-1) < count[..., None]


class Context(NamedTuple):
    """What else a kernel may read: the layout; the level of each token's frame, float32 [B, L], 0 outside of the video; and,
    called, the embeddings of all token ids [V, D]."""

    layout: Layout
    level_BL: jax.Array
    embeddings: Callable[[], jax.Array]


class Kernel(Slot):
    """What stands in the place of chosen tokens: (key, ids [B, L], chosen bool [B, L], vocabulary, context) -> ids [B, L]."""

    def __call__(
        self, key: jax.Array, ids_BL: jax.Array, chosen_BL: jax.Array, ids: Vocabulary, context: Context | None = None
    ) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(Kernel, name="mask"):
    """[MASK]: absorbing diffusion."""

    def __call__(self, key, ids_BL, chosen_BL, ids, context=None):
        return jnp.where(chosen_BL, ids.mask, ids_BL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replace(Kernel, name="replace"):
    """A uniformly drawn code: uniform diffusion (URSA), token dropout (DrivingWorld)."""

    def __call__(self, key, ids_BL, chosen_BL, ids, context=None):
        drawn_BL = jax.random.randint(key, ids_BL.shape, ids.visual_start, ids.visual_end)
        return jnp.where(chosen_BL, drawn_BL, ids_BL)


class Corrupted(NamedTuple):
    """What a corruption draws for a batch: mask bool [B, T, cells], ratio float32 [B, T] of each frame, and bool [B, T]
    which frames have a loss (those of a dropped or given segment have none)."""

    mask_BTC: jax.Array
    ratio_BT: jax.Array
    predicted_BT: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """What is hidden in training (lumos/sequence/corruption.py). Defaults are AR-DF, Lumos-1 section 3.3."""

    level: Level = Cosine()  # how much of a frame
    frames: Frames = Shared()  # how the levels of a clip's frames hang together
    cells: Cells = Tube()  # which cells of a frame
    kernel: Kernel = Mask()  # what stands in their place
    errors: Errors = NoErrors()  # what stands in the place of visible ones
    text_drop: float = 0.1  # probability that a sequence loses its text (classifier-free guidance)
    stream_drop: float = 0.0  # probability that a sequence loses its streams beside the video (guidance on actions)
    given: Given = NoneGiven()  # which frames are context, clean and without a loss

    def __post_init__(self):
        check_share(text_drop=self.text_drop, stream_drop=self.stream_drop)
        if isinstance(self.cells, Clip) and not isinstance(self.frames, Shared):
            raise ValueError(
                f"cells='clip' draws from all frames at once, but frames={self.frames.name!r} gives each its own ratio: choose "
                "frames='shared', or cells='tube' or 'frame'"
            )

    def draw(self, key: jax.Array, batch: int, num_frames: int, num_cells: int) -> Corrupted:
        """Draw what is hidden in a batch of clips of `num_frames` frames with `num_cells` cells each."""
        level_key, cell_key = jax.random.split(key)
        at_once = num_cells * (num_frames if isinstance(self.cells, Clip) else 1)
        ratio_BT = self.frames(level_key, batch, num_frames, self.level.of(at_once))
        mask_BTC = self.cells(cell_key, ratio_BT, num_frames, num_cells)
        shape = (batch, num_frames, num_cells)
        mask_BTC, ratio_BT = jnp.broadcast_to(mask_BTC, shape), jnp.broadcast_to(ratio_BT, shape[:2])
        if self.given.name == "none" or num_frames == 1:  # an image has no context
            return Corrupted(mask_BTC, ratio_BT, jnp.ones(shape[:2], bool))
        self.given.check(num_frames)
        given_BT, hidden_BT = self.given(jax.random.fold_in(key, 2), batch, num_frames)
        predicted_BT = ~(given_BT | hidden_BT)
        mask_BTC = jnp.where(predicted_BT[..., None], mask_BTC, hidden_BT[..., None])
        return Corrupted(mask_BTC, jnp.where(predicted_BT, ratio_BT, hidden_BT.astype(jnp.float32)), predicted_BT)

    def drop_text(self, key: jax.Array, batch: int) -> jax.Array:
        """Choose the rows that lose their text (classifier-free guidance): bool [B]."""
        return jax.random.uniform(key, (batch,)) < self.text_drop

    def drop_streams(self, key: jax.Array, batch: int) -> jax.Array:
        """Choose the rows that lose their streams beside the video: bool [B]."""
        return jax.random.uniform(key, (batch,)) < self.stream_drop
