"""Plain NumPy archives: one ``.npz`` a case, or several cases stacked in one file.

Keys: ``cine`` [T, H, W], and perhaps ``pixel_mm`` (number, or row and column), ``lge_mask`` [H, W],
``anatomy`` [T, H, W] (1 LV cavity, 2 myocardium, only in annotated frames), ``patient_id`` and
``case_id``; all but ``pixel_mm`` with a leading N axis where several are stacked.
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
    reading,
    square_pixel,
)
from mvo_jax.data.importers.walk import fault, of_single_files
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

_KEYS = ("cine", "pixel_mm", "lge_mask", "anatomy", "patient_id", "case_id")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive; by their headers sizes are checked before any is decompressed."""
    form: Any = np.lib.format
    with reading(path, " as .npz", "save it again with np.savez_compressed"):
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(item.file_size for item in archive.infolist()), 1)
            for item in archive.infolist():
                with archive.open(item) as file:
                    old = form.read_magic(file) == (1, 0)
                    read = form.read_array_header_1_0 if old else form.read_array_header_2_0
                    shape, _, dtype = read(file)
                if dtype.hasobject:
                    remedy = "save plain arrays (np.savez with numbers and text of a fixed length)"
                    raise fault(path, f": {item.filename} holds Python objects", remedy)
                check_size(path, math.prod(int(n) for n in shape), max(1, dtype.itemsize))
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the slices of one file."""
    arrays = _read_arrays(series.path)

    def bad(cause: str, remedy: str = f"known keys are: {', '.join(_KEYS)}") -> UserError:
        return fault(series.path, f": {cause}", remedy)

    if unknown := sorted(set(arrays) - set(_KEYS)):
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

    def optional(key: str, ndim: int) -> np.ndarray | list[Any]:
        if key not in arrays:
            return []
        array = arrays[key] if stacked else arrays[key][None]
        if array.ndim != ndim or len(array) != count:
            raise bad(f"{key} has shape {arrays[key].shape} beside cine {arrays['cine'].shape}")
        return array

    masks, anatomy = optional("lge_mask", 3), optional("anatomy", 4)
    pixel_mm = square_pixel(options.pixel_mm)
    if (value := arrays.get("pixel_mm")) is not None:
        if value.dtype.kind not in "iuf" or value.size not in (1, 2):
            remedy = "pixel_mm is one number, or one for rows and columns"
            raise bad(f"pixel_mm is {value!r}", remedy)
        pixel_mm = float(value.flat[0]), float(value.flat[-1])
    names = {}
    for key in sorted({"case_id", "patient_id"} & arrays.keys()):
        given = [str(v) for v in np.atleast_1d(arrays[key])]
        names[key] = given * count if len(given) == 1 else given
        if len(names[key]) != count:
            raise bad(f"{len(given)} names for {count} slices")
    labels = [map_mask(series.path, mask, options.mask_values) for mask in masks]
    notes = note_of_values(series.path, labels, options.mask_values)
    notes += note_of_axes((frames, count, rows, columns))
    out = []
    for i in range(count):
        fields = {key: of_slices[i] for key, of_slices in names.items()}
        if len(anatomy):
            values = map_mask(series.path, anatomy[i], {0: 0, 1: 1, 2: 2}, what="anatomy")
            fields["anatomy"] = {t: frame for t, frame in enumerate(values) if frame.any()}
        fields |= {"lge_mask": labels[i]} if labels else {}
        fields |= {"note": "; ".join(notes)} if i == 0 else {}
        out.append(series.slice(i, count, cine=cine[i], pixel_mm=pixel_mm, **fields))
    return out


NPZ = of_single_files("npz", "plain NumPy archives (.npz)", ".npz", load)
