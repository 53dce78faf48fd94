"""NIfTI volumes, stored as (X, Y, Z, T), as ``[T, Z, H, W]`` with a world geometry."""

import dataclasses
import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import check_size, printable, reading
from mvo_jax.data.importers.orientation import (
    AS_STORED,
    Turn,
    plane_turn,
    turn_of,
    turned,
    unit_directions,
)
from mvo_jax.data.slices import Grid
from mvo_jax.errors import UserError

_CHUNK, _MOST_AFTER = 1 << 20, 16  # bytes, and how many of them are read behind the values
_MAX_SLICES = 60
_SAME_SIZE = 0.01  # relative: pixdim and sform are rounded each for itself, to 0.01 mm by some
# Cosine between two axes: 6 degrees, more than a gantry or a rounded header turns one axis against
# another, less than any lost sign does.
_SKEW = 0.1
# Between the corners of two grids: closer ones are one. A label moves from half a pixel on, and the
# smallest pixel has 0.2 mm; direction cosines of four digits are 0.02 mm off 300 mm away, and
# positions are written to 0.01 mm.
_SAME_MM = 0.05
# Between sform and qform: a quaternion of four digits moves a corner 300 mm away by 0.1 mm.
# Programs that register images write to the sform alone, so more is told and not refused.
_QUATERNION_MM = 0.5
_UNIT_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume, oriented as it is displayed."""

    path: Path
    data: np.ndarray  # [T, Z, H, W]
    affine: np.ndarray  # float [4, 4]: (column, row, slice) index to RAS mm
    pixel_mm: tuple[float, float]  # (row, column)
    oriented: bool  # whether the file states an orientation
    turn: Turn | None = None  # of the stored axes; None of what is read image by image
    rule: int = 1  # first version of the orientation rule under which it is displayed so
    is_default: bool = False  # the identity is stated, as software writes that knows none
    grid: Grid | None = None  # the axes as they are stored; None where they lie nowhere
    notes: tuple[str, ...] = ()  # what was taken for granted when it was read

    @property
    def slice_mm(self) -> float:
        """Distance of neighbouring slices."""
        return float(np.linalg.norm(self.affine[:3, 2]))

    @property
    def corners(self) -> np.ndarray:
        """Where the middles of the outermost voxels lie, RAS mm, float ``[8, 3]``."""
        return _corners(self.data.shape[:0:-1], self.affine)

    def slices(self) -> list["Volume"]:
        """Each slice as a volume of its own, ``data`` ``[T, 1, H, W]``."""
        out = []
        for z in range(self.data.shape[1]):
            affine = self.affine.copy()
            affine[:3, 3] += z * affine[:3, 2]
            out.append(dataclasses.replace(self, data=self.data[:, z : z + 1], affine=affine))
        return out


def _corners(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    at = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    return at @ affine[:3, :3].T + affine[:3, 3]


def read_volume(path: Path, *, axes: int | None = None) -> Volume:
    """Read a NIfTI file, ``.nii`` or ``.nii.gz``.

    Args:
        axes: 4 for a cine, 3 for a mask; None for either.

    Raises:
        UserError: missing, damaged, of another shape, colour, or claiming more than can be read.
    """
    import nibabel

    if not {".nii", ".NII"} & set(path.suffixes) and ".nii" in map(str.lower, path.suffixes):
        cause = f"{printable(path)}: the suffix mixes small and capital letters"
        raise UserError(cause, "rename it to .nii or .nii.gz")  # nibabel looks for another file
    remedy = "copy it again, it may be cut off or not a NIfTI file; else export it again"
    with reading(path, "", remedy):
        image: Any = nibabel.load(path)
        shape = tuple(int(n) for n in image.shape)
        dtype = image.get_data_dtype()
        _check_header(path, shape, dtype, axes)
        header, affine = image.header, np.array(image.affine, float)
        spatial, _ = header.get_xyzt_units()
        affine[:3] *= _UNIT_MM.get(spatial, 1.0)
        oriented = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
        # A damaged header is refused before its pixels are read.
        turn, notes = stored_turn(path, shape, affine, oriented=oriented)
        if oriented:
            notes += _check_header_agrees(printable(path), header, shape, turn)
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        plain = slope in (1.0, None) and intercept in (0.0, None)
        kind = None if plain else np.float32
        if path.suffix.lower() == ".gz":  # up to the sum at its end, which nibabel does not reach
            with gzip.open(path) as file:
                data = np.asarray(type(image).from_stream(file).dataobj, kind)
                for _ in range(_MOST_AFTER):
                    if not file.read(_CHUNK):
                        break
        else:
            data = np.asarray(image.dataobj, kind)
    data = data.reshape(*shape[:3], -1)
    return stored_volume(path, data, affine, turn, oriented=oriented, notes=notes)


def stored_turn(
    path: Path, shape: tuple[int, ...], affine: np.ndarray, *, oriented: bool
) -> tuple[Turn, list[str]]:
    """How the stored axes of a file are turned for display, and what is taken for granted.

    Args:
        shape: of the stored axes, the first three of space.
        affine: float ``[4, 4]`` of these to RAS mm.
        oriented: whether the file states an orientation.

    Raises:
        UserError: no volume, no axis that is plainly that of the slices, or too many of them.
    """
    name, size = printable(path), "x".join(map(str, shape))
    _check_affine(path, affine)
    turn = turn_of(shape, affine) if oriented else AS_STORED
    if turn is None:
        size = "x".join(map(str, shape[:3]))
        steps = _listed(np.linalg.norm(affine[:3, :3], axis=0))
        cause = f"{size} voxels of {steps} mm do not say which axis is that of the slices"
        raise UserError(f"{name}: {cause}", "store the slices along the third axis, (X, Y, Z)")
    slices = shape[turn.order[2]]
    if slices > _MAX_SLICES:
        raise UserError(
            f"{name} has {size} voxels: {slices} slices are no short-axis stack",
            "check the order of the axes: NIfTI wants (X, Y, Z, T), not (T, X, Y, Z)",
        )
    said = "states no orientation: it is taken as it is stored, X as columns and Y as rows"
    if oriented:
        said = (
            "has the identity as its orientation, pixels and slices of 1 mm: software writes that "
            "where it knows none"
        )
    is_plain = oriented and not _is_default(affine)
    return turn, [] if is_plain else [f"{printable(path.name)} {said}"]


def stored_volume(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray,
    turn: Turn,
    *,
    oriented: bool,
    notes: Sequence[str] = (),
) -> Volume:
    """A volume from the axes of its file.

    Args:
        data: ``(X, Y, Z, T)`` as stored.
        affine: float ``[4, 4]`` of the first three to RAS mm.
        turn, oriented, notes: of ``stored_turn``.
    """
    grid = Grid(data.shape[:3], affine, turn.order, turn.flips, oriented)
    is_default = oriented and _is_default(affine)
    data, affine = turned(data, affine, turn)
    pixel_mm, notes = _pixel_mm(affine), tuple(notes)
    return Volume(path, data, affine, pixel_mm, oriented, turn, turn.rule, is_default, grid, notes)


def write_volume(path: Path, data: np.ndarray, grid: Grid, description: str) -> None:
    """Write values from 0 to 1 on the voxels of a source as NIfTI.

    Args:
        path: ``.nii.gz``.
        data: ``(X, Y, Z)`` as stored.
        grid: of the source; without orientation the file states none either.
        description: for the header, at most 79 characters.
    """
    import nibabel

    image = nibabel.Nifti1Image(data, grid.affine if grid.oriented else None)
    if not grid.oriented:
        image.header.set_zooms(np.linalg.norm(grid.affine[:3, :3], axis=0))
    image.header["descrip"], image.header["cal_max"] = description.encode(), 1.0
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _is_default(affine: np.ndarray) -> bool:
    return np.array_equal(np.abs(affine), np.eye(4))


def _check_header_agrees(name: str, header: Any, shape: tuple[int, ...], turn: Turn) -> list[str]:
    """Refuse sform, pixdim and qform that contradict each other; tell of another thickness."""
    notes = []
    if header["sform_code"] > 0:
        by_pixdim = np.abs(np.array(header["pixdim"][1:4], float))
        by_sform = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
        wrong = np.flatnonzero(~np.isclose(by_pixdim, by_sform, rtol=_SAME_SIZE)).tolist()
        listed = f"{_listed(by_pixdim)} mm in its pixdim, {_listed(by_sform)} mm in its sform"
        if wrong == [turn.order[2]]:  # the thickness, perhaps without the gap
            notes.append(f"a voxel has {listed}; the distance of slices is the sform's")
        elif wrong:
            cause = f"{name} contradicts itself: a voxel has {listed}"
            raise UserError(cause, "find out which is right and write the file again with it")
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        other = turn_of(shape, np.array(header.get_qform(), float))
        if other is None or other[:2] != turn[:2]:
            raise UserError(
                f"{name} contradicts itself: its sform and its qform turn the image differently",
                "find out which is right and write the file again with it in both",
            )
        between = np.array(header.get_sform() - header.get_qform(), float)
        farthest = float(np.linalg.norm(_corners(shape[:3], between), axis=1).max())
        if farthest > _QUATERNION_MM:
            apart = f"{name}: its sform and its qform lie up to {farthest:.1f} mm apart"
            notes.append(f"{apart}; the sform is taken")
    return notes


def _listed(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:g}" for size in sizes)


def _pixel_mm(affine: np.ndarray) -> tuple[float, float]:
    """(row, column) spacing."""
    return float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 0]))


def read_cine(path: Path) -> Volume:
    """Read a 4-D NIfTI file.

    Raises:
        UserError: as ``read_volume``, or images differ along the axis of slices less than half as
            much as along time: it is (X, Y, T, Z), for neighbouring phases are alike.
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


