"""What one moving_shapes clip shows: its objects, their paths, the background and the camera.

Everything is a pure function of (level, clip shape, seed, split, index). The (colour, shape, direction)
combinations are divided among the splits once and for all, whatever the seed: a held-out combination never
occurs in a training clip, neither as the main object nor as another one, while every pair of values does.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from lumos.errors import UserError

# Saturated and about 60 degrees of hue apart, so that a colour survives blur and desaturation.
COLOURS = {
    "red": (228, 32, 40),
    "green": (28, 186, 48),
    "blue": (36, 72, 236),
    "yellow": (242, 216, 24),
    "magenta": (224, 36, 212),
    "cyan": (24, 208, 220),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {  # (x, y), y pointing down as pixel rows do
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-right": (0.5**0.5, -(0.5**0.5)),
    "up-left": (-(0.5**0.5), -(0.5**0.5)),
    "down-right": (0.5**0.5, 0.5**0.5),
    "down-left": (-(0.5**0.5), 0.5**0.5),
}
# Along what an object goes to and fro for ever (level "endless").
ROUTES = {"left and right": (1.0, 0.0), "up and down": (0.0, -1.0)}
MOTIONS = DIRECTIONS | ROUTES  # what captions say of motion
SPLITS = ("train", "validation", "test")
SIZES = {"small": (0.28, 0.33), "medium": (0.35, 0.40), "large": (0.42, 0.50)}  # diameter, in frame sides
SPEEDS = {"slow": (0.018, 0.024), "normal": (0.024, 0.038), "fast": (0.042, 0.055)}  # in frame sides per frame
TEXTURES = ("striped", "dotted", "checkered")
# Aligned levels: positions and speeds come in steps of a cell of 8 pixels (in frames of about 64), one cell in four frames.
# A tokenizer of 4x8x8 compression then sees the same few patterns again and again, and a small model learns shapes and
# motion in minutes.
ALIGNED_DIAMETER = 0.46  # in frame sides


def aligned_cell(side: int) -> int:
    """Return the cell of aligned levels in pixels."""
    return 8 * max(1, round(side / 64))


@dataclasses.dataclass(frozen=True)
class Level:
    """What the scenes of one difficulty may contain."""

    motions: tuple[str, ...]
    num_objects: tuple[int, int]  # least, most
    sizes: tuple[str, ...]
    speeds: tuple[str, ...]
    bounce: float  # probability that an object bounces off the edge, once; on a route it always does
    textured: float  # probability that an object is textured
    num_waves: int  # of the background
    wavelength: tuple[float, float]  # of the background, in frame sides
    contrast: float  # of the background, in 8-bit levels
    camera: float  # its fastest motion, in frame sides per frame
    any_depth: bool  # may another object pass in front of the main one
    aligned: bool  # one size, one speed, and paths on a coarse grid
    num_backgrounds: int  # drawn from that many; 0 = each clip has its own


LEVELS = {
    "easy": Level(
        tuple(DIRECTIONS)[:4], (1, 1), ("large",), ("normal",), 0.0, 0.0, 3, (1.0, 2.5), 14.0, 0.0, False, True, 8
    ),
    "endless": Level(
        tuple(ROUTES), (1, 1), ("large",), ("normal",), 0.0, 0.0, 3, (1.0, 2.5), 14.0, 0.0, False, True, 8
    ),
    "medium": Level(
        tuple(DIRECTIONS), (1, 2), tuple(SIZES), tuple(SPEEDS), 0.3, 0.0, 8, (0.3, 1.0), 14.0, 0.0, False, False, 0
    ),
    "hard": Level(
        tuple(DIRECTIONS), (1, 3), tuple(SIZES), tuple(SPEEDS), 0.3, 0.75, 16, (0.12, 0.6), 28.0, 0.025, True, False, 0
    ),
}


@dataclasses.dataclass(frozen=True)
class Combination:
    colour: str
    shape: str
    direction: str


@dataclasses.dataclass(frozen=True)
class ShapeObject:
    """One object; lengths are pixels."""

    colour: str
    shape: str
    direction: str  # of the first (and longest) part of its path, or its route
    size: str
    speed: str
    texture: str  # "" or one of TEXTURES
    bounces: bool
    radius: float
    centre_F2: np.ndarray  # (x, y) of every frame


@dataclasses.dataclass(frozen=True)
class Background:
    """A muted colour plus a sum of plane waves, seen by a camera that moves at constant velocity."""

    colour_C: np.ndarray  # 8-bit levels
    amplitude_KC: np.ndarray  # of wave K in each colour channel
    frequency_K2: np.ndarray  # radians per pixel along (x, y)
    phase_K: np.ndarray
    camera_2: np.ndarray  # pixels per frame along (x, y)


@dataclasses.dataclass(frozen=True)
class Scene:
    clip_shape: tuple[int, int, int]
    objects: tuple[ShapeObject, ...]  # the main one first
    depth: tuple[int, ...]  # indices into objects in drawing order, farthest first
    background: Background

    @property
    def main(self) -> ShapeObject:
        return self.objects[0]

    @property
    def occlusion(self) -> bool:
        """Whether two objects touch in some frame."""
        return any(_touch_F(a, b).any() for a, b in itertools.combinations(self.objects, 2))


@functools.cache
def combinations(level: str, split: str) -> tuple[Combination, ...]:
    """Return the combinations of a split: 75 % train, about 10 % validation, about 15 % test.

    A combination is held out when its value indices add up to a multiple of 4. Because 4 shapes and 4 (or 8)
    directions are whole periods, each colour-shape pair keeps exactly 3 of 4 directions in train and each
    colour-direction pair 3 of 4 shapes; of two routes each pair keeps one at least. Of the held-out ones 2 in 5 go to validation,
    spread the same way.

    Raises:
      UserError: unknown level or split.
    """
    if level not in LEVELS:
        raise UserError(f"unknown moving_shapes level {level!r}; allowed: {', '.join(LEVELS)}")
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    motions = LEVELS[level].motions
    chosen = []
    for c, s, d in itertools.product(range(len(COLOURS)), range(len(SHAPES)), range(len(motions))):
        if (c + s + d) % 4:
            owner = "train"
        else:
            owner = "validation" if (c + 2 * s + d // 4) % 5 in (0, 2) else "test"
        if owner == split:
            chosen.append(Combination(tuple(COLOURS)[c], SHAPES[s], motions[d]))
    return tuple(chosen)


def sample_scene(level: str, clip_shape: tuple[int, int, int], seed: int, split: str, index: int) -> Scene:
    """Draw scene `index` of a split.

    Every block of consecutive scenes as long as the split has combinations shows each combination once as
    its main object.

    Args:
      level: "easy", "endless", "medium" or "hard".
      clip_shape: (frames, height, width), at least (2, 32, 32).
      seed: any non-negative int; other seeds give other clips of the same combinations.
      split: "train", "validation" or "test".
      index: from 0, no upper limit.

    Raises:
      UserError: unknown level or split, or a clip shape that is too small.
    """
    check_clip_shape(clip_shape)
    choices = combinations(level, split)
    settings = LEVELS[level]
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    block, place = divmod(index, len(choices))
    wanted = [choices[_balanced_order(level, split, seed, block)[place]]]
    for _ in range(rng.integers(settings.num_objects[0], settings.num_objects[1] + 1) - 1):
        free = [c for c in choices if c.colour not in {w.colour for w in wanted}]
        wanted.append(free[rng.integers(len(free))])
    size = settings.sizes[rng.integers(len(settings.sizes))]
    diameter = ALIGNED_DIAMETER if settings.aligned else rng.uniform(*SIZES[size])
    radius = diameter * min(clip_shape[1:]) / 2
    main = _sample_object(rng, settings, clip_shape, wanted[0], size, radius)
    # The others are clearly smaller: the main object is the one that a viewer would name first.
    others = [
        _sample_object(rng, settings, clip_shape, other, "small", radius * rng.uniform(0.5, 0.65))
        for other in wanted[1:]
    ]
    # What would hide the main object for most of the clip stays behind it.
    front = [
        place
        for place, other in enumerate(others, start=1)
        if settings.any_depth and _touch_F(main, other).mean() < 0.4 and rng.random() < 0.5
    ]
    behind = [place for place in range(len(others), 0, -1) if place not in front]
    background = _sample_background(rng, settings, clip_shape)
    return Scene(tuple(clip_shape), (main, *others), (*behind, 0, *front), background)


def check_clip_shape(clip_shape: tuple[int, int, int]) -> None:
    """Raise UserError unless clip_shape is (frames >= 2, height >= 32, width >= 32)."""
    if len(clip_shape) != 3 or clip_shape[0] < 2 or min(clip_shape[1:]) < 32:
        raise UserError(f"moving_shapes clip shape {tuple(clip_shape)}: need (frames >= 2, height >= 32, width >= 32)")


@functools.lru_cache(maxsize=1024)
def _balanced_order(level: str, split: str, seed: int, block: int) -> tuple[int, ...]:
    """Return a random order of the combinations in which any prefix has even counts of every value."""
    choices = combinations(level, split)
    rng = np.random.default_rng([seed, SPLITS.index(split), block, 1])
    values_N3 = np.array(
        [(list(COLOURS).index(c.colour), SHAPES.index(c.shape), list(MOTIONS).index(c.direction)) for c in choices]
    )
    counts_3V = np.zeros((3, len(MOTIONS)))
    left = rng.permutation(len(choices)).tolist()
    order = []
    while left:
        best = int(np.argmin(counts_3V[np.arange(3), values_N3[left]].sum(axis=1)))
        order.append(left.pop(best))
        counts_3V[np.arange(3), values_N3[order[-1]]] += 1
    return tuple(order)


def _sample_object(
    rng: np.random.Generator,
    level: Level,
    clip_shape: tuple[int, int, int],
    combination: Combination,
    size: str,
    radius: float,
) -> ShapeObject:
    """Draw the path, speed and texture of an object; it stays in the frame but for the tip of a corner."""
    frames, height, width = clip_shape
    # A bounce needs a few frames on either side of it.
    bounces = bool(rng.random() < level.bounce and frames >= 8)
    texture = TEXTURES[rng.integers(len(TEXTURES))] if rng.random() < level.textured else ""
    direction_2 = np.array(MOTIONS[combination.direction])
    moving = np.flatnonzero(direction_2)
    bounce_axis = rng.choice(moving) if bounces else None
    last = frames - 1
    # Late enough that the direction in the caption is that of most of the clip.
    bounce_time = rng.uniform(0.72, 0.86) * last

    side = min(height, width)
    cell = aligned_cell(side)
    low = np.ceil(2 * radius / cell) * cell / 2 if level.aligned else 1.1 * radius
    high_2 = np.array([width, height]) - low
    on_route = combination.direction in ROUTES
    limit = min((high_2[a] - low) / (abs(direction_2[a]) * (bounce_time if a == bounce_axis else last)) for a in moving)
    speed_name = level.speeds[rng.integers(len(level.speeds))]
    speed = cell / 4 if level.aligned else rng.uniform(*SPEEDS[speed_name]) * side
    if speed > limit and not on_route:  # long clips: slow down rather than leave the frame
        speed_name, speed = "normal", limit

    time_F = np.arange(frames)
    centre_F2 = np.empty((frames, 2))
    for a in (0, 1):
        velocity = speed * direction_2[a]
        if a == bounce_axis:
            wall = high_2[a] if velocity > 0 else low
            centre_F2[:, a] = wall - velocity * np.abs(time_F - bounce_time)
        elif on_route and velocity:
            span = np.floor((high_2[a] - low) / cell + 1e-6) * cell
            start = rng.integers(round(2 * span / cell)) * cell if span else 0  # along the way there and back
            centre_F2[:, a] = low + triangle(start + speed * time_F, span)
        else:
            travel = velocity * last
            free = high_2[a] - low - abs(travel)
            if level.aligned:
                offset = rng.integers(int(free / cell + 1e-6) + 1) * cell
            else:
                offset = rng.random() * free
            start = low - min(travel, 0.0) + offset
            centre_F2[:, a] = start + velocity * time_F
    look = {"size": size, "speed": speed_name, "texture": texture, "bounces": bounces or on_route, "radius": radius}
    return ShapeObject(**dataclasses.asdict(combination), **look, centre_F2=centre_F2)


def triangle(way: np.ndarray, span: float) -> np.ndarray:
    """Return where an object is that has gone some way to and fro between 0 and `span`."""
    return span - np.abs(way % (2 * span) - span) if span else 0 * way


def _sample_background(rng: np.random.Generator, level: Level, clip_shape: tuple[int, int, int]) -> Background:
    side = min(clip_shape[1:])
    if level.num_backgrounds:
        rng = np.random.default_rng(rng.integers(level.num_backgrounds))
    brightness = rng.uniform(45, 85) if rng.random() < 0.5 else rng.uniform(150, 195)
    angle_K = rng.uniform(0, 2 * np.pi, level.num_waves)
    wavelength_K = side * np.exp(rng.uniform(*np.log(level.wavelength), level.num_waves))
    heading = rng.uniform(0, 2 * np.pi)
    # Waves differ mostly in brightness; what little colour there is stays far below that of an object.
    amplitude_KC = level.contrast * (2 / level.num_waves) ** 0.5 * (1 + rng.uniform(-0.2, 0.2, (level.num_waves, 3)))
    return Background(
        colour_C=brightness + rng.uniform(-10, 10, 3),
        amplitude_KC=amplitude_KC,
        frequency_K2=2 * np.pi / wavelength_K[:, None] * np.stack([np.cos(angle_K), np.sin(angle_K)], axis=1),
        phase_K=rng.uniform(0, 2 * np.pi, level.num_waves),
        camera_2=level.camera * side * rng.random() * np.array([np.cos(heading), np.sin(heading)]),
    )


def _touch_F(a: ShapeObject, b: ShapeObject) -> np.ndarray:
    return np.linalg.norm(a.centre_F2 - b.centre_F2, axis=1) < a.radius + b.radius
