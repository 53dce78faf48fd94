"""What the numbers in masks and labels mean; every room may use it."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

# Values of an LGE mask, and their names in ``--mask_values``.
BACKGROUND, INFARCT, MVO, MYOCARDIUM = 0, 1, 2, 3
MASK_NAMES = ("background", "infarct", "mvo", "myocardium")

# Values of an anatomy, drawn on frames of the cine.
CAVITY, WALL = 1, 2

# Of what the outer contour encloses; at end-diastole some 0.4.
_LEAST_CAVITY = 0.15

# Labels of a case beside 0 and 1.
UNLABELLED = -1
LABEL_NAMES = {1: "MVO", 0: "no MVO", UNLABELLED: "unlabelled"}


def has_mvo(lge_mask: np.ndarray) -> bool:
    """Whether a mask has a pixel of MVO."""
    return bool((lge_mask == MVO).any())


def mvo_parts(lge_mask: np.ndarray) -> np.ndarray:
    """Connected parts of the MVO in ``[H, W]``, numbered from 1, corners included; 0 elsewhere."""
    from scipy import ndimage

    return cast(Any, ndimage.label(lge_mask == MVO, np.ones((3, 3))))[0]


def fills_cavity(lge_mask: np.ndarray) -> bool:
    """Whether the MVO of ``[H, W]`` fills what the myocardium encloses, as only the cavity does.

    Of a drawn wall the cavity is open, and MVO in a part of it lies beside the wall's middle, or
    takes less of it than a cavity does.
    """
    from scipy import ndimage

    wall = (lge_mask == INFARCT) | (lge_mask == MYOCARDIUM)
    filled: Any = ndimage.binary_fill_holes(wall)
    inside, mvo = filled & ~wall, lge_mask == MVO
    if (
        2 * (lge_mask == MYOCARDIUM).sum() <= wall.sum()
        or (inside & mvo).sum() < 0.9 * inside.sum()
        or inside.sum() < _LEAST_CAVITY * filled.sum()
    ):
        return False
    apart = np.argwhere(mvo).mean(axis=0) - np.argwhere(wall).mean(axis=0)
    return bool(np.hypot(*apart) < np.sqrt(filled.sum() / np.pi) / 4)


def is_ring(lge_mask: np.ndarray) -> bool:
    """Whether the MVO of ``[H, W]`` surrounds half its own area or more, as only a wall does."""
    from scipy import ndimage

    mvo = lge_mask == MVO
    filled: Any = ndimage.binary_fill_holes(mvo)
    return bool(2 * filled.sum() >= 3 * mvo.sum() > 0)


def middle_of(where: np.ndarray) -> np.ndarray:
    """(Row, column) of the pixel of ``where`` that is nearest to the middle of all of them."""
    found = np.argwhere(where)
    return found[np.square(found - found.mean(axis=0)).sum(axis=1).argmin()]


def largest_cavity(anatomy: Mapping[int, np.ndarray]) -> int | None:
    """The annotated frame with the largest LV cavity, end-diastole; None where none is drawn."""
    areas = {frame: int((mask == CAVITY).sum()) for frame, mask in anatomy.items()}
    return max(areas, key=areas.__getitem__) if any(areas.values()) else None
