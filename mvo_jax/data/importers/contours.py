"""Contours to masks."""

import numpy as np

from mvo_jax.data.labels import CAVITY, WALL


def fill(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies inside a closed polygon (even-odd rule), bool of ``shape``.

    ``points`` are float ``[N, 2]``, (row, column) in pixels; pixel centres are integers.
    """
    inside = np.zeros(shape, bool)
    following = np.roll(points, -1, axis=0)
    rows = np.arange(shape[0])[:, None]
    low = np.minimum(points[:, 0], following[:, 0])
    high = np.maximum(points[:, 0], following[:, 0])
    crosses = (rows > low) & (rows <= high)  # half open, so that a vertex counts once
    for row in np.flatnonzero(crosses.any(axis=1)):
        p, q = points[crosses[row]], following[crosses[row]]
        at = p[:, 1] + (row - p[:, 0]) * (q[:, 1] - p[:, 1]) / (q[:, 0] - p[:, 0])
        inside[row] = (np.arange(shape[1])[:, None] >= at).sum(axis=1) % 2
    return inside


def anatomy_of(
    endocardium: np.ndarray | None, epicardium: np.ndarray | None, shape: tuple[int, int]
) -> np.ndarray:
    """Label image of two contours as of ``fill``: uint8, 1 LV cavity, 2 LV myocardium."""
    out = np.zeros(shape, np.uint8)
    for contour, label in ((epicardium, WALL), (endocardium, CAVITY)):
        if contour is not None:
            out[fill(contour, shape)] = label
    return out
