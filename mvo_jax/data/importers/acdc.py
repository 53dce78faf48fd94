"""ACDC: ``patientNNN/patientNNN_4d.nii.gz`` with masks at end-diastole and end-systole.

Mask values 1 RV, 2 LV myocardium, 3 LV cavity; frame numbers in ``Info.cfg`` and in names count
from 1. There is no LGE: cases are prepared for prediction, without label.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mvo_jax.data.importers.cine import Options, Series, map_mask, printable
from mvo_jax.data.importers.masks import to_slices
from mvo_jax.data.importers.volume import Volume, check_shape, read_cine, read_volume
from mvo_jax.data.importers.walk import of_named_files
from mvo_jax.data.labels import CAVITY, WALL
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

_ANATOMY = {0: 0, 1: 0, 2: WALL, 3: CAVITY}  # the RV is not part of the project's anatomy


def read_info(path: Path) -> dict[str, str]:
    """``Info.cfg``: lines ``KEY: VALUE``."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        cause = f"{printable(path)} cannot be read ({error.strerror})"
        raise UserError(cause, "keep Info.cfg beside the images; it names end-diastole") from error
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read a patient."""
    del options
    cine, about = read_cine(series.path), series.path.parent / "Info.cfg"
    info, frames = read_info(about), len(cine.data)
    anatomy: dict[int, np.ndarray] = {}
    for key in ("ED", "ES"):
        if not info.get(key, "").isdigit() or not 1 <= int(info[key]) <= frames:
            cause = f"{printable(about)}: {key} is {info.get(key)!r} of {frames} frames"
            raise UserError(cause, "frame numbers count from 1; copy the file again")
        number, suffix = int(info[key]), series.path.name.removeprefix(f"{series.name}_4d")
        path = series.path.with_name(f"{series.name}_frame{number:02d}_gt{suffix}")
        if path.exists():
            anatomy[number - 1] = read_anatomy(path, cine, _ANATOMY)[0]
    check_cavity_inside(series.path, anatomy)
    return to_slices(series, cine, None, anatomy=anatomy, end_diastole=int(info["ED"]) - 1)


def read_anatomy(path: Path, cine: Volume, values: Mapping[int, int], axes: int = 3) -> np.ndarray:
    """A mask on the grid of a cine, in the project's values, ``[T or 1, Z, H, W]``."""
    mask = read_volume(path, axes=axes)
    check_shape(mask, cine, "the cine")
    return map_mask(path, mask.data, values, what="anatomy")


def check_cavity_inside(path: Path, anatomy: dict[int, np.ndarray]) -> None:
    """Find label maps that swap the LV cavity and the RV, as ACDC and M&Ms do to each other.

    The cavity of the left ventricle touches its myocardium along most of its border; the right
    ventricle's does not.

    Raises:
        UserError: the labels are those of the other data set.
    """
    for mask in anatomy.values():
        cavity, muscle = mask == CAVITY, mask == WALL
        if not cavity.any() or not muscle.any():
            continue
        touching = total = 0
        for axis, by in ((-1, 1), (-1, -1), (-2, 1), (-2, -1)):
            touching += int((cavity & np.roll(muscle, by, axis)).sum())
            total += int((cavity & ~np.roll(cavity, by, axis)).sum())
        if touching < total / 2:
            raise UserError(
                f"{printable(path)}: the LV cavity is not inside the myocardium; ACDC and M&Ms "
                "number their labels in opposite order",
                "give the right --format: acdc (1 RV, 3 LV) or mnms, mnms2 (1 LV, 3 RV)",
            )


ACDC = of_named_files(
    "acdc", "ACDC, cine with masks at two phases, no LGE", r"(patient\d+)_4d\.nii(?:\.gz)?", load
)
