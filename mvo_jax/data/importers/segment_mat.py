"""Segment (Medviso) ``.mat`` files, v5/v7 and v7.3: ``setstruct``, one element a stack.

Images are ``(X, Y, T, Z)`` with X the row; slice k lies at ``ImagePosition - k * (SliceThickness +
SliceGap) * normal``. The cine is the short-axis stack with phases; the LGE stack carries ``Scar``
with ``Result`` (infarct) and ``NoReflow`` (MVO; absent means none). The myocardium comes from the
contours of the LGE stack. What ``Auto`` and ``Manual`` hold is already in ``Result``.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import Options, Series, check_size, printable, reading
from mvo_jax.data.importers.contours import anatomy_of
from mvo_jax.data.importers.masks import to_slices
from mvo_jax.data.importers.mat5 import claimed_bytes
from mvo_jax.data.importers.orientation import as_displayed, patient_affine
from mvo_jax.data.importers.volume import Volume, oriented_volume
from mvo_jax.data.importers.walk import of_single_files
from mvo_jax.data.labels import INFARCT, MVO, MYOCARDIUM, WALL
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

_SAVE_AGAIN = "save the file from Segment again"
_FIELDS = (
    "IM", "ImageType", "ImageViewPlane", "IntensityScaling", "IntensityOffset", "ResolutionX",
    "ResolutionY", "SliceThickness", "SliceGap", "ImagePosition", "ImageOrientation",
    "EndoX", "EndoY", "EpiX", "EpiY", "Scar",
)  # fmt: skip
_SCAR = ("Result", "NoReflow")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_setstruct(path: Path) -> list[dict[str, Any]]:
    """Stacks of a file: the fields this importer needs, arrays in MATLAB's order of axes.

    Raises:
        UserError: damaged, too large, or no file of Segment.
    """
    with reading(path, " as .mat"):
        with path.open("rb") as file:
            head = file.read(520)
        hdf5 = head[:8] == _HDF5 or head[512:520] == _HDF5
        stacks = _read_v73(path) if hdf5 else _read_v7(path)
    if not stacks:
        raise UserError(f"{printable(path)} has no setstruct", _SAVE_AGAIN)
    return stacks


def _read_v7(path: Path) -> list[dict[str, Any]]:
    from scipy.io import loadmat

    check_size(path, claimed_bytes(path), 1)
    content = loadmat(path, variable_names=["setstruct"], struct_as_record=True)
    if "setstruct" not in content:
        return []
    return [_plain(element) for element in content["setstruct"].ravel()]


def _plain(element: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in _FIELDS:
        if field not in element.dtype.names:
            continue
        value = element[field]
        if field == "Scar":
            if value.size and value.dtype.names:
                scar = value.ravel()[0]
                out[field] = {key: scar[key] for key in _SCAR if key in scar.dtype.names}
        elif value.dtype.kind in "US":
            out[field] = str(value.ravel()[0]) if value.size else ""
        elif value.dtype.kind in "buif" and value.size:
            out[field] = value
    return out


def _read_v73(path: Path) -> list[dict[str, Any]]:
    import h5py

    with h5py.File(path, "r") as file:
        if "setstruct" not in file:
            return []
        group: Any = file["setstruct"]
        fields = [f for f in _FIELDS if f in group]
        if not fields:
            return []

        def value(item: Any, field: str) -> Any:
            if field == "Scar":
                if not isinstance(item, h5py.Group):
                    return None  # an empty array stands for no scar
                return {key: value(item[key], key) for key in _SCAR if key in item}
            if not isinstance(item, h5py.Dataset) or item.attrs.get("MATLAB_empty", 0):
                return None
            check_size(path, math.prod(item.shape))
            array = np.asarray(item).transpose()  # HDF5 holds MATLAB's axes in reverse
            if array.dtype.kind not in "buif":
                return None
            if item.attrs.get("MATLAB_class") == b"char":
                return "".join(chr(int(c)) for c in array.ravel())
            return array

        first = group[fields[0]]
        elements = [{f: group[f] for f in fields}]
        if isinstance(first, h5py.Dataset) and first.dtype == h5py.ref_dtype:
            elements = [
                {f: file[np.asarray(group[f]).ravel()[i]] for f in fields}
                for i in range(int(first.shape[0] * first.shape[1]))
            ]
        found = ({f: value(item, f) for f, item in element.items()} for element in elements)
        return [{f: v for f, v in values.items() if v is not None} for values in found]


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the short-axis cine of a file, its contours, and its scar."""
    del options
    path = series.path
    stacks = read_setstruct(path)

    def refuse(why: str) -> UserError:
        found = " | ".join(
            printable(f"{s.get('ImageType', '?')}, {s.get('ImageViewPlane', '?')}, {_shape(s)}")
            for s in stacks[:8]
        )
        return UserError(
            f"{printable(path)}: {why}. Found: {found}",
            "keep one short-axis cine and at most one LGE stack",
        )

    short = [s for s in stacks if _is_short_axis(s) and "IM" in s]
    cines = [s for s in short if _shape(s)[2] > 1]
    if len(cines) > 1:
        cines = [s for s in cines if "cine" in str(s.get("ImageType", "")).lower()]
    if len(cines) != 1:
        raise refuse("not exactly one short-axis cine stack")
    scars = [s for s in short if s.get("Scar") and "Result" in s["Scar"]]
    if len(scars) > 1:
        raise refuse("several stacks with a scar")
    (cine,) = cines
    volume = _volume(path, cine, _images(path, cine))
    mask = _volume(path, scars[0], _scar_mask(path, scars[0])[None]) if scars else None
    return to_slices(series, volume, mask, anatomy=_anatomy(cine))


