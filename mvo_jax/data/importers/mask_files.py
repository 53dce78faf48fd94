"""Masks of an LGE by their kind of file: NIfTI, NRRD and DICOM segmentations."""

import dataclasses
import re
from pathlib import Path

from mvo_jax.data.importers.cine import Options, map_mask, note_of_values, printable
from mvo_jax.data.importers.cvi42 import is_workspace
from mvo_jax.data.importers.volume import Volume, read_volume
from mvo_jax.errors import UserError

# As patterns see them, in small letters; ``.dcm`` is a mask only by the rest of its name.
SUFFIX = re.compile(r"\.(nii(\.gz)?|(seg\.)?nrrd|dcm)$", re.IGNORECASE)
_NRRD = re.compile(r"\.n(rrd|hdr)$", re.IGNORECASE)


def read_mask(path: Path, options: Options) -> Volume:
    """A 3-D mask in the project's values, ``data`` ``[1, Z, H, W]``; its kind goes by the name.

    Raises:
        UserError: it cannot be read, or has values without a meaning.
    """
    if is_workspace(path):
        raise UserError(
            f"{printable(path)} holds contours on DICOM images",
            "give the DICOM images beside it, or export the mask as NIfTI or NRRD",
        )
    if _NRRD.search(path.name):
        from mvo_jax.data.importers.nrrd_mask import read_nrrd  # needs pynrrd

        return read_nrrd(path, options.mask_values)
    if path.suffix.lower() == ".dcm":
        from mvo_jax.data.importers.dicom_seg import read_seg  # needs pydicom

        return read_seg(path, options.mask_values)
    volume = read_volume(path, axes=3)
    labels = map_mask(path, volume.data, options.mask_values)
    notes = (*volume.notes, *note_of_values(path, [labels], options.mask_values))
    return dataclasses.replace(volume, data=labels, notes=notes)
