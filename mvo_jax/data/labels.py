"""What the numbers in masks and labels mean; every room may use it."""

from collections.abc import Mapping

import numpy as np

# Values of an LGE mask, and their names in ``--mask_values``.
BACKGROUND, INFARCT, MVO, MYOCARDIUM = 0, 1, 2, 3
MASK_NAMES = ("background", "infarct", "mvo", "myocardium")

# Values of an anatomy, drawn on frames of the cine.
CAVITY, WALL = 1, 2

# Labels of a case beside 0 and 1.
UNLABELLED = -1
LABEL_NAMES = {1: "MVO", 0: "no MVO", UNLABELLED: "unlabelled"}


def has_mvo(lge_mask: np.ndarray) -> bool:
    """Whether a mask has a pixel of MVO."""
    return bool((lge_mask == MVO).any())


def largest_cavity(anatomy: Mapping[int, np.ndarray]) -> int | None:
    """The annotated frame with the largest LV cavity, end-diastole; None where none is drawn.

    Args:
        anatomy: frame -> label image of any shape.
    """
    areas = {frame: int((mask == CAVITY).sum()) for frame, mask in anatomy.items()}
    return max(areas, key=areas.__getitem__) if any(areas.values()) else None
