"""Images that lie in space one by one, as those of DICOM do, as one volume of even slices."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvo_jax.data.importers.cine import check_size
from mvo_jax.data.importers.orientation import unit_directions
from mvo_jax.data.importers.walk import fault

# Off an even grid, by which no drawing comes to lie on another slice of 5 mm and more; headers
# round positions to 0.01 mm, and scanners place the slices of one stack exactly.
_UNEVEN_MM = 0.5
_SAME_TURN = 1e-3  # of direction cosines: a tenth of a pixel over 100 of them; one stack has one
_SAME_STEP = 1e-3  # relative, of pixels: a quarter of a pixel over 256
_WHOLE = 0.05  # off a whole number of steps: half a millimetre of 10


def even_grid(path: Path, planes: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """The grid that images lie on.

    Slices may be missing between them: the distance of the grid is the stated one where the
    smallest is some times that, else the smallest.

    Args:
        planes: float ``[4, 4]`` of each, (column, row, slice) index to RAS mm; its third column is
            the stated distance to the next slice.

    Returns:
        (affine of the grid; number of each image on it, ascending along its normal).

    Raises:
        UserError: they differ in direction or size of a pixel, or lie at uneven distances.
    """
    first, unit = planes[0], unit_directions(planes[0])
    steps = np.linalg.norm(first[:3, :3], axis=0)
    for other in planes[1:]:
        other_steps = np.linalg.norm(other[:3, :2], axis=0)
        same_turn = np.allclose(other[:3, :2] / other_steps, unit[:, :2], atol=_SAME_TURN)
        if not same_turn or not np.allclose(other_steps, steps[:2], rtol=_SAME_STEP):
            says = ": its images differ in direction or in the size of a pixel"
            raise fault(path, says, "export the drawings of one stack of parallel slices")
    corners = np.array([one[:3, 3] for one in planes])
    along: np.ndarray = np.asarray(corners @ unit[:, 2], float)
    gaps = np.asarray(np.diff(np.sort(along)), float)
    apart = gaps[gaps > _UNEVEN_MM]
    step = float(steps[2])
    if len(apart):
        times = float(apart.min()) / step
        whole = max(1.0, np.floor(times + 0.5))
        step = float(apart.min()) / (whole if abs(times - whole) < _WHOLE else 1.0)
    numbers = np.floor((along - along.min()) / step + 0.5).astype(int)
    # The mean distance, as those between neighbours are rounded each for itself.
    one_place = unit[:, 2] * step, corners[0]
    slope, start = np.polyfit(numbers, corners, 1) if numbers.any() else one_place
    off = float(np.linalg.norm(corners - (start + numbers[:, None] * slope), axis=1).max())
    if off > _UNEVEN_MM:
        listed = ", ".join(f"{mm:.1f}" for mm in np.unique(np.round(along - along.min(), 2))[:12])
        remedy = "export a stack of evenly spaced slices, or the mask on the grid of the cine"
        raise fault(path, f": its slices lie at {listed} mm, which are no even distances", remedy)
    affine = first.copy()
    affine[:3, 2], affine[:3, 3] = slope, start
    return affine, numbers.tolist()


def even_volume(
    path: Path, planes: Sequence[np.ndarray], images: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 ``[Z, H, W]``, affine) from ``[H, W]`` one by one; slices without an image are empty.

    Raises:
        UserError: as ``even_grid``, whose arguments these are, or two images lie at one place.
    """
    affine, numbers = even_grid(path, planes)
    if len(set(numbers)) < len(numbers):
        says = ": several of its images lie at one place"
        raise fault(path, says, "export one drawing of each slice")
    shape = max(numbers) + 1, *images[0].shape
    check_size(path, math.prod(shape), 1)
    out = np.zeros(shape, np.uint8)
    out[numbers] = images
    return out, affine
