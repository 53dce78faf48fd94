"""Plain NumPy archives: one ``.npz`` a case, or several cases stacked in one file.

Keys: ``cine`` [T, H, W] (or [N, T, H, W]), and perhaps ``pixel_mm`` (number, or row and column),
``lge_mask`` [H, W], ``anatomy`` [T, H, W] (1 LV cavity, 2 myocardium, only in annotated frames),
``patient_id``, ``case_id``. With a leading N axis, ``patient_id`` and ``case_id`` have N entries.
"""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import (
    Options,
    Series,
    check_size,
    map_mask,
    note_of_axes,
    note_of_values,
    printable,
    reading,
    square_pixel,
)
from mvo_jax.data.importers.walk import of_single_files
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

KEYS = ("cine", "pixel_mm", "lge_mask", "anatomy", "patient_id", "case_id")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive; sizes are checked before anything is decompressed.

    Raises:
        UserError: damaged, too large, or holding Python objects.
    """
    with reading(path, " as .npz", "save it again with np.savez_compressed"):
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(item.file_size for item in archive.infolist()), 1)
            for item in archive.infolist():
                with archive.open(item) as file:
                    _check_array(path, item.filename, file)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}


def _check_array(path: Path, name: str, file: Any) -> None:
    """Refuse an array by its header alone."""
    form = np.lib.format
    old = form.read_magic(file) == (1, 0)
    shape, _, dtype = (form.read_array_header_1_0 if old else form.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise UserError(
            f"{printable(path)}: {name} holds Python objects",
            "save plain arrays (np.savez with numbers and text of a fixed length)",
        )
    check_size(path, math.prod(int(n) for n in shape), max(1, dtype.itemsize))


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the slices of one file."""
    arrays = read_arrays(series.path)
    name = printable(series.path)

    def bad(cause: str, remedy: str = f"known keys are: {', '.join(KEYS)}") -> UserError:
        return UserError(f"{name}: {cause}", remedy)

    if unknown := sorted(set(arrays) - set(KEYS)):
        raise bad(f"has keys {sorted(arrays)}, of which {unknown} are unknown")
    if "cine" not in arrays:
        raise bad(f"has no key 'cine' but {sorted(arrays)}")
    cine = arrays["cine"]
    if cine.ndim not in (3, 4) or cine.shape[-1] in (1, 3):
        raise bad(f"cine has shape {cine.shape}", "cine is [T, H, W] or [N, T, H, W], grey")
    frames, rows, columns = cine.shape[-3:]
    if frames == rows != columns:
        raise bad(f"cine has shape {cine.shape}, which looks like [H, W, T]", "save [T, H, W]")
    stacked = cine.ndim == 4
    cine = cine if stacked else cine[None]
    count = len(cine)

    def optional(key: str, ndim: int) -> np.ndarray | None:
        if key not in arrays:
            return None
        array = arrays[key] if stacked else arrays[key][None]
        if array.ndim != ndim or len(array) != count:
            raise bad(f"{key} has shape {arrays[key].shape} beside cine {arrays['cine'].shape}")
        return array

    masks, anatomy = optional("lge_mask", 3), optional("anatomy", 4)
    pixel_mm = _pixel_mm(arrays.get("pixel_mm"), bad) or square_pixel(options.pixel_mm)
    names = {key: _names(arrays.get(key), count, bad) for key in ("case_id", "patient_id")}
    drawn = [] if masks is None else masks
    labels = [map_mask(series.path, mask, options.mask_values) for mask in drawn]
    notes = note_of_values(series.path, labels, options.mask_values)
    notes += note_of_axes((frames, count, rows, columns))
    out = []
    for i in range(count):
        annotated: dict[int, np.ndarray] = {}
        if anatomy is not None:
            values = map_mask(series.path, anatomy[i], {0: 0, 1: 1, 2: 2}, what="anatomy")
            annotated = {t: frame for t, frame in enumerate(values) if frame.any()}
        own = {key: of_slices[i] for key, of_slices in names.items() if of_slices}
        fields = {"cine": cine[i], "pixel_mm": pixel_mm, "anatomy": annotated, **own}
        fields |= {"lge_mask": labels[i]} if labels else {}
        fields |= {"note": "; ".join(notes)} if i == 0 else {}
        out.append(series.slice(i, count, **fields))
    return out


def _pixel_mm(value: np.ndarray | None, bad: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if value.dtype.kind not in "iuf" or value.size not in (1, 2):
        raise bad(f"pixel_mm is {value!r}", "pixel_mm is one number, or one for rows and columns")
    flat = value.astype(float).ravel()
    return float(flat[0]), float(flat[-1])


def _names(value: np.ndarray | None, count: int, bad: Any) -> list[str] | None:
    if value is None:
        return None
    names = [str(v) for v in np.atleast_1d(value)]
    if len(names) == 1:
        names *= count
    if len(names) != count:
        raise bad(f"{len(names)} names for {count} slices")
    return names


NPZ = of_single_files("npz", "plain NumPy archives (.npz)", ".npz", load)