def same_grid(one: Volume, other: Volume) -> bool:
    """Whether two volumes have the same voxels in the same places."""
    same_shape = one.data.shape[1:] == other.data.shape[1:]
    return same_shape and np.allclose(one.corners, other.corners, rtol=0, atol=_SAME_MM)


def check_shape(mask: Volume, cine: Volume, of: str) -> None:
    """Check that a mask, with its frames or one, lies on the grid of what it was drawn on.

    Raises:
        UserError: another shape than ``of``, as that is called, or turned otherwise.
    """
    shape = cine.data.shape if len(mask.data) > 1 else (1, *cine.data.shape[1:])
    if mask.data.shape != shape:
        raise UserError(f"{printable(mask.path)} has another shape than {of}", "copy both again")
    if mask.turn != cine.turn and not same_grid(mask, cine):
        raise UserError(
            f"{printable(mask.path)} has another orientation than {of}: it may be mirrored",
            "write it with the header of the image it was drawn on",
        )


def oriented_volume(path: Path, data: np.ndarray, affine: np.ndarray, *, oriented: bool) -> Volume:
    """A volume of images that are read one by one, as they are displayed.

    Args:
        data: ``[T, Z, H, W]`` as stored.
        affine: (column, row, slice) index to RAS mm, as stored.

    Raises:
        UserError: the affine maps to no volume.
    """
    _check_affine(path, affine)
    return scanned_volume(path, data, affine, oriented=oriented)


