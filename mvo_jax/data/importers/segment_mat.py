"""Segment (Medviso) ``.mat`` files, v5/v7 and v7.3: ``setstruct``, one element a stack.

Images are ``(X, Y, T, Z)`` with X the row; slice k lies at ``ImagePosition - k * (SliceThickness +
SliceGap) * normal``. The LGE stack carries ``Scar`` with ``Result`` (infarct; holds ``Auto`` and
``Manual``) and ``NoReflow`` (MVO; absent means none), and contours of the myocardium.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import Options, Series, check_size, printable, reading
from mvo_jax.data.importers.contours import anatomy_of
from mvo_jax.data.importers.masks import to_slices
from mvo_jax.data.importers.mat5 import claimed_bytes
from mvo_jax.data.importers.orientation import as_displayed, patient_affine
from mvo_jax.data.importers.volume import Volume, oriented_volume
from mvo_jax.data.importers.walk import fault, of_single_files
from mvo_jax.data.labels import INFARCT, MVO, MYOCARDIUM, WALL
from mvo_jax.data.slices import CineSlice

_SAVE_AGAIN = "save the file from Segment again"
_FIELDS = (
    "IM", "ImageType", "ImageViewPlane", "IntensityScaling", "IntensityOffset", "ResolutionX",
    "ResolutionY", "SliceThickness", "SliceGap", "ImagePosition", "ImageOrientation",
    "EndoX", "EndoY", "EpiX", "EpiY", "Scar",
)  # fmt: skip
_SCAR = ("Result", "NoReflow")
_SHORT = re.compile(r"(unspecified)?\Z|short axis")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def _read_setstruct(path: Path) -> list[dict[str, Any]]:
    """Stacks of a file: the fields this importer needs, arrays in MATLAB's order of axes."""
    with reading(path, " as .mat"):
        with path.open("rb") as file:
            head = file.read(520)
        hdf5 = head[:8] == _HDF5 or head[512:520] == _HDF5
        stacks = _read_v73(path) if hdf5 else _read_v7(path)
    if not stacks:
        raise fault(path, " has no setstruct", _SAVE_AGAIN)
    return stacks


def _read_v7(path: Path) -> list[dict[str, Any]]:
    from scipy.io import loadmat

    check_size(path, claimed_bytes(path), 1)
    content = loadmat(path, variable_names=["setstruct"], struct_as_record=True)
    return [_plain(element) for element in np.ravel(content.get("setstruct", []))]


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
        if "setstruct" not in file:  # of a damaged file this says what is wrong, ``get`` does not
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


def load(series: Series, _: Options) -> list[CineSlice]:
    """Read the short-axis cine of a file, its contours, and its scar."""
    path = series.path
    stacks = _read_setstruct(path)
    found = " | ".join(
        printable(f"{s.get('ImageType', '?')}, {s.get('ImageViewPlane', '?')}, {_shape(s)}")
        for s in stacks[:8]
    )
    remedy = "keep one short-axis cine and at most one LGE stack"
    planes = [str(s.get("ImageViewPlane", "")).lower().replace("-", " ") for s in stacks]
    short = [s for s, p in zip(stacks, planes, strict=True) if _SHORT.match(p) and "IM" in s]
    cines = [s for s in short if _shape(s)[2] > 1]
    if len(cines) > 1:
        cines = [s for s in cines if "cine" in str(s.get("ImageType", "")).lower()]
    if len(cines) != 1:
        says = f": not exactly one short-axis cine stack. Found: {found}"
        raise fault(path, says, remedy)
    scars = [s for s in short if s.get("Scar") and "Result" in s["Scar"]]
    if len(scars) > 1:
        raise fault(path, f": several stacks with a scar. Found: {found}", remedy)
    (cine,) = cines
    volume = _volume(path, cine, _images(path, cine))
    mask = _volume(path, scars[0], _scar_mask(path, scars[0])[None]) if scars else None
    drawn = {t: _outlined(cine, t) for t in range(_shape(cine)[2])}
    anatomy = {t: mask for t, mask in drawn.items() if mask is not None}
    affine, oriented = _affine(path, cine)
    if oriented:  # otherwise the images stay as stored
        anatomy = {t: as_displayed(mask, affine)[0] for t, mask in anatomy.items()}
    return to_slices(series, volume, mask, anatomy=anatomy)


