"""Plain NumPy archives: one ``.npz`` a case, or several cases stacked in one file.

Keys: ``cine`` [T, H, W] (or [N, T, H, W]), and perhaps ``pixel_mm`` (number, or row and column),
``lge_mask`` [H, W], ``anatomy`` [T, H, W] (1 LV cavity, 2 myocardium, only in annotated frames),
``patient_id``, ``case_id``. With a leading N axis, ``patient_id`` and ``case_id`` have N entries.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import (
    MVO,
    CineSlice,
    Importer,
    Options,
    Series,
    check_size,
    map_mask,
    printable,
    slice_name,
)
from mvo_jax.data.importers.walk import files_below
from mvo_jax.errors import UserError

KEYS = ("cine", "pixel_mm", "lge_mask", "anatomy", "patient_id", "case_id")


def recognise(source: Path) -> bool:
    """An ``.npz`` file, or a folder that holds one."""
    if source.is_file():
        return source.suffix == ".npz"
    return any(path.suffix == ".npz" for path in files_below(source))


def find(source: Path, options: Options) -> Iterator[Series]:
    """One series a file."""
    del options
    if source.is_file():
        yield Series(name=source.stem, path=source)
        return
    for path in files_below(source):
        if path.suffix == ".npz":
            relative = path.relative_to(source).with_suffix("")
            yield Series(name="_".join(relative.parts), path=path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive; sizes are checked before anything is decompressed.

    Raises:
        UserError: damaged, too large, or holding Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(item.file_size for item in archive.infolist()), 1)
            for item in archive.infolist():
                with archive.open(item) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(file)
                    if dtype.hasobject:
                        raise UserError(
                            f"{printable(path)}: {item.filename} holds Python objects",
                            "save plain arrays (np.savez with numbers and text of a fixed length)",
                        )
                    check_size(
                        path,
                        int(np.prod([int(n) for n in shape], dtype=object)),
                        max(1, dtype.itemsize),
                    )
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the readers raise what damaged bytes happen to lead to
        raise UserError(
            f"{printable(path)} cannot be read as .npz ({_short(error)})",
            "save it again with np.savez_compressed",
        ) from error


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the slices of one file."""
    arrays = read_arrays(series.path)
    name = printable(series.path)

    def bad(cause: str, remedy: str = f"known keys are: {', '.join(KEYS)}") -> UserError:
        return UserError(f"{name}: {cause}", remedy)

    unknown = sorted(set(arrays) - set(KEYS))
    if unknown or "cine" not in arrays:
        raise bad(
            f"has keys {sorted(arrays)}, of which {unknown} are unknown"
            if unknown
            else f"has no key 'cine' but {sorted(arrays)}"
        )
    cine = arrays["cine"]
    if cine.ndim not in (3, 4) or cine.shape[-1] in (1, 3):
        raise bad(f"cine has shape {cine.shape}", "cine is [T, H, W] or [N, T, H, W], grey")
    stacked = cine.ndim == 4
    if not stacked:
        cine = cine[None]
    count = len(cine)

    def optional(key: str, ndim: int) -> np.ndarray | None:
        if key not in arrays:
            return None
        array = arrays[key] if stacked else arrays[key][None]
        if array.ndim != ndim or len(array) != count:
            raise bad(f"{key} has shape {arrays[key].shape} beside cine {arrays['cine'].shape}")
        return array

    masks, anatomy = optional("lge_mask", 3), optional("anatomy", 4)
    pixel_mm = _pixel_mm(arrays.get("pixel_mm"), bad) or (
        None if options.pixel_mm is None else (options.pixel_mm, options.pixel_mm)
    )
    cases = _names(arrays.get("case_id"), count, bad)
    patients = _names(arrays.get("patient_id"), count, bad)
    out = []
    for i in range(count):
        mask = None if masks is None else map_mask(series.path, masks[i], options.mask_values)
        drawn: dict[int, np.ndarray] = {}
        if anatomy is not None:
            values = map_mask(series.path, anatomy[i], {0: 0, 1: 1, 2: 2}, what="anatomy")
            drawn = {t: frame for t, frame in enumerate(values) if frame.any()}
        out.append(
            CineSlice(
                case_id=cases[i] if cases else slice_name(series.name, i, count),
                patient_id=patients[i] if patients else (series.patient_id or series.name),
                slice_index=i,
                source=str(series.path),
                cine=cine[i],
                pixel_mm=pixel_mm,
                lge_mask=mask,
                has_mvo=None if mask is None else bool((mask == MVO).any()),
                anatomy=drawn,
            )
        )
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


NPZ = Importer("npz", "plain NumPy archives (.npz)", recognise, find, load)
