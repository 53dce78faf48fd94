"""ACDC, M&Ms and M&Ms-2: cine with masks at two phases and without LGE, so without label.

ACDC (``patientNNN/patientNNN_4d.nii.gz``) has 1 RV, 2 LV myocardium, 3 LV cavity, and counts
frames, in ``Info.cfg`` and in names, from 1. M&Ms (``A0S9V9/A0S9V9_sa.nii.gz``) and M&Ms-2
(``001/001_SA_CINE.nii.gz``) have the reverse, 1 LV cavity and 3 RV. M&Ms has one 4-D mask, drawn at
end-diastole and end-systole only, and empty where nobody drew; M&Ms-2 has the two phases as 3-D
files, whose frames are found by comparing images.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mvo_jax.data.importers.cine import Options, Series, map_mask
from mvo_jax.data.importers.masks import to_slices
from mvo_jax.data.importers.volume import Volume, check_shape, read_cine, read_volume
from mvo_jax.data.importers.walk import fault, of_named_files
from mvo_jax.data.labels import CAVITY, WALL, largest_cavity
from mvo_jax.data.slices import CineSlice

# The RV is not part of the project's anatomy.
_OF_ACDC = {0: 0, 1: 0, 2: WALL, 3: CAVITY}
_OF_MNMS = {0: 0, 1: CAVITY, 2: WALL, 3: 0}


def load(series: Series, _: Options) -> list[CineSlice]:
    """Read a patient of ACDC."""
    cine, about = read_cine(series.path), series.path.parent / "Info.cfg"
    try:
        lines = about.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        remedy = "keep Info.cfg beside the images; it names end-diastole"
        raise fault(about, f" cannot be read ({error.strerror})", remedy) from error
    pairs = (line.partition(":") for line in lines)
    info = {key.strip(): value.strip() for key, colon, value in pairs if colon}
    anatomy: dict[int, np.ndarray] = {}
    for key in ("ED", "ES"):
        if not info.get(key, "").isdigit() or not 1 <= int(info[key]) <= len(cine.data):
            says = f": {key} is {info.get(key)!r} of {len(cine.data)} frames"
            raise fault(about, says, "frame numbers count from 1; copy the file again")
        path = _beside(series, "_4d.", f"_frame{int(info[key]):02d}_gt.")
        if path.exists():
            anatomy[int(info[key]) - 1] = _drawn(path, cine, _OF_ACDC)[0]
    return _slices(series, cine, anatomy, int(info["ED"]) - 1)


def load_mnms(series: Series, _: Options) -> list[CineSlice]:
    """Read a patient of M&Ms."""
    cine, path = read_cine(series.path), _beside(series, "_sa.", "_sa_gt.")
    values = _drawn(path, cine, _OF_MNMS, axes=4) if path.exists() else []
    anatomy = {t: frame for t, frame in enumerate(values) if frame.any()}
    return _slices(series, cine, anatomy, largest_cavity(anatomy))


def load_mnms2(series: Series, _: Options) -> list[CineSlice]:
    """Read a patient of M&Ms-2."""
    cine = read_cine(series.path)
    anatomy: dict[int, np.ndarray] = {}
    for phase in ("ED", "ES"):
        path, mask = (_beside(series, "_CINE.", f"_{phase}{kind}.") for kind in ("", "_gt"))
        if not (path.exists() and mask.exists()):
            continue
        image = read_volume(path, axes=3)
        check_shape(image, cine, "the cine")
        # Frame by frame, so that no second copy of the cine is made.
        still = image.data[0].astype(np.float32)
        apart = [float(np.abs(frame - still).mean()) for frame in cine.data]
        anatomy[int(np.argmin(apart))] = _drawn(mask, cine, _OF_MNMS)[0]
    return _slices(series, cine, anatomy, largest_cavity(anatomy))


def _beside(series: Series, old: str, new: str) -> Path:
    return series.path.with_name(series.path.name.replace(old, new))


def _drawn(path: Path, cine: Volume, values: Mapping[int, int], axes: int = 3) -> np.ndarray:
    """A mask on the grid of a cine, in the project's values, ``[T or 1, Z, H, W]``."""
    mask = read_volume(path, axes=axes)
    check_shape(mask, cine, "the cine")
    return map_mask(path, mask.data, values, what="anatomy")


def _slices(
    series: Series, cine: Volume, anatomy: dict[int, np.ndarray], end_diastole: int | None
) -> list[CineSlice]:
    """The slices, unless the labels are those of the other data set: LV cavity and RV swapped."""
    # The left ventricle's cavity touches its myocardium along most of its border, the right's not.
    for mask in anatomy.values():
        cavity, muscle = mask == CAVITY, mask == WALL
        if not cavity.any() or not muscle.any():
            continue
        touching = total = 0
        for axis, by in ((-1, 1), (-1, -1), (-2, 1), (-2, -1)):
            touching += int((cavity & np.roll(muscle, by, axis)).sum())
            total += int((cavity & ~np.roll(cavity, by, axis)).sum())
        if touching < total / 2:
            says = ": the LV cavity is not inside the myocardium; ACDC and M&Ms number their labels"
            remedy = "give the right --format: acdc (1 RV, 3 LV) or mnms, mnms2 (1 LV, 3 RV)"
            raise fault(series.path, f"{says} in opposite order", remedy)
    return to_slices(series, cine, None, anatomy=anatomy, end_diastole=end_diastole)


_TITLE = "cine with masks at two phases, no LGE"
ACDC = of_named_files("acdc", f"ACDC, {_TITLE}", r"(patient\d+)_4d\.nii(?:\.gz)?", load)
MNMS = of_named_files("mnms", f"M&Ms, {_TITLE}", r"([A-Z0-9]{6})_sa\.nii(?:\.gz)?", load_mnms)
MNMS2 = of_named_files("mnms2", f"M&Ms-2, {_TITLE}", r"(\d{3})_SA_CINE\.nii(?:\.gz)?", load_mnms2)
