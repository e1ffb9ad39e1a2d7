"""Draw a moving_shapes scene: antialiased shapes over plane-wave backgrounds, in plain NumPy."""

from __future__ import annotations

import numpy as np

from lumos.data.shapes_scene import COLOURS, Background, Scene, ShapeObject

# Shapes of radius 1 around their bounding box's centre, of nearly the same area.
_SQUARE = 0.88  # half side
_TRIANGLE = (1.12, 0.97)  # half base, half height
_CROSS = (1.02, 0.38)  # half length and half width of an arm


def render(scene: Scene) -> np.ndarray:
    """Return the scene's frames, uint8 [F, Y, X, 3]."""
    frames, height, width = scene.clip_shape
    video_FYXC = background_FYXC(scene.background, scene.clip_shape)
    if len(video_FYXC) == 1:
        video_FYXC = np.repeat(video_FYXC, frames, axis=0)
    for index in scene.depth:
        item = scene.objects[index]
        x_FX = np.arange(width, dtype=np.float32) + 0.5 - item.centre_F2[:, :1].astype(np.float32)
        y_FY = np.arange(height, dtype=np.float32) + 0.5 - item.centre_F2[:, 1:].astype(np.float32)
        alpha_FYX1 = coverage_FYX(item.shape, item.radius, y_FY, x_FX)[..., None]
        paint_FYXC = np.float32(COLOURS[item.colour]) * _brightness_FYX1(item, y_FY, x_FX)
        video_FYXC += alpha_FYX1 * (paint_FYXC - video_FYXC)
    return np.rint(np.clip(video_FYXC, 0, 255, out=video_FYXC)).astype(np.uint8)


def coverage_FYX(shape: str, radius: float, y_FY: np.ndarray, x_FX: np.ndarray) -> np.ndarray:
    """Return how much of each pixel the shape covers, float32 in [0, 1].

    Args:
      shape: one of shapes_scene.SHAPES.
      radius: in pixels.
      y_FY, x_FX: pixel centres relative to the shape's centre, float32 pixels.
    """
    y_FY1, x_F1X = y_FY[:, :, None], x_FX[:, None, :]
    if shape == "circle":
        distance_FYX = np.sqrt(x_F1X**2 + y_FY1**2) - radius
    elif shape == "square":
        distance_FYX = np.maximum(abs(x_F1X), abs(y_FY1)) - _SQUARE * radius
    elif shape == "triangle":
        base, half_height = _TRIANGLE
        # The slanted sides run from (0, -half_height) to (+-base, half_height).
        across, along = np.float32([2 * half_height, base]) / np.hypot(2 * half_height, base)
        slanted_FYX = across * abs(x_F1X) - along * (y_FY1 + np.float32(half_height * radius))
        distance_FYX = np.maximum(slanted_FYX, y_FY1 - half_height * radius)
    elif shape == "cross":
        long, wide = np.float32(_CROSS) * np.float32(radius)
        upright_FYX = np.maximum(abs(x_F1X) - wide, abs(y_FY1) - long)
        lying_FYX = np.maximum(abs(x_F1X) - long, abs(y_FY1) - wide)
        distance_FYX = np.minimum(upright_FYX, lying_FYX)
    else:
        raise ValueError(f"unknown shape {shape!r}")
    return np.clip(np.float32(0.5) - distance_FYX, 0, 1)


def centroid_below(shape: str) -> float:
    """Return how far the centroid of a shape lies below its centre, in radii."""
    return _TRIANGLE[1] / 3 if shape == "triangle" else 0.0


def background_FYXC(background: Background, clip_shape: tuple[int, int, int]) -> np.ndarray:
    """Return float32 frames of the background; a single frame where the camera stands still.

    cos(a + b) = cos a cos b - sin a sin b splits every wave into a (row, time) and a (column) factor, so that
    the sum over waves is one matrix product.
    """
    frames, height, width = clip_shape
    time_F = np.arange(frames if background.camera_2.any() else 1)
    fx_K, fy_K = background.frequency_K2.T
    drift_FK = time_F[:, None] * (background.frequency_K2 @ background.camera_2)
    rows_FYK = drift_FK[:, None] + background.phase_K + np.arange(height)[:, None] * fy_K
    columns_KX1 = (fx_K[:, None] * np.arange(width))[..., None]
    amplitude_K1C = background.amplitude_KC[:, None]
    left_FYK = np.concatenate([np.cos(rows_FYK), -np.sin(rows_FYK)], axis=-1)
    right_KXC = np.concatenate([np.cos(columns_KX1) * amplitude_K1C, np.sin(columns_KX1) * amplitude_K1C])
    left = left_FYK.reshape(-1, len(right_KXC)).astype(np.float32)
    right = right_KXC.reshape(len(right_KXC), -1).astype(np.float32)
    return (left @ right).reshape(len(time_F), height, width, 3) + np.float32(background.colour_C)


def _brightness_FYX1(item: ShapeObject, y_FY: np.ndarray, x_FX: np.ndarray) -> np.ndarray | np.float32:
    """Return the texture, which moves with its object and keeps its hue, as a factor in [0.65, 1]."""
    if not item.texture:
        return np.float32(1)
    wave = np.float32(2 * np.pi / (0.6 * item.radius))
    x_F1X, y_FY1 = wave * x_FX[:, None, :], wave * y_FY[:, :, None]
    if item.texture == "striped":
        pattern_FYX = np.sin(x_F1X + y_FY1)
    elif item.texture == "dotted":
        pattern_FYX = np.cos(x_F1X) + np.cos(y_FY1) - 1
    elif item.texture == "checkered":
        pattern_FYX = 2 * np.sin(x_F1X / 2) * np.sin(y_FY1 / 2)
    else:
        raise ValueError(f"unknown texture {item.texture!r}")
    return (np.float32(0.825) - np.float32(0.175) * np.clip(2 * pattern_FYX, -1, 1))[..., None]
