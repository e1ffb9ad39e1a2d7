"""Read colour, shape and direction of the main object back from pixels, to score generated moving_shapes videos.

Meant for blurry, noisy model output: the object is segmented at half of its own colour strength, its outline is
averaged over frames before it is compared with rendered templates, and its velocity is a median over pairs of
frames. A video without such an object, outline or path reads "none", which no prompt asks for.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np
from scipy import ndimage

from lumos.data import shapes_motion
from lumos.data.shapes_render import coverage_FYX
from lumos.data.shapes_scene import COLOURS, DIRECTIONS, ROUTES, SHAPES

NONE = "none"

_MIN_STRENGTH = 0.3  # colour strength of an object, palette = 1; backgrounds stay below 0.2
_MIN_AREA, _MAX_AREA = 0.012, 0.6  # of the frame
_MIN_PRESENCE = 0.6  # share of frames that show the object
_MIN_TRAVEL = 0.05  # way covered over the clip, in frame sides
_MAX_STRAY = 0.18  # median distance from a straight uniform path, relative to the way covered
_LEAST_LEGAL = 0.8  # share of the steps of an object on a route that go on as those before them
_GRID = 24  # cells along one side of a normalised outline
_EXTENT = 2.2  # half side of that grid, in square roots of area over pi (1 = a disc's radius)
_MIN_LIKENESS = 0.8  # correlation of an outline with the best template


class Wanted(Protocol):
    """What a video is scored against; shapes_caption.Prompt is one."""

    colour: str
    shape: str
    direction: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a video shows; "none" where nothing (or nothing clear) is there."""

    colour: str
    shape: str
    direction: str
    speed: float  # frame sides per frame; 0 without direction
    centre_F2: np.ndarray  # (x, y) of the object in pixels, nan in frames without it


def score(video_FYXC: np.ndarray, prompt: Wanted) -> dict[str, bool]:
    """Return whether colour, shape and direction of the video's main object are those of the prompt.

    The direction of an object on a route is right if nearly all of its steps are (`shapes_motion.legal_steps`).
    """
    reading = read(video_FYXC)
    right = {name: getattr(reading, name) == getattr(prompt, name) for name in ("colour", "shape", "direction")}
    if prompt.direction in ROUTES:
        legal = shapes_motion.legal_steps(reading.centre_F2, video_FYXC.shape[1:3], prompt.direction, prompt.shape)
        right["direction"] = bool(legal.mean() >= _LEAST_LEGAL) if len(legal) else False
    return right


def read(video_FYXC: np.ndarray) -> Reading:
    """Read the largest coloured object of a video.

    Args:
      video_FYXC: uint8 [F, Y, X, 3], at least 2 frames.

    Raises:
      ValueError: other dtype or shape.
    """
    if video_FYXC.dtype != np.uint8 or video_FYXC.ndim != 4 or video_FYXC.shape[-1] != 3 or len(video_FYXC) < 2:
        raise ValueError(f"expected uint8 [F >= 2, Y, X, 3], got {video_FYXC.dtype} {video_FYXC.shape}")
    frames, height, width, _ = video_FYXC.shape
    side = min(height, width)
    found = _segment(video_FYXC)
    if found is None:
        return Reading(NONE, NONE, NONE, 0.0, np.full((frames, 2), np.nan))
    colour, weight_FYX = found
    area_F = weight_FYX.sum(axis=(1, 2))
    area_F[area_F < _MIN_AREA * height * width] = np.nan
    x_F = (weight_FYX.sum(axis=1) @ (np.arange(width) + 0.5)) / area_F
    y_F = (weight_FYX.sum(axis=2) @ (np.arange(height) + 0.5)) / area_F
    centre_F2 = np.stack([x_F, y_F], axis=1)
    direction, speed = _read_direction(centre_F2 / side)
    return Reading(colour, _read_shape(weight_FYX, area_F, centre_F2), direction, speed, centre_F2)


