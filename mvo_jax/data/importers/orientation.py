"""How a volume is turned before it is shown, trained on or matched: one rule for cine and masks.

A volume's axes may be stored in any order and direction: with a true affine all of them give the
same picture, and so do images that are read one by one (``plane_turn``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Of direction cosines: closer ones are equal, and the next criterion decides. NIfTI stores them in
# float32 or as a quaternion (1e-7 and 1e-4 off), DICOM as text of six digits and more; a stack at
# exactly 45 degrees must not be turned by how it was rounded.
TIE = 1e-3

# In RAS, left is -x, posterior is -y and feet are -z. In the order of their importance. The
# hundredths are those of version 1, so that pictures that were plain then are the same now; they
# decide only where the large component is within a hundredth of nothing.
_COLUMNS = ((-1.0, -0.01, -0.01), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
_ROWS = ((-0.01, -1.0, -1.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0))
# Slices than pixels. Short-axis stacks have 6 to 10 mm against 1 to 2, LGE volumes 1.5 and more
# against 1.25; pixels that are not square differ by less.
_CLEARLY_THICKER = 1.2
# Times fewer slices than rows or columns: stacks have 6 to 30, images 64 and more.
_CLEARLY_FEWER = 2


class Turn(NamedTuple):
    """What is done to a stored volume: ``order`` and ``flips`` as of ``slices.Grid``.

    Attributes:
        rule: first version of the rule under which the pictures come out so.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    rule: int


AS_STORED = Turn((0, 1, 2), (False, False, False), 1)


def unit_directions(affine: np.ndarray) -> np.ndarray:
    """The directions of the three axes, as columns of length 1."""
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def _runs_back(direction: np.ndarray, criteria: Sequence[tuple[float, float, float]]) -> bool:
    """Whether a direction of length 1 runs against the first criterion that is no tie."""
    scores = (float(direction @ np.array(wanted)) for wanted in criteria)
    return next((score < 0 for score in scores if abs(score) > TIE), False)


def _in_plane(unit: np.ndarray, one: int, other: int) -> tuple[int, int, bool, bool]:
    """Which of two axes are columns and rows, and whether (columns, rows) are then reversed.

    Columns are the axis that runs more from right to left; of two alike the one that runs less from
    head to feet; of two alike again the one whose left end is the more posterior, then the lower
    one. They run to the patient's left; if neither left nor right, to posterior, else to the feet.
    Rows run towards posterior and feet; where the two cancel, to posterior.
    """
    axes = unit[:, [one, other]].T
    ranks = np.array([[abs(x), -abs(z), x * y, x * z, y * z] for x, y, z in axes])
    is_column = next((by > 0 for by in ranks[0] - ranks[1] if abs(by) > TIE), True)
    column, row = (one, other) if is_column else (other, one)
    return column, row, _runs_back(unit[:, column], _COLUMNS), _runs_back(unit[:, row], _ROWS)


def plane_turn(affine: np.ndarray) -> Turn:
    """How an image that is read by itself is turned: as a slice of a volume, its slices left alone.

    ``affine`` is float ``[4, 4]`` of (column, row, slice) to RAS, as stored.
    """
    column, row, flip_columns, flip_rows = _in_plane(unit_directions(affine), 0, 1)
    # Until version 3 images kept the rows and columns of the scanner.
    return Turn((column, row, 2), (flip_columns, flip_rows, False), 3 if column == 1 else 1)


def _slice_axis(shape: Sequence[int], affine: np.ndarray) -> int | None:
    """The stored axis along which slices follow each other; None where it cannot be said.

    Slices are thicker than pixels and fewer than rows. Where neither is clear, as in an isotropic
    block, it is the third axis; where they contradict each other, the third if it is one of them.
    """
    steps, counts, found = np.linalg.norm(affine[:3, :3], axis=0), np.array(shape[:3]), set()
    thickest, fewest = int(steps.argmax()), int(counts.argmin())
    if steps[thickest] > _CLEARLY_THICKER * np.delete(steps, thickest).max():
        found.add(thickest)
    if counts[fewest] * _CLEARLY_FEWER <= np.delete(counts, fewest).min():
        found.add(fewest)
    if not found or 2 in found:
        return 2
    return found.pop() if len(found) == 1 else None


