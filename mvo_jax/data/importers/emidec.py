"""EMIDEC: LGE images ``Case_P007/Images/Case_P007.nii.gz`` with masks below ``Contours``.

Mask values 1 cavity, 2 normal myocardium, 3 infarct, 4 no-reflow (MVO), stored as floats. There is
no cine: a clip repeats the LGE image, which must be asked for with ``--still_images``.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from mvo_jax.data.importers.cine import Options, Series, map_mask
from mvo_jax.data.importers.masks import to_slices
from mvo_jax.data.importers.volume import check_shape, read_volume
from mvo_jax.data.importers.walk import fault, of_named_files
from mvo_jax.data.labels import BACKGROUND, INFARCT, MVO, MYOCARDIUM
from mvo_jax.data.slices import CineSlice

_VALUES = {0: BACKGROUND, 1: BACKGROUND, 2: MYOCARDIUM, 3: INFARCT, 4: MVO}


def load(series: Series, _: Options) -> list[CineSlice]:
    """Read a patient; without ``Contours`` (the test set) unlabelled."""
    image = read_volume(series.path, axes=3)
    path = series.path.parent.parent / "Contours" / series.path.name
    mask = read_volume(path, axes=3) if path.exists() else None
    if mask:
        check_shape(mask, image, "the image")
        mask = dataclasses.replace(mask, data=map_mask(path, mask.data, _VALUES))
    return to_slices(series, image, mask)


_FILES = of_named_files(
    "emidec", "EMIDEC, LGE images with masks, no cine", r"Images/(Case_[PN]\d+)\.nii(?:\.gz)?", load
)


def find(source: Path, options: Options) -> Iterator[Series]:
    """One series a patient.

    Raises:
        UserError: still images were not asked for.
    """
    if not options.still_images:
        says = " is EMIDEC, which has LGE images and no cine"
        remedy = "add --still_images to repeat each LGE image as a clip; a model trained on it"
        raise fault(source, says, f"{remedy} reads scar, not motion")
    yield from _FILES.find(source, options)


EMIDEC = dataclasses.replace(_FILES, find=find)
