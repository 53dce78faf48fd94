"""The crop of a slice: around the heart, holding all of the myocardium."""

import numpy as np

from mvo_jax.data.cohort.heart import Placed, find_heart, has_centre, heart_region
from mvo_jax.data.importers.cine import printable
from mvo_jax.data.slices import CineSlice, Target, Window
from mvo_jax.errors import UserError


def choose_window(one: CineSlice, target: Target, heart: Placed | None = None) -> Window:
    """The crop: centred on the heart, moved as little as needed to hold all of the myocardium.

    The centre is the one given, else the middle of the myocardium (LGE mask or contours), else
    what ``find_heart`` finds. The window stays inside the image where the image is large enough,
    and starts at a whole source pixel, so that a source already in the target's geometry is kept
    bit by bit.

    Args:
        heart: ``find_heart`` of the series; that of the slice where None.

    Raises:
        UserError: no spacing is known and the image is not of the target's size, or the
            myocardium does not fit.
    """
    shape = np.array(one.cine.shape[1:])
    size = target.image_size
    if one.pixel_mm is None:
        if not (shape == size).all():
            raise UserError(
                f"{printable(one.source)}: {one.case_id} has {shape[0]}x{shape[1]} pixels and no "
                "pixel spacing",
                f"say it with --pixel_mm; without it only images of {size}x{size} are taken",
            )
        return Window((0.0, 0.0), (1.0, 1.0), size, "whole image")
    step = target.spacing_mm / np.array(one.pixel_mm)
    step = np.where(np.abs(step - 1.0) < 1e-3, 1.0, step)  # rounded spacings in headers
    extent = size * step

    region = heart_region(one)
    box = None if region is None else bounds(region)
    confidence = None
    if one.centre is not None:
        centre, origin = np.array(one.centre) + 0.5, "given"
        if not ((centre >= 0) & (centre <= shape)).all():
            raise UserError(
                f"{printable(one.source)}: the centre {one.centre} lies outside the image of "
                f"{shape[0]}x{shape[1]}",
                "centre_row and centre_column are pixels of the source, counted from 0",
            )
    elif has_centre(one) and box is not None:
        centre, origin = box.mean(axis=0), "contours" if one.anatomy else "mask"
    else:
        centre, origin, confidence = heart or find_heart([one], target.locator)[0]
    start = centre - extent / 2
    # Inside the image where it can be; around its middle where it cannot.
    start = np.where(extent <= shape, np.clip(start, 0, np.maximum(shape - extent, 0)), start)
    start = np.where(np.isclose(extent, shape, rtol=0, atol=1.0), (shape - extent) / 2, start)
    start = np.floor(start + 0.5)  # halves go up, not to even
    if box is not None:
        low, high = box
        if (high - low > extent + 1e-6).any():
            mm = (high - low) * np.array(one.pixel_mm)
            need = mm.max() / size
            raise UserError(
                f"{printable(one.source)}: the myocardium of {one.case_id} spans {mm[0]:.0f} x "
                f"{mm[1]:.0f} mm, the crop {size * target.spacing_mm:.0f} mm",
                f"check the mask for stray pixels, or prepare with --spacing_mm {need + 0.05:.1f} "
                "(all cases then have that spacing)",
            )
        start = np.clip(start, high - extent, low)
    return Window(tuple(start.tolist()), tuple(step.tolist()), size, origin, confidence)


def bounds(region: np.ndarray) -> np.ndarray:
    """Edges (low, high) by (row, column) of the pixels that are set, from the outer edge."""
    corners = np.argwhere(region)
    return np.array([corners.min(axis=0), corners.max(axis=0) + 1.0])
