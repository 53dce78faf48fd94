"""Segment (Medviso) ``.mat`` files, v5/v7 and v7.3: ``setstruct``, one element a stack.

Images are ``(X, Y, T, Z)`` with X the row; slice k lies at ``ImagePosition - k * (SliceThickness +
SliceGap) * normal``. The cine is the short-axis stack with phases; the LGE stack carries ``Scar``
with ``Result`` (infarct) and ``NoReflow`` (MVO; absent means none). The myocardium comes from the
contours of the LGE stack. What ``Auto`` and ``Manual`` hold is already in ``Result``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import (
    MVO,
    MYOCARDIUM,
    CineSlice,
    Importer,
    Options,
    Series,
    check_size,
    printable,
    slice_name,
)
from mvo_jax.data.importers.contours import anatomy_of, fill
from mvo_jax.data.importers.mat5 import claimed_bytes
from mvo_jax.data.importers.volume import Volume, as_displayed, check_mask_is_seen, mask_on_cine
from mvo_jax.data.importers.walk import files_below
from mvo_jax.errors import UserError

_INFARCT = 1
_FIELDS = (
    "IM", "ImageType", "ImageViewPlane", "IntensityScaling", "IntensityOffset", "ResolutionX",
    "ResolutionY", "SliceThickness", "SliceGap", "ImagePosition", "ImageOrientation",
    "EndoX", "EndoY", "EpiX", "EpiY", "Scar",
)  # fmt: skip
_SCAR = ("Result", "NoReflow")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def recognise(source: Path) -> bool:
    """A ``.mat`` file, or a folder that holds one."""
    if source.is_file():
        return source.suffix.lower() == ".mat"
    return any(path.suffix.lower() == ".mat" for path in files_below(source))


def find(source: Path, options: Options) -> Iterator[Series]:
    """One series a file."""
    del options
    if source.is_file():
        yield Series(source.stem, source)
        return
    for path in files_below(source):
        if path.suffix.lower() == ".mat":
            yield Series("_".join(path.relative_to(source).with_suffix("").parts), path)


def read_setstruct(path: Path) -> list[dict[str, Any]]:
    """Stacks of a file: the fields this importer needs, arrays in MATLAB's order of axes.

    Raises:
        UserError: damaged, too large, or no file of Segment.
    """
    name = printable(path)
    try:
        with path.open("rb") as file:
            head = file.read(520)
        if not head:
            raise UserError(f"{name} is empty (0 bytes)", "copy it again")
        hdf5 = head[:8] == _HDF5 or head[512:520] == _HDF5
        stacks = _read_v73(path) if hdf5 else _read_v7(path)
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, error) from error
    except Exception as error:  # the readers raise what damaged bytes happen to lead to
        raise _damaged(path, error) from error
    if not stacks:
        raise UserError(f"{name} has no setstruct", "save the file from Segment again")
    return stacks


def _damaged(path: Path, error: Exception) -> UserError:
    text = printable((str(error).splitlines() or [""])[0])[:120]
    return UserError(
        f"{printable(path)} cannot be read as .mat ({type(error).__name__}: {text})",
        "copy it again; it may be cut off",
    )


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
        struct_group: Any = file["setstruct"]
        fields = [f for f in _FIELDS if f in struct_group]
        first = struct_group[fields[0]] if fields else None
        if first is None:
            return []

        def value(item: Any, field: str) -> Any:
            if field == "Scar":
                if not isinstance(item, h5py.Group):
                    return None  # an empty array stands for no scar
                return {key: value(item[key], key) for key in _SCAR if key in item}
            if not isinstance(item, h5py.Dataset) or item.attrs.get("MATLAB_empty", 0):
                return None
            check_size(path, int(np.prod([int(n) for n in item.shape], dtype=object)))
            array = np.asarray(item).transpose()  # HDF5 holds MATLAB's axes in reverse
            if array.dtype.kind not in "buif":
                return None
            if item.attrs.get("MATLAB_class") == b"char":
                return "".join(chr(int(c)) for c in array.ravel())
            return array

        is_array = isinstance(first, h5py.Dataset) and first.dtype == h5py.ref_dtype
        if not is_array:
            elements = [{f: struct_group[f] for f in fields}]
        else:
            count = int(first.shape[0] * first.shape[1])
            elements = [
                {f: file[np.asarray(struct_group[f]).ravel()[i]] for f in fields}
                for i in range(count)
            ]
        out = []
        for element in elements:
            values = {f: value(item, f) for f, item in element.items()}
            out.append({f: v for f, v in values.items() if v is not None})
        return out


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the short-axis cine of a file, its contours, and its scar."""
    del options
    name = printable(series.path)
    stacks = read_setstruct(series.path)
    described = [
        f"{s.get('ImageType', '?')}, {s.get('ImageViewPlane', '?')}, {_shape(s)}" for s in stacks
    ]

    def refuse(why: str) -> UserError:
        found = " | ".join(printable(d) for d in described[:8])
        return UserError(
            f"{name}: {why}. Found: {found}", "keep one short-axis cine and at most one LGE stack"
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
    cine = cines[0]
    volume = _volume(series.path, cine, _images(series.path, cine))
    anatomy = _anatomy(series.path, cine)
    labels = own = None
    if scars:
        mask = _scar_mask(series.path, scars[0])
        drawn = _volume(series.path, scars[0], mask[None])
        labels, own = mask_on_cine(drawn, volume)
        check_mask_is_seen(drawn, series.path, list(labels))
    count = volume.data.shape[1]
    out = []
    for z in range(count):
        out.append(
            CineSlice(
                case_id=slice_name(series.name, z, count),
                patient_id=series.name,
                slice_index=z,
                source=str(series.path),
                cine=volume.data[:, z],
                pixel_mm=volume.pixel_mm,
                lge_mask=None if labels is None else labels[z],
                has_mvo=None if own is None else bool((own[z] == MVO).any()),
                anatomy={
                    t: as_displayed(m, volume_affine(cine))[0]
                    for (t, k), m in anatomy.items()
                    if k == z
                },
                position_mm=z * volume.slice_mm,
            )
        )
    return out


def _is_short_axis(stack: dict[str, Any]) -> bool:
    plane = str(stack.get("ImageViewPlane", "")).lower().replace("-", " ")
    return plane in ("", "unspecified", "short axis") or plane.startswith("short axis")


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
            f"{printable(path)}: setstruct.{field} is missing or no number",
            "save the file from Segment again",
        )
    return float(array[0])


