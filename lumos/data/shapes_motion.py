"""Whether an object goes to and fro as those of the level "endless" do, read from where it is in every frame."""

from __future__ import annotations

import numpy as np

from lumos.data.shapes_render import centroid_below
from lumos.data.shapes_scene import ALIGNED_DIAMETER, MOTIONS, aligned_cell

PERIOD = 4  # frames in which an object goes one cell
_MOST_OFF = 0.5  # of a cell: how far from its expected place an object may be


def legal_steps(centre_F2: np.ndarray, frame_size: tuple[int, int], route: str, shape: str) -> np.ndarray:
    """Return which steps of `PERIOD` frames go on as the step before them did, turning at the edges and nowhere else, bool [steps].

    Objects turn between two steps. Where the first frame stands in its step is not known: the best of all places counts.

    Args:
      centre_F2: (x, y) in pixels, nan where there is no object, as `shapes_checker.read` finds it.
      frame_size: height and width.
      route: one of `shapes_scene.ROUTES`.
      shape: one of `shapes_scene.SHAPES`, whose centroid may lie below its centre.
    """
    height, width = frame_size
    side, axis = min(frame_size), int(np.argmax(np.abs(MOTIONS[route])))
    cell = aligned_cell(side)
    low = np.ceil(ALIGNED_DIAMETER * side / cell) * cell / 2
    span = np.floor(((width, height)[axis] - 2 * low) / cell + 1e-6) * cell
    below = centroid_below(shape) * ALIGNED_DIAMETER * side / 2 * axis
    along, across = centre_F2[:, axis] - below - low, centre_F2[:, 1 - axis]
    offsets = range(min(PERIOD, max(len(along) - 2 * PERIOD, 1)))
    return max((_legal(along[i::PERIOD], across[i::PERIOD], span, cell) for i in offsets), key=_share)


def _share(legal: np.ndarray) -> float:
    return legal.mean() if len(legal) else 0.0


def _legal(along: np.ndarray, across: np.ndarray, span: float, cell: float) -> np.ndarray:
    # A step is judged by the two places that it follows.
    before, here, after = along[:-2], along[1:-1], along[2:]
    with np.errstate(invalid="ignore"):
        heading = np.sign(here - before)
        # At an edge it turns; a place that is a little off is taken for the edge it is nearest to.
        turns = ((here > span - _MOST_OFF * cell) & (heading > 0)) | ((here < _MOST_OFF * cell) & (heading < 0))
        wanted = here + np.where(turns, -heading, heading) * cell
        moved = np.abs(after - here) > _MOST_OFF * cell
        on_line = np.abs(across[2:] - across[1:-1]) < _MOST_OFF * cell
        return moved & on_line & (np.abs(after - wanted) < _MOST_OFF * cell)
