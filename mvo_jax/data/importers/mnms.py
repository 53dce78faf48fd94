"""M&Ms (``A0S9V9/A0S9V9_sa.nii.gz``) and M&Ms-2 (``001/001_SA_CINE.nii.gz``).

Mask values 1 LV cavity, 2 LV myocardium, 3 RV: the reverse of ACDC. M&Ms has one 4-D mask, drawn at
end-diastole and end-systole only, and empty where nobody drew; M&Ms-2 has the two phases as
3-D files, whose frames are found by comparing images. There is no LGE.
"""

import numpy as np

from mvo_jax.data.importers.acdc import check_cavity_inside, read_anatomy
from mvo_jax.data.importers.cine import Options, Series
from mvo_jax.data.importers.masks import to_slices
from mvo_jax.data.importers.volume import check_shape, read_cine, read_volume
from mvo_jax.data.importers.walk import of_named_files
from mvo_jax.data.labels import CAVITY, WALL, largest_cavity
from mvo_jax.data.slices import CineSlice

_ANATOMY = {0: 0, 1: CAVITY, 2: WALL, 3: 0}


def load_mnms(series: Series, options: Options) -> list[CineSlice]:
    """Read a patient of M&Ms."""
    del options
    cine = read_cine(series.path)
    path = series.path.with_name(series.path.name.replace("_sa.", "_sa_gt."))
    anatomy: dict[int, np.ndarray] = {}
    if path.exists():
        values = read_anatomy(path, cine, _ANATOMY, axes=4)
        anatomy = {t: frame for t, frame in enumerate(values) if frame.any()}
    check_cavity_inside(series.path, anatomy)
    return to_slices(series, cine, None, anatomy=anatomy, end_diastole=largest_cavity(anatomy))


def load_mnms2(series: Series, options: Options) -> list[CineSlice]:
    """Read a patient of M&Ms-2."""
    del options
    cine = read_cine(series.path)
    anatomy: dict[int, np.ndarray] = {}
    for phase in ("ED", "ES"):
        image_path, mask_path = (
            series.path.with_name(series.path.name.replace("_CINE.", f"_{phase}{kind}."))
            for kind in ("", "_gt")
        )
        if not (image_path.exists() and mask_path.exists()):
            continue
        image = read_volume(image_path, axes=3)
        check_shape(image, cine, "the cine")
        # Frame by frame, so that no second copy of the cine is made.
        still = image.data[0].astype(np.float32)
        apart = [float(np.abs(frame - still).mean()) for frame in cine.data]
        anatomy[int(np.argmin(apart))] = read_anatomy(mask_path, cine, _ANATOMY)[0]
    check_cavity_inside(series.path, anatomy)
    return to_slices(series, cine, None, anatomy=anatomy, end_diastole=largest_cavity(anatomy))


MNMS = of_named_files(
    "mnms",
    "M&Ms, cine with masks at two phases, no LGE",
    r"([A-Z0-9]{6})_sa\.nii(?:\.gz)?",
    load_mnms,
)
MNMS2 = of_named_files(
    "mnms2",
    "M&Ms-2, cine with masks at two phases, no LGE",
    r"(\d{3})_SA_CINE\.nii(?:\.gz)?",
    load_mnms2,
)
