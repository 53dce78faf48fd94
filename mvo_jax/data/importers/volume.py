"""NIfTI volumes as (time, slice, row, column) arrays with a world geometry.

NIfTI stores (X, Y, Z, T); this is the one place where it is transposed.
"""

import dataclasses
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import check_size, printable, reading
from mvo_jax.data.importers.orientation import (
    AS_STORED,
    Turn,
    as_displayed,
    plane_turn,
    turn_of,
    turned,
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
    """A volume, oriented as it is displayed.

    Attributes:
        path: where it was read.
        data: ``[T, Z, H, W]``.
        affine: float ``[4, 4]``: (column, row, slice) index to RAS mm.
        pixel_mm: (row, column).
        oriented: whether the file states an orientation.
        turn: what was done to the stored axes; None of what is read image by image.
        rule: first version of the orientation rule under which it is displayed so.
        is_default: the stated orientation is the identity, as software writes that knows none.
        grid: the axes as they are stored; None of what is read image by image.
        notes: what was taken for granted when it was read.
    """

    path: Path
    data: np.ndarray
    affine: np.ndarray
    pixel_mm: tuple[float, float]
    oriented: bool
    turn: Turn | None = None
    rule: int = 1
    is_default: bool = False
    grid: Grid | None = None
    notes: tuple[str, ...] = ()

    @property
    def slice_mm(self) -> float:
        """Distance of neighbouring slices."""
        return float(np.linalg.norm(self.affine[:3, 2]))

    @property
    def corners(self) -> np.ndarray:
        """Where the middles of the outermost voxels lie, RAS mm, float ``[8, 3]``."""
        last = np.array(self.data.shape[:0:-1]) - 1
        at = np.array(list(np.ndindex(2, 2, 2))) * last
        return at @ self.affine[:3, :3].T + self.affine[:3, 3]

    def slices(self) -> list["Volume"]:
        """Each slice as a volume of its own, ``data`` ``[T, 1, H, W]``."""
        out = []
        for z in range(self.data.shape[1]):
            affine = self.affine.copy()
            affine[:3, 3] += z * affine[:3, 2]
            out.append(dataclasses.replace(self, data=self.data[:, z : z + 1], affine=affine))
        return out


def read_volume(path: Path, *, axes: int | None = None) -> Volume:
    """Read a NIfTI file.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        axes: 4 for a cine, 3 for a mask; None for either.

    Raises:
        UserError: missing, damaged, of another shape, colour, or claiming more than can be read.
    """
    import nibabel

    if not {".nii", ".NII"} & set(path.suffixes) and ".nii" in map(str.lower, path.suffixes):
        raise UserError(  # nibabel looks for another file
            f"{printable(path)}: the suffix mixes small and capital letters",
            "rename it to .nii or .nii.gz",
        )
    remedy = "copy it again, it may be cut off or not a NIfTI file; else export it again"
    with reading(path, "", remedy):
        image: Any = nibabel.load(path)
        shape = tuple(int(n) for n in image.shape)
        dtype = image.get_data_dtype()
        _check_header(path, shape, dtype, axes)
        header, affine = image.header, np.array(image.affine, float)
        spatial, _ = header.get_xyzt_units()
        affine[:3] *= _UNIT_MM.get(spatial, 1.0)
        oriented = _is_oriented(header)
        # A damaged header is refused before its pixels are read.
        turn, notes = stored_turn(path, shape, affine, oriented=oriented)
        if oriented:
            notes += _check_header_agrees(printable(path), header, shape, turn)
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        plain = slope in (1.0, None) and intercept in (0.0, None)
        kind = None if plain else np.float32
        if path.suffix.lower() == ".gz":
            data = _unpacked(path, type(image), kind)
        else:
            data = np.asarray(image.dataobj, kind)
    data = data.reshape(*shape[:3], -1)
    return stored_volume(path, data, affine, turn, oriented=oriented, notes=notes)


def _unpacked(path: Path, image: Any, kind: Any) -> np.ndarray:
    """Read the values of a packed file, and the sum at its end, which nibabel alone does not reach.

    Args:
        path: ``.nii.gz``.
        image: nibabel's class of it.
        kind: dtype of the values; None as stored.

    Raises:
        OSError: the sum is another, so that some bit of the file is wrong.
    """
    with gzip.open(path) as file:
        data = np.asarray(image.from_stream(file).dataobj, kind)
        for _ in range(_MOST_AFTER):
            if not file.read(_CHUNK):
                break
    return data


def stored_turn(
    path: Path, shape: tuple[int, ...], affine: np.ndarray, *, oriented: bool
) -> tuple[Turn, list[str]]:
    """How the stored axes of a file are turned for display, and what is taken for granted.

    Args:
        path: for messages.
        shape: of the stored axes, the first three of space.
        affine: float ``[4, 4]`` of these to RAS mm.
        oriented: whether the file states an orientation; if not it is taken as it lies.

    Raises:
        UserError: the affine maps to no volume, does not say which axis is that of the slices, or
            there are too many slices for a stack.
    """
    name = printable(path)
    _check_affine(path, affine)
    turn = turn_of(shape, affine) if oriented else AS_STORED
    if turn is None:
        raise UserError(
            f"{name}: {'x'.join(map(str, shape[:3]))} voxels of "
            f"{_listed(np.linalg.norm(affine[:3, :3], axis=0))} mm do not say which axis is that "
            "of the slices",
            "store the slices along the third axis, (X, Y, Z)",
        )
    slices = shape[turn.order[2]]
    if slices > _MAX_SLICES:
        raise UserError(
            f"{name} has {'x'.join(map(str, shape))} voxels: {slices} slices are no short-axis "
            "stack",
            "check the order of the axes: NIfTI wants (X, Y, Z, T), not (T, X, Y, Z)",
        )
    if not oriented:
        return turn, [
            f"{printable(path.name)} states no orientation: it is taken as it is stored, X as "
            "columns and Y as rows"
        ]
    if _is_default(affine):
        return turn, [
            f"{printable(path.name)} has the identity as its orientation, pixels and slices of "
            "1 mm: software writes that where it knows none"
        ]
    return turn, []


def stored_volume(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray,
    turn: Turn,
    *,
    oriented: bool,
    notes: Sequence[str],
) -> Volume:
    """A volume from the axes of its file.

    Args:
        path: where it was read.
        data: ``(X, Y, Z, T)`` as stored.
        affine: float ``[4, 4]`` of the first three to RAS mm.
        turn: from ``stored_turn``.
        oriented: whether the file states an orientation.
        notes: from ``stored_turn``.
    """
    grid = Grid(data.shape[:3], affine, turn.order, turn.flips, oriented)
    shown, shown_affine = turned(data, affine, turn)
    return Volume(
        path,
        shown,
        shown_affine,
        _pixel_mm(shown_affine),
        oriented=oriented,
        turn=turn,
        rule=turn.rule,
        is_default=oriented and _is_default(affine),
        grid=grid,
        notes=tuple(notes),
    )


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


def _is_oriented(header: Any) -> bool:
    return bool(header["sform_code"] > 0 or header["qform_code"] > 0)


def _check_header_agrees(name: str, header: Any, shape: tuple[int, ...], turn: Turn) -> list[str]:
    """Refuse a header whose parts describe different grids; tell of another thickness.

    Raises:
        UserError: sform and pixdim (which is qform's too) differ in the size of a pixel, or sform
            and qform in how the image is turned.
    """
    notes = []
    if header["sform_code"] > 0:
        by_pixdim = np.abs(np.array(header["pixdim"][1:4], float))
        by_sform = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
        wrong = np.flatnonzero(~np.isclose(by_pixdim, by_sform, rtol=_SAME_SIZE)).tolist()
        listed = f"{_listed(by_pixdim)} mm in its pixdim, {_listed(by_sform)} mm in its sform"
        if wrong == [turn.order[2]]:  # the thickness, perhaps without the gap
            notes.append(f"a voxel has {listed}; the distance of slices is the sform's")
        elif wrong:
            raise UserError(
                f"{name} contradicts itself: a voxel has {listed}",
                "find out which is right and write the file again with it",
            )
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        other = turn_of(shape, np.array(header.get_qform(), float))
        if other is None or other[:2] != turn[:2]:
            raise UserError(
                f"{name} contradicts itself: its sform and its qform turn the image differently",
                "find out which is right and write the file again with it in both",
            )
        ends = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape[:3]) - 1)
        between = np.array(header.get_sform() - header.get_qform(), float)
        apart = ends @ between[:3, :3].T + between[:3, 3]
        farthest = float(np.linalg.norm(apart, axis=1).max())
        if farthest > _QUATERNION_MM:
            notes.append(
                f"{name}: its sform and its qform lie up to {farthest:.1f} mm apart; the sform is "
                "taken"
            )
    return notes