def _is_short_axis(stack: dict[str, Any]) -> bool:
    plane = str(stack.get("ImageViewPlane", "")).lower().replace("-", " ")
    return plane in ("", "unspecified") or plane.startswith("short axis")


def _shape(stack: dict[str, Any]) -> tuple[int, ...]:
    """(X, Y, T, Z); MATLAB drops trailing axes of length 1."""
    shape = np.shape(stack.get("IM", np.zeros((0, 0))))
    return (*shape, 1, 1)[:4]


def _number(path: Path, stack: dict[str, Any], field: str, default: float | None = None) -> float:
    value = stack.get(field)
    if value is None and default is not None:
        return default
    array = np.asarray(np.nan if value is None else value, float).ravel()
    if array.size != 1 or not np.isfinite(array[0]):
        raise UserError(
            f"{printable(path)}: setstruct.{field} is missing or no number", _SAVE_AGAIN
        )
    return float(array[0])


def _images(path: Path, stack: dict[str, Any]) -> np.ndarray:
    """Grey values ``[T, Z, X, Y]``; single images are stored normalised, int16 as they were."""
    images = np.asarray(stack["IM"])
    if images.ndim > 4 or images.dtype.kind not in "iuf":
        cause = f"{printable(path)}: setstruct.IM has shape {images.shape} and dtype {images.dtype}"
        raise UserError(cause, _SAVE_AGAIN)
    images = images.reshape(_shape(stack)).transpose(2, 3, 0, 1)
    if images.dtype.kind != "f":
        return images
    scaling = _number(path, stack, "IntensityScaling", 1.0)
    offset = _number(path, stack, "IntensityOffset", 0.0)
    return images.astype(np.float32) * np.float32(scaling) + np.float32(offset)


def stored_affine(stack: dict[str, Any]) -> np.ndarray:
    """(column, row, slice) index to RAS mm, as stored (before it is turned for display)."""
    across, down = (float(np.ravel(stack[f])[0]) for f in ("ResolutionY", "ResolutionX"))
    gap = sum(float(np.ravel(stack.get(f, 0.0))[0]) for f in ("SliceThickness", "SliceGap")) or 8.0
    if not _is_oriented(stack):
        return np.diag([across, down, gap, 1.0])
    orientation, position = (
        np.asarray(stack[f], float).ravel() for f in ("ImageOrientation", "ImagePosition")
    )
    return patient_affine(orientation, position, (across, down, -gap))


def _is_oriented(stack: dict[str, Any]) -> bool:
    return "ImageOrientation" in stack and "ImagePosition" in stack


def _volume(path: Path, stack: dict[str, Any], data: np.ndarray) -> Volume:
    for field in ("ResolutionX", "ResolutionY"):
        _number(path, stack, field)
    oriented = _is_oriented(stack)
    if oriented and (np.size(stack["ImageOrientation"]), np.size(stack["ImagePosition"])) != (6, 3):
        cause = f"{printable(path)}: ImageOrientation and ImagePosition have not 6 and 3 numbers"
        raise UserError(cause, _SAVE_AGAIN)
    return oriented_volume(path, data, stored_affine(stack), oriented=oriented)


def _contour(stack: dict[str, Any], which: str, t: int, z: int) -> np.ndarray | None:
    """Points (row, column) of a contour, counted from 0; None where it was not drawn."""
    x, y = stack.get(f"{which}X"), stack.get(f"{which}Y")
    if x is None or y is None:
        return None
    x, y = (np.asarray(v, float).reshape((*np.shape(v), 1, 1)[:3]) for v in (x, y))
    if t >= x.shape[1] or z >= x.shape[2] or x.shape != y.shape:
        return None
    points = np.stack([x[:, t, z], y[:, t, z]], axis=-1) - 1.0
    points = points[np.isfinite(points).all(axis=1)]
    return points if len(points) > 2 else None


def _anatomy(stack: dict[str, Any]) -> dict[int, np.ndarray]:
    """Frame -> ``[Z, H, W]`` as displayed, where either contour was drawn."""
    rows, columns, frames, slices = _shape(stack)
    out = {}
    for t in range(frames):
        drawn = [[_contour(stack, which, t, z) for which in ("Endo", "Epi")] for z in range(slices)]
        if any(points is not None for pair in drawn for points in pair):
            masks = np.stack([anatomy_of(endo, epi, (rows, columns)) for endo, epi in drawn])
            out[t] = as_displayed(masks, stored_affine(stack))[0]
    return out


def _scar_mask(path: Path, stack: dict[str, Any]) -> np.ndarray:
    """uint8 ``[Z, X, Y]`` of the project's values."""
    rows, columns, _, slices = _shape(stack)
    scar = stack["Scar"]

    def logical(field: str) -> np.ndarray:
        value = scar.get(field)
        if value is None or not np.size(value):
            return np.zeros((slices, rows, columns), bool)
        value = np.asarray(value)
        if value.size != rows * columns * slices or value.shape[:2] != (rows, columns):
            raise UserError(
                f"{printable(path)}: Scar.{field} has shape {value.shape}, the images "
                f"{(rows, columns, slices)}",
                _SAVE_AGAIN,
            )
        return value.reshape(rows, columns, slices).transpose(2, 0, 1) != 0

    out = np.zeros((slices, rows, columns), np.uint8)
    for z in range(slices):
        endo, epi = (_contour(stack, which, 0, z) for which in ("Endo", "Epi"))
        out[z][anatomy_of(endo, epi, (rows, columns)) == WALL] = MYOCARDIUM
    out[logical("Result")] = INFARCT
    out[logical("NoReflow")] = MVO
    return out


SEGMENT = of_single_files(
    "segment", "Segment (Medviso) .mat, cine with Scar.NoReflow", ".mat", load
)