def _images(path: Path, stack: dict[str, Any]) -> np.ndarray:
    """Grey values ``[T, Z, X, Y]``; single images are stored normalised, int16 as they were."""
    images = np.asarray(stack["IM"])
    if images.ndim > 4 or images.dtype.kind not in "iuf":
        raise UserError(
            f"{printable(path)}: setstruct.IM has shape {images.shape} and dtype {images.dtype}",
            "save the file from Segment again",
        )
    images = images.reshape(_shape(stack)).transpose(2, 3, 0, 1)
    if images.dtype.kind != "f":
        return images
    scaling = _number(path, stack, "IntensityScaling", 1.0)
    offset = _number(path, stack, "IntensityOffset", 0.0)
    return images.astype(np.float32) * np.float32(scaling) + np.float32(offset)


def volume_affine(stack: dict[str, Any]) -> np.ndarray:
    """(column, row, slice) index to RAS mm, as stored (before it is turned for display)."""
    spacing = [float(np.ravel(stack[f])[0]) for f in ("ResolutionY", "ResolutionX")]
    thickness = sum(float(np.ravel(stack.get(f, 0.0))[0]) for f in ("SliceThickness", "SliceGap"))
    affine = np.diag([*spacing, thickness or 8.0, 1.0])
    if "ImageOrientation" in stack and "ImagePosition" in stack:
        to_ras = np.array([-1.0, -1.0, 1.0])  # stored as in DICOM
        orientation = np.asarray(stack["ImageOrientation"], float).ravel()
        column, row = orientation[:3], orientation[3:6]
        affine[:3, 0] = column * spacing[0] * to_ras
        affine[:3, 1] = row * spacing[1] * to_ras
        affine[:3, 2] = -np.cross(column, row) * (thickness or 8.0) * to_ras
        affine[:3, 3] = np.asarray(stack["ImagePosition"], float).ravel()[:3] * to_ras
    return affine


def _volume(path: Path, stack: dict[str, Any], data: np.ndarray) -> Volume:
    for field in ("ResolutionX", "ResolutionY"):
        _number(path, stack, field)
    oriented = "ImageOrientation" in stack and "ImagePosition" in stack
    if oriented and (np.size(stack["ImageOrientation"]), np.size(stack["ImagePosition"])) != (6, 3):
        raise UserError(
            f"{printable(path)}: ImageOrientation and ImagePosition have not 6 and 3 numbers",
            "save the file from Segment again",
        )
    affine = volume_affine(stack)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(
            f"{printable(path)}: ImageOrientation is no orientation",
            "save the file from Segment again",
        )
    if oriented:
        data, affine = as_displayed(data, affine)
    row_mm, column_mm = (float(np.linalg.norm(affine[:3, axis])) for axis in (1, 0))
    return Volume(path, data, affine, (row_mm, column_mm), oriented)


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


def _anatomy(path: Path, stack: dict[str, Any]) -> dict[tuple[int, int], np.ndarray]:
    """(frame, slice) -> anatomy, where either contour was drawn."""
    del path
    rows, columns, frames, slices = _shape(stack)
    out = {}
    for t in range(frames):
        for z in range(slices):
            endo, epi = (_contour(stack, which, t, z) for which in ("Endo", "Epi"))
            if endo is not None or epi is not None:
                out[t, z] = anatomy_of(endo, epi, (rows, columns))
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
                "save the file from Segment again",
            )
        return value.reshape(rows, columns, slices).transpose(2, 0, 1) != 0

    out = np.zeros((slices, rows, columns), np.uint8)
    for z in range(slices):
        endo, epi = (_contour(stack, which, 0, z) for which in ("Endo", "Epi"))
        if epi is not None:
            muscle = fill(epi, (rows, columns))
            if endo is not None:
                muscle &= ~fill(endo, (rows, columns))
            out[z][muscle] = MYOCARDIUM
    out[logical("Result")] = _INFARCT
    out[logical("NoReflow")] = MVO
    return out


SEGMENT = Importer(
    "segment", "Segment (Medviso) .mat, cine with Scar.NoReflow", recognise, find, load
)
