"""EMIDEC: LGE images ``Case_P007/Images/Case_P007.nii.gz`` with masks below ``Contours``.

Mask values 1 cavity, 2 normal myocardium, 3 infarct, 4 no-reflow (MVO), stored as floats. There is
no cine: a clip repeats the LGE image, so a model trained on it reads scar, not motion. That must
be asked for with ``--still_images``.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mvo_jax.data.importers.cine import CineSlice, Importer, Options, Series, map_mask, printable
from mvo_jax.data.importers.nifti import to_slices, with_data
from mvo_jax.data.importers.volume import read_volume
from mvo_jax.data.importers.walk import files_below
from mvo_jax.errors import UserError

_IMAGE = re.compile(r"(Case_[PN]\d+)\.nii(\.gz)?")
_VALUES = {0: 0, 1: 0, 2: 3, 3: 1, 4: 2}


def _is_image(path: Path) -> re.Match[str] | None:
    return _IMAGE.fullmatch(path.name) if path.parent.name == "Images" else None


def recognise(source: Path) -> bool:
    """A folder with ``Images/Case_P007.nii.gz`` somewhere below."""
    return source.is_dir() and any(_is_image(p) for p in files_below(source))


def find(source: Path, options: Options) -> Iterator[Series]:
    """One series a patient.

    Raises:
        UserError: still images were not asked for.
    """
    if not options.still_images:
        raise UserError(
            f"{printable(source)} is EMIDEC, which has LGE images and no cine",
            "add --still_images to repeat each LGE image as a clip; a model trained on it reads "
            "scar, not motion",
        )
    for path in files_below(source):
        match = _is_image(path)
        if match:
            yield Series(match[1], path, match[1])


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read a patient; without ``Contours`` (the test set) unlabelled."""
    del options
    image = read_volume(series.path, axes=3)
    path = series.path.parent.parent / "Contours" / series.path.name
    mask = None
    if path.exists():
        mask = read_volume(path, axes=3)
        if mask.data.shape != image.data.shape:
            raise UserError(
                f"{printable(path)} has another shape than the image", "copy both again"
            )
        mask = with_data(mask, map_mask(path, mask.data, _VALUES))
    return to_slices(series, image, mask)


EMIDEC = Importer("emidec", "EMIDEC, LGE images with masks, no cine", recognise, find, load)