def scanned_volume(path: Path, data: np.ndarray, affine: np.ndarray, *, oriented: bool) -> Volume:
    """``oriented_volume`` of a grid that is known to be sound."""
    turn = plane_turn(affine) if oriented else AS_STORED
    out = stored_volume(path, data.transpose(3, 2, 1, 0), affine, turn, oriented=oriented)
    return dataclasses.replace(out, turn=None, is_default=False)


def _check_affine(path: Path, affine: np.ndarray) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(
            f"{printable(path)}: the orientation in the header is no orientation",
            "write the file again with its orientation (in NIfTI its sform or qform)",
        )
    unit = unit_directions(affine)
    if np.abs(unit.T @ unit - np.eye(3)).max() > _SKEW:
        raise UserError(
            f"{printable(path)}: the axes of its orientation are not at right angles (signs may be "
            "lost)",
            "write the file again with its orientation (a mask: with the header of its cine), or "
            "resample it to a straight grid",
        )


def _check_header(path: Path, shape: tuple[int, ...], dtype: np.dtype, axes: int | None) -> None:
    name, size = printable(path), "x".join(map(str, shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "buif":
        cause = f"{name} holds colour or complex values ({dtype})"
        raise UserError(cause, "export grey images (magnitude)")
    if any(n < 1 for n in shape):
        raise UserError(f"{name} claims {size} voxels", "write the file again")
    check_size(path, math.prod(shape), max(4, dtype.itemsize))
    if len(shape) not in (3, 4) or (axes is not None and len(shape) != axes):
        wanted = {3: "3 axes (X, Y, Z)", 4: "4 axes (X, Y, Z, T)", None: "3 or 4 axes"}[axes]
        raise UserError(
            f"{name} has {len(shape)} axes, {size}; expected {wanted}",
            "check which file is the cine and which the mask; a one-slice cine is (X, Y, 1, T)",
        )
