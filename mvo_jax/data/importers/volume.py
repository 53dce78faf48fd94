"""NIfTI volumes as (time, slice, row, column) arrays with a world geometry.

NIfTI stores (X, Y, Z, T); this is the one place where it is transposed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import Series, check_size, printable, reading
from mvo_jax.data.labels import has_mvo
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

_MAX_SLICES = 60
_UNIT_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume, oriented as it is displayed.

    Attributes:
        path: where it was read.
        data: ``[T, Z, H, W]``.
        affine: float ``[4, 4]``: (column, row, slice) index to RAS mm.
        pixel_mm: (row, column).
        oriented: whether the file states an orientation.
    """

    path: Path
    data: np.ndarray
    affine: np.ndarray
    pixel_mm: tuple[float, float]
    oriented: bool

    @property
    def slice_mm(self) -> float:
        """Distance of neighbouring slices."""
        return float(np.linalg.norm(self.affine[:3, 2]))


def read_volume(path: Path, *, axes: int | None = None) -> Volume:
    """Read a NIfTI file.

    Rows are turned to run down (towards posterior or feet) and columns to the patient's left, by
    the file's orientation, as scanners display; a file that states none is taken as it lies.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        axes: 4 for a cine, 3 for a mask; None for either.

    Raises:
        UserError: missing, damaged, of another shape, colour, or claiming more than can be read.
    """
    import nibabel

    with reading(path, "", "copy it again; it may be cut off or not a NIfTI file"):
        image: Any = nibabel.load(path)
        shape = tuple(int(n) for n in image.shape)
        dtype = image.get_data_dtype()
        _check_header(path, shape, dtype, axes)
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        plain = slope in (1.0, None) and intercept in (0.0, None)
        data = np.asarray(image.dataobj, None if plain else np.float32)
        header, affine = image.header, np.array(image.affine, float)
    spatial, _ = header.get_xyzt_units()
    affine[:3] *= _UNIT_MM.get(spatial, 1.0)
    oriented = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    data = data.reshape(*shape[:3], -1).transpose(3, 2, 1, 0)
    return oriented_volume(path, data, affine, oriented=oriented)


def read_cine(path: Path) -> Volume:
    """Read a 4-D NIfTI file, and find (X, Y, T, Z) in place of (X, Y, Z, T).

    Neighbouring phases are alike, slices are not.

    Raises:
        UserError: as ``read_volume``, or images differ along the axis of slices less than half as
            much as along time.
    """
    cine = read_volume(path, axes=4)
    few = cine.data[..., ::4, ::4].astype(np.float32)
    if min(few.shape[:2]) < 2:
        return cine
    along_time, along_slices = (float(np.abs(np.diff(few, axis=a)).mean()) for a in (0, 1))
    if along_slices < along_time / 2:
        frames, slices, *_ = few.shape
        raise UserError(
            f"{printable(cine.path)}: the {slices} slices look like phases and the {frames} "
            "phases like slices",
            "check the order of the axes: NIfTI wants (X, Y, Z, T), not (X, Y, T, Z)",
        )
    return cine


def check_shape(mask: Volume, shape: tuple[int, ...], of: str) -> None:
    """Check that a mask lies on the grid of what it was drawn on.

    Raises:
        UserError: another shape.
    """
    if mask.data.shape[-len(shape) :] != shape:
        raise UserError(f"{printable(mask.path)} has another shape than {of}", "copy both again")


def oriented_volume(path: Path, data: np.ndarray, affine: np.ndarray, *, oriented: bool) -> Volume:
    """A volume turned as it is displayed, where the file states an orientation.

    Args:
        path: for messages.
        data: ``[T, Z, H, W]`` as stored.
        affine: (column, row, slice) index to RAS mm, as stored.
        oriented: whether the file states an orientation.

    Raises:
        UserError: the affine maps to no volume.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(
            f"{printable(path)}: the orientation in the header is no orientation",
            "write the file again with its orientation (in NIfTI its sform or qform)",
        )
    if oriented:
        data, affine = as_displayed(data, affine)
    row_mm, column_mm = (float(np.linalg.norm(affine[:3, axis])) for axis in (1, 0))
    return Volume(path, data, affine, (row_mm, column_mm), oriented)


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


def _check_header(path: Path, shape: tuple[int, ...], dtype: np.dtype, axes: int | None) -> None:
    name, size = printable(path), "x".join(map(str, shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "buif":
        raise UserError(
            f"{name} holds colour or complex values ({dtype})", "export grey images (magnitude)"
        )
    if any(n < 1 for n in shape):
        raise UserError(f"{name} claims {size} voxels", "write the file again")
    check_size(path, int(np.prod([int(n) for n in shape], dtype=object)), max(4, dtype.itemsize))
    if len(shape) not in (3, 4) or (axes is not None and len(shape) != axes):
        wanted = {3: "3 axes (X, Y, Z)", 4: "4 axes (X, Y, Z, T)", None: "3 or 4 axes"}[axes]
        raise UserError(
            f"{name} has {len(shape)} axes, {size}; expected {wanted}",
            "check which file is the cine and which the mask; a one-slice cine is (X, Y, 1, T)",
        )
    slices = list(shape)[2]
    if slices > _MAX_SLICES:
        raise UserError(
            f"{name} has {size} voxels: {slices} slices are no short-axis stack",
            "check the order of the axes: NIfTI wants (X, Y, Z, T), not (T, X, Y, Z)",
        )


def display_flips(column: np.ndarray, row: np.ndarray) -> tuple[bool, bool]:
    """Whether (rows, columns) must be reversed to lie as scanners display them.

    Columns run to the patient's left, rows towards posterior or the feet.

    Args:
        column: RAS direction in which the column index grows.
        row: RAS direction in which the row index grows.
    """
    # In RAS, left is -x, posterior is -y and feet are -z; small terms decide oblique ties.
    flip_columns = float(column @ np.array([-1.0, -0.01, -0.01])) < 0
    flip_rows = float(row @ np.array([-0.01, -1.0, -1.0])) < 0
    return flip_rows, flip_columns


def as_displayed(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reverse rows and columns of ``[..., H, W]`` where display asks for it, and the affine too."""
    affine = affine.copy()
    flip_rows, flip_columns = display_flips(affine[:3, 0], affine[:3, 1])
    for flip, axis, dimension in ((flip_columns, 0, -1), (flip_rows, 1, -2)):
        if flip:
            data = np.flip(data, dimension)
            affine[:3, 3] += affine[:3, axis] * (data.shape[dimension] - 1)
            affine[:3, axis] *= -1
    return data, affine