def _listed(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:g}" for size in sizes)


def _pixel_mm(affine: np.ndarray) -> tuple[float, float]:
    """(row, column) spacing."""
    return float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 0]))


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


def same_grid(one: Volume, other: Volume) -> bool:
    """Whether two volumes have the same voxels in the same places."""
    return one.data.shape[1:] == other.data.shape[1:] and np.allclose(
        one.corners, other.corners, rtol=0, atol=_SAME_MM
    )


def check_shape(mask: Volume, cine: Volume, of: str) -> None:
    """Check that a mask lies on the grid of what it was drawn on.

    Args:
        mask: ``data`` has the cine's frames, or one.
        cine: what it was drawn on.
        of: what that is called.

    Raises:
        UserError: another shape, or turned otherwise.
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
        path: for messages.
        data: ``[T, Z, H, W]`` as stored.
        affine: (column, row, slice) index to RAS mm, as stored.
        oriented: whether the file states an orientation.

    Raises:
        UserError: the affine maps to no volume.
    """
    _check_affine(path, affine)
    return scanned_volume(path, data, affine, oriented=oriented)


def scanned_volume(path: Path, data: np.ndarray, affine: np.ndarray, *, oriented: bool) -> Volume:
    """``oriented_volume`` of a grid that is known to be sound."""
    turn = plane_turn(affine) if oriented else AS_STORED
    shape = (*data.shape[:-3:-1], data.shape[1])
    grid = Grid(shape, affine, turn.order, turn.flips, oriented)
    if oriented:
        data, affine = as_displayed(data, affine)
    return Volume(path, data, affine, _pixel_mm(affine), oriented, rule=turn.rule, grid=grid)


def _check_affine(path: Path, affine: np.ndarray) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(
            f"{printable(path)}: the orientation in the header is no orientation",
            "write the file again with its orientation (in NIfTI its sform or qform)",
        )
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
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