def _segment(video_FYXC: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Return colour and soft mask [F, Y, X] of the largest blob of palette colour, or None."""
    frames, height, width, _ = video_FYXC.shape
    sigma = min(height, width) / 64
    smooth_FYXC = ndimage.gaussian_filter(video_FYXC.astype(np.float32), (0, sigma, sigma, 0))
    hue_KC = _chroma(np.array(list(COLOURS.values()), np.float32))
    length_K = np.linalg.norm(hue_KC, axis=1)
    # Strength in colour k: 1 for the palette colour itself, whatever was added to its brightness.
    along_FYXK = _chroma(smooth_FYXC) @ (hue_KC / length_K[:, None]).T
    nearest_FYX = along_FYXK.argmax(axis=-1)
    best = None
    for k, colour in enumerate(COLOURS):
        strength_FYX = np.where(nearest_FYX == k, along_FYXK[..., k] / length_K[k], 0)
        # The smallest main object covers about 4 % of the frame, so this is its inside.
        level = np.quantile(strength_FYX, 0.985)
        if level < _MIN_STRENGTH:
            continue
        soft_FYX = np.clip(strength_FYX / level, 0, 1)
        blob_FYX = _largest_blob(soft_FYX > 0.5)
        area_F = blob_FYX.sum(axis=(1, 2))
        share_F = area_F / (height * width)
        if np.mean((share_F >= _MIN_AREA) & (share_F <= _MAX_AREA)) < _MIN_PRESENCE:
            continue
        if best is None or area_F.mean() > best[0]:
            # A steep ramp around half strength keeps subpixel edges and drops the halo.
            near_FYX = ndimage.binary_dilation(blob_FYX, np.ones((1, 3, 3)))
            best = area_F.mean(), colour, np.clip(2 * soft_FYX - 0.5, 0, 1) * near_FYX
    return None if best is None else best[1:]


def _chroma(rgb_C: np.ndarray) -> np.ndarray:
    return rgb_C - rgb_C.mean(axis=-1, keepdims=True)


def _largest_blob(mask_FYX: np.ndarray) -> np.ndarray:
    """Keep the largest 4-connected component of every frame."""
    within_frame = np.zeros((3, 3, 3), bool)
    within_frame[1] = ndimage.generate_binary_structure(2, 1)
    label_FYX, _ = ndimage.label(mask_FYX, within_frame)
    keep_FYX = np.zeros_like(mask_FYX)
    for frame, label_YX in enumerate(label_FYX):
        sizes = np.bincount(label_YX.ravel())
        sizes[0] = 0
        if sizes.any():
            keep_FYX[frame] = label_YX == sizes.argmax()
    return keep_FYX


def _read_shape(weight_FYX: np.ndarray, area_F: np.ndarray, centre_F2: np.ndarray) -> str:
    """Name the template that correlates best with the mean outline of the least hidden frames."""
    usable = area_F >= 0.85 * np.nanquantile(area_F, 0.8)
    outlines = [_normalised(w, a, c) for w, a, c in zip(weight_FYX[usable], area_F[usable], centre_F2[usable])]
    outline = np.median(outlines, axis=0).ravel()
    likeness = {
        shape: max(np.corrcoef(outline, template.ravel())[0, 1] for template in _templates(shape)) for shape in SHAPES
    }
    shape = max(likeness, key=likeness.get)
    return shape if likeness[shape] >= _MIN_LIKENESS else NONE


def _normalised(weight_YX: np.ndarray, area: float, centre_2: np.ndarray) -> np.ndarray:
    """Resample a mask to a fixed grid around its centroid, with its area as the unit of length."""
    offsets = (np.arange(_GRID) + 0.5) / _GRID * 2 - 1
    rows, columns = (centre_2[::-1, None] - 0.5) + offsets * _EXTENT * np.sqrt(area / np.pi)
    grid = np.meshgrid(rows, columns, indexing="ij")
    return ndimage.map_coordinates(weight_YX.astype(np.float32), grid, order=1, mode="constant")


@functools.cache
def _templates(shape: str) -> tuple[np.ndarray, ...]:
    """Return normalised outlines of a shape, sharp and blurred as a lossy tokenizer would."""
    axis_FX = (np.arange(128, dtype=np.float32) - 63.5)[None]
    sharp_YX = coverage_FYX(shape, 32.0, axis_FX, axis_FX)[0]
    templates = []
    for sigma in (0.0, 4.0, 7.0):
        # As the checker cuts at half strength, so is the blurred template.
        weight_YX = np.clip(2 * ndimage.gaussian_filter(sharp_YX, sigma) - 0.5, 0, 1) if sigma else sharp_YX
        area = weight_YX.sum()
        centre_2 = np.array([(weight_YX.sum(axis=axis) @ (np.arange(128) + 0.5)) / area for axis in (0, 1)])
        templates.append(_normalised(weight_YX, area, centre_2))
    return tuple(templates)


def _read_direction(centre_F2: np.ndarray) -> tuple[str, float]:
    """Name the direction of a path by its median velocity over all pairs of frames (the Theil-Sen estimator).

    A few bad frames, or the few frames after a bounce, do not move the median. A path that strays from its
    straight line by much of its own length is no motion. Centres and speed are in frame sides.
    """
    time_P = np.flatnonzero(~np.isnan(centre_F2[:, 0]))
    centre_P2 = centre_F2[time_P]
    first, second = np.triu_indices(len(time_P), 1)
    velocity_N2 = (centre_P2[second] - centre_P2[first]) / (time_P[second] - time_P[first])[:, None]
    velocity_2 = np.median(velocity_N2, axis=0)
    speed = float(np.linalg.norm(velocity_2))
    travel = speed * (len(centre_F2) - 1)
    start_P2 = centre_P2 - time_P[:, None] * velocity_2
    stray = np.median(np.linalg.norm(start_P2 - np.median(start_P2, axis=0), axis=1))
    if travel < _MIN_TRAVEL or stray > _MAX_STRAY * travel:
        return NONE, 0.0
    return max(DIRECTIONS, key=lambda name: velocity_2 @ np.array(DIRECTIONS[name])), speed