def turn_of(shape: Sequence[int], affine: np.ndarray) -> Turn | None:
    """How a volume is turned; all 48 storages of one volume end in the same.

    Slices run along the normal that columns and rows span, so their order does not depend on
    the storage either. None where it cannot be said along which axis they follow each other.
    ``affine`` is float ``[4, 4]`` of the stored axes to RAS mm.
    """
    slices = _slice_axis(shape, affine)
    if slices is None:
        return None
    unit = unit_directions(affine)
    one, other = (axis for axis in range(3) if axis != slices)
    column, row, flip_columns, flip_rows = _in_plane(unit, one, other)
    signs = -1 if flip_columns else 1, -1 if flip_rows else 1
    normal = np.cross(unit[:, column] * signs[0], unit[:, row] * signs[1])
    order = (column, row, slices)
    flips = (flip_columns, flip_rows, bool(normal @ unit[:, slices] < 0))
    # Version 1 left the order of the axes alone, and ties as they were stored.
    before = [bool(unit[:, i] @ np.array(to[0]) < 0) for i, to in enumerate((_COLUMNS, _ROWS))]
    same = order == AS_STORED.order and before == [flip_columns, flip_rows]
    return Turn(order, flips, 1 if same else 2)


def turned(array: np.ndarray, affine: np.ndarray, turn: Turn) -> tuple[np.ndarray, np.ndarray]:
    """(``[T, Z, H, W]``; affine of (column, row, slice)) of ``(X, Y, Z, T)`` by ``turn_of``."""
    return _reversed(array.transpose(3, *turn.order[::-1]), affine, turn)


def as_displayed(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image ``[..., H, W]`` as stored, and its affine, by ``plane_turn``."""
    turn = plane_turn(affine)
    return _reversed(np.swapaxes(data, -1, -2) if turn.order[0] else data, affine, turn)


def _reversed(data: np.ndarray, affine: np.ndarray, turn: Turn) -> tuple[np.ndarray, np.ndarray]:
    """An image whose axes are in order, in the directions of a turn, and the affine of these."""
    affine = affine[:, [*turn.order, 3]].copy()
    for axis in np.flatnonzero(turn.flips).tolist():
        affine[:3, 3] += affine[:3, axis] * (data.shape[-1 - axis] - 1)
        affine[:3, axis] *= -1
        data = np.flip(data, -1 - axis)
    return data, affine


def slice_normal(orientation: np.ndarray) -> np.ndarray:
    """The normal, float ``[3]``, that columns and rows span as they are displayed.

    Along it slices of a DICOM stack are numbered. Arguments as of ``patient_affine``.
    """
    turn = plane_turn(patient_affine(orientation, np.zeros(3), (1.0, 1.0, 1.0)))
    mirrored = (turn.order[0] == 1) != (turn.flips[0] != turn.flips[1])
    return np.cross(orientation[:3], orientation[3:]) * (-1 if mirrored else 1)


def unit_axes(orientation: Sequence[float]) -> np.ndarray:
    """ImageOrientationPatient as float ``[2, 3]`` of length 1: some headers round to two digits."""
    axes = np.reshape(orientation, (2, 3))
    return axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-6)


def displayed_axes(axes: np.ndarray) -> np.ndarray:
    """RAS directions in which columns and rows, ``[2, 3]``, of a DICOM image run as displayed."""
    if not np.cross(axes[0], axes[1]).any():  # no plane
        return axes
    affine = patient_affine(axes.ravel(), np.zeros(3), (1.0, 1.0, 1.0))
    return as_displayed(np.zeros((1, 1)), affine)[1][:3, :2].T


def patient_affine(
    orientation: np.ndarray, position: np.ndarray, steps: Sequence[float]
) -> np.ndarray:
    """(column, row, slice) index to RAS mm of an image as DICOM describes it.

    Args:
        orientation: directions in which the column and the row index grow, 6 numbers that count
            to the patient's left, posterior and head.
        position: of the first pixel, 3 numbers.
        steps: mm from column to column, row to row and slice to slice.
    """
    to_ras = np.array([-1.0, -1.0, 1.0])
    column, row = orientation[:3], orientation[3:]
    affine = np.eye(4)
    for axis, direction in enumerate((column, row, np.cross(column, row))):
        affine[:3, axis] = direction * steps[axis] * to_ras
    affine[:3, 3] = position * to_ras
    return affine