def check_mask_is_seen(mask: Volume, cine: Path, on_cine: Sequence[np.ndarray | None]) -> None:
    """Refuse a mask of which nothing lies on the cine: a positive case would lose its label.

    Args:
        mask: as it was drawn, ``[1, Z', H', W']``.
        cine: for messages.
        on_cine: what ``mask_on_cine`` made of it, slice by slice.

    Raises:
        UserError: something is drawn and nothing of it is seen.
    """
    if mask.data.any() and not any(one is not None and one.any() for one in on_cine):
        raise UserError(
            f"{printable(mask.path)}: nothing that is drawn lies on the slices of "
            f"{printable(cine)}",
            "check that LGE and cine are of one patient and one examination, with their "
            "orientation",
        )


def mask_on_cine(mask: Volume, cine: Volume) -> tuple[np.ndarray, list[bool]]:
    """Bring the labels of a 3-D mask onto the slices of a cine.

    Each pixel of the cine takes the label of the nearest voxel of the mask; a slice of the cine
    farther than one slice distance from every slice of the mask gets background.

    Args:
        mask: ``data`` is ``[1, Z', H', W']``, already in the project's values.
        cine: ``data`` is ``[T, Z, H, W]``.

    Returns:
        (uint8 ``[Z, H, W]``; for each slice of the cine whether the mask's own slice has MVO:
        labels are read there, before any resampling).

    Raises:
        UserError: the grids differ and one of the files states no orientation.
    """
    labels = mask.data[0]
    grid = cine.data.shape[1:]
    same = labels.shape == grid and (
        not (mask.oriented and cine.oriented)
        or np.allclose(mask.affine, cine.affine, rtol=0, atol=1e-2)
    )
    if same:
        return labels, [has_mvo(one) for one in labels]
    if not (mask.oriented and cine.oriented):
        raise UserError(
            f"{printable(mask.path)} has {labels.shape[::-1]} voxels, {printable(cine.path)} "
            f"{grid[::-1]}, and no orientation to match them by",
            "export both with their orientation, or the mask on the cine's grid",
        )
    to_mask = np.linalg.inv(mask.affine) @ cine.affine
    rows, columns = np.meshgrid(np.arange(grid[1]), np.arange(grid[2]), indexing="ij")
    out, own = np.zeros(grid, np.uint8), []
    reach = max(0.5, min(1.0, cine.slice_mm / mask.slice_mm))
    for z in range(grid[0]):
        middle = to_mask @ [(grid[2] - 1) / 2, (grid[1] - 1) / 2, z, 1.0]
        k = int(np.rint(middle[2]).clip(0, len(labels) - 1))
        if abs(middle[2] - k) > reach:
            own.append(False)
            continue
        points = np.stack([columns, rows, np.full_like(rows, z), np.ones_like(rows)], axis=-1)
        x, y, at = np.moveaxis(np.rint(points @ to_mask[:3].T), -1, 0).astype(int)
        depth = at.clip(k - 1, k + 1)  # a tilt between the two may cross into the next slice
        index = np.stack([depth, y, x], axis=-1)
        inside = ((index >= 0) & (index < labels.shape)).all(axis=-1)
        out[z][inside] = labels[*index[inside].T]
        own.append(has_mvo(labels[k]))
    return out, own


def to_slices(
    series: Series,
    cine: Volume,
    mask: Volume | None,
    *,
    anatomy: dict[int, np.ndarray] | None = None,
    end_diastole: int | None = None,
) -> list[CineSlice]:
    """Slices of a 4-D cine.

    Args:
        series: what is read.
        cine: ``data`` is ``[T, Z, H, W]``.
        mask: LGE mask in the project's values.
        anatomy: frame -> uint8 ``[Z, H, W]``, 1 LV cavity, 2 LV myocardium.
        end_diastole: 0-based frame.
    """
    count = cine.data.shape[1]
    on_grid, drawn = (None, None) if mask is None else mask_on_cine(mask, cine)
    if mask is not None and on_grid is not None:
        check_mask_is_seen(mask, series.path, list(on_grid))
    return [
        series.slice(
            z,
            count,
            cine=cine.data[:, z],
            pixel_mm=cine.pixel_mm,
            lge_mask=None if on_grid is None else on_grid[z],
            has_mvo=None if drawn is None else drawn[z],
            anatomy={t: m[z] for t, m in (anatomy or {}).items() if m[z].any()},
            end_diastole=end_diastole,
            position_mm=z * cine.slice_mm,
        )
        for z in range(count)
    ]
