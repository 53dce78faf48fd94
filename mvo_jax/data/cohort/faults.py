"""What no scanner makes and no table may say: slices that are refused before any work."""

from collections.abc import Iterator, Sequence

import numpy as np

from mvo_jax.data.importers.cine import printable
from mvo_jax.data.slices import MIN_FRAMES, MIN_PIXELS, PIXEL_MM, CineSlice
from mvo_jax.errors import UserError


def label_fault(slices: Sequence[CineSlice], label: int | None) -> UserError | None:
    """A table's label against what the masks of a series show; None where they agree."""
    if label is None or not slices:
        return None
    seen = [s.has_mvo for s in slices if s.has_mvo is not None]
    remedy = "correct the label or the mask"
    if label == 1 and not seen:
        why = "there is no LGE mask"
        remedy = "add the mask (training needs to know where the MVO is), or leave the label empty"
    elif label == any(seen):
        return None
    else:
        why = f"the LGE mask has {'MVO pixels' if any(seen) else 'no MVO pixel'}"
    return UserError(
        f"{printable(slices[0].source)}: the table says label {label} and {why}", remedy
    )


def slice_fault(one: CineSlice, *, still_images: bool) -> UserError | None:
    """The first thing in a slice that no scanner makes; None in a sound one."""
    if one.refusal is not None:
        return UserError(*one.refusal)
    for cause, remedy in _faults(one, still_images=still_images):
        return UserError(f"{printable(one.source)}: {cause}", remedy)
    return None


def _faults(one: CineSlice, *, still_images: bool) -> Iterator[tuple[str, str]]:
    """(cause, remedy), each found only where those before it are absent."""
    name, cine = one.case_id, one.cine
    if cine.ndim != 3 or cine.dtype.kind not in "buif":
        yield (
            f"the cine of {name} has shape {cine.shape} and dtype {cine.dtype}",
            "a slice is (time, rows, columns) of real numbers; colour must be made grey",
        )
    frames, height, width = cine.shape
    if frames < MIN_FRAMES and not (still_images and frames == 1):
        yield (
            f"{name} has {frames} frames; a cine has at least {MIN_FRAMES}",
            "check that the series is a cine and that its axes are in the format's order"
            + ("; --still_images takes LGE images as they are" if frames == 1 else ""),
        )
    if min(height, width) < MIN_PIXELS or max(height, width) > 4 * min(height, width):
        yield (
            f"{name} has images of {height}x{width} pixels and {frames} frames",
            "check the order of the axes; a NIfTI cine is (X, Y, Z, T)",
        )
    if cine.dtype.kind == "f" and not np.isfinite(cine).all():
        wrong = int(cine.size - np.isfinite(cine).sum())
        yield (
            f"{name} has {wrong:,} pixels that are NaN or infinite",
            "export the images again, or replace those pixels before importing",
        )
    if cine.min() == cine.max():
        yield f"{name} is one constant grey", "export the images again or leave it out"
    if frames > 1 and all(np.array_equal(frame, cine[0]) for frame in cine[1:]):
        yield (
            f"the {frames} frames of {name} are one image, equal in every pixel",
            "export the cine again; it holds a still",
        )
    low, high = PIXEL_MM
    if one.pixel_mm is not None and not all(low <= p <= high for p in one.pixel_mm):
        yield (
            f"{name} has pixels of {one.pixel_mm[0]:g} x {one.pixel_mm[1]:g} mm",
            f"correct the spacing in the file; cine has {low} to {high} mm",
        )
    masks = {f"anatomy of frame {k}": mask for k, mask in one.anatomy.items()}
    if one.lge_mask is not None:
        masks = {"LGE mask": one.lge_mask, **masks}
    for what, mask in masks.items():
        if mask.shape != (height, width):
            yield (
                f"{what} of {name} has shape {mask.shape}, the cine {height}x{width}",
                "export both on the same grid",
            )