def _shape(stack: dict[str, Any]) -> tuple[int, ...]:
    """(X, Y, T, Z); MATLAB drops trailing axes of length 1."""
    return (*np.shape(stack.get("IM", np.zeros((0, 0)))), 1, 1)[:4]


def _number(path: Path, stack: dict[str, Any], field: str, default: float | None = None) -> float:
    value = stack.get(field, default)
    array = np.asarray(np.nan if value is None else value, float).ravel()
    if array.size != 1 or not np.isfinite(array[0]):
        raise fault(path, f": setstruct.{field} is missing or no number", _SAVE_AGAIN)
    return float(array[0])


def _images(path: Path, stack: dict[str, Any]) -> np.ndarray:
    """Grey values ``[T, Z, X, Y]``; single images are stored normalised, int16 as they were."""
    images = np.asarray(stack["IM"])
    if images.ndim > 4 or images.dtype.kind not in "iuf":
        says = f": setstruct.IM has shape {images.shape} and dtype {images.dtype}"
        raise fault(path, says, _SAVE_AGAIN)
    images = images.reshape(_shape(stack)).transpose(2, 3, 0, 1)
    if images.dtype.kind != "f":
        return images
    scaling = _number(path, stack, "IntensityScaling", 1.0)
    offset = _number(path, stack, "IntensityOffset", 0.0)
    return images.astype(np.float32) * np.float32(scaling) + np.float32(offset)


def _affine(path: Path, stack: dict[str, Any]) -> tuple[np.ndarray, bool]:
    """((column, row, slice) index to RAS mm, before it is turned; whether the file states it)."""
    down, across = (_number(path, stack, field) for field in ("ResolutionX", "ResolutionY"))
    gap = sum(float(np.ravel(stack.get(f, 0.0))[0]) for f in ("SliceThickness", "SliceGap")) or 8.0
    stated = [stack[field] for field in ("ImageOrientation", "ImagePosition") if field in stack]
    if len(stated) < 2:
        return np.diag([across, down, gap, 1.0]), False
    if list(map(np.size, stated)) != [6, 3]:
        says = ": ImageOrientation and ImagePosition have not 6 and 3 numbers"
        raise fault(path, says, _SAVE_AGAIN)
    orientation, position = (np.asarray(value, float).ravel() for value in stated)
    return patient_affine(orientation, position, (across, down, -gap)), True


def _volume(path: Path, stack: dict[str, Any], data: np.ndarray) -> Volume:
    affine, oriented = _affine(path, stack)
    return oriented_volume(path, data, affine, oriented=oriented)


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


def _outlined(stack: dict[str, Any], t: int) -> np.ndarray | None:
    """uint8 ``[Z, X, Y]`` within the contours of a frame; None where none was drawn."""
    rows, columns, _, slices = _shape(stack)
    pairs = [[_contour(stack, which, t, z) for which in ("Endo", "Epi")] for z in range(slices)]
    if all(points is None for pair in pairs for points in pair):
        return None
    return np.stack([anatomy_of(endo, epi, (rows, columns)) for endo, epi in pairs])


def _scar_mask(path: Path, stack: dict[str, Any]) -> np.ndarray:
    """uint8 ``[Z, X, Y]`` of the project's values."""
    rows, columns, _, slices = _shape(stack)
    out = np.zeros((slices, rows, columns), np.uint8)
    if (outlined := _outlined(stack, 0)) is not None:
        out[outlined == WALL] = MYOCARDIUM
    for field, label in (("Result", INFARCT), ("NoReflow", MVO)):
        value = stack["Scar"].get(field)
        drawn = np.asarray([] if value is None else value)
        if drawn.size and (drawn.size != out.size or drawn.shape[:2] != (rows, columns)):
            says = f": Scar.{field} has shape {drawn.shape}, the images {(rows, columns, slices)}"
            raise fault(path, says, _SAVE_AGAIN)
        if drawn.size:
            out[drawn.reshape(rows, columns, slices).transpose(2, 0, 1) != 0] = label
    return out


_TITLE = "Segment (Medviso) .mat, cine with Scar.NoReflow"
SEGMENT = of_single_files("segment", _TITLE, ".mat", load)
