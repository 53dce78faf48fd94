"""DICOM segmentations (PS3.3 A.51 and A.101): binary or label map, segments by their labels."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import check_size, printable, quiet_readers, reading
from mvo_jax.data.importers.dicom_headers import THICKNESS_MM, group_value, read_file
from mvo_jax.data.importers.orientation import patient_affine
from mvo_jax.data.importers.segments import join_segments, segment_values
from mvo_jax.data.importers.sheets import even_volume
from mvo_jax.data.importers.volume import Volume, oriented_volume
from mvo_jax.errors import UserError

_SEGMENT = "SegmentIdentificationSequence"  # of a frame; of all frames where there is one segment
_SAME_PLACE_MM = 0.01  # of frames of several segments on one slice: positions are text


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM segmentation."""
    try:
        with quiet_readers():
            return read_file(path, specific_tags=["Modality"]).get("Modality") == "SEG"
    except Exception:  # whatever it is, it is none
        return False


def drawn_on(path: Path) -> set[str]:
    """SeriesInstanceUID of the images that a segmentation says it is of."""
    with reading(path, " as DICOM segmentation"):
        of = read_file(path, specific_tags=["ReferencedSeriesSequence"])
        return {str(one.SeriesInstanceUID) for one in of.get("ReferencedSeriesSequence") or []}


def read_seg(path: Path, mask_values: Mapping[int, int]) -> Volume:
    """A mask in the project's values, ``data`` ``[1, Z, H, W]``.

    Slices without a frame are empty. Where segments overlap, MVO counts before infarct before
    myocardium.

    Raises:
        UserError: damaged, no segmentation, probabilities, segments without a meaning by
            ``mask_values`` or, after those, their labels, or frames that make no stack.
    """
    with reading(path, " as DICOM segmentation"):
        data = read_file(path)
        if data.get("Modality") != "SEG":
            cause = f"{printable(path)} is no segmentation (Modality {data.get('Modality')})"
            raise UserError(cause, "export the drawing as DICOM SEG, NRRD or NIfTI")
        frames = int(data.NumberOfFrames)
        check_size(path, int(data.Rows) * int(data.Columns) * frames, 2)
        names = {
            int(one.SegmentNumber): str(one.get("SegmentLabel", "")) for one in data.SegmentSequence
        }
        values = segment_values(path, names, mask_values)
        groups = data.PerFrameFunctionalGroupsSequence
        if len(groups) != frames:
            raise ValueError(f"{frames} frames and headers of {len(groups)}")
        pixels = data.pixel_array.reshape(frames, int(data.Rows), int(data.Columns))
        kind = str(data.get("SegmentationType", "BINARY"))
        if kind == "FRACTIONAL":
            most = int(data.MaximumFractionalValue)
            if not np.isin(pixels, (0, most)).all():
                cause = f"{printable(path)} holds probabilities (SegmentationType FRACTIONAL)"
                raise UserError(cause, "export labels (BINARY), not probabilities")
            pixels = pixels // max(most, 1)
        # By the corner of a slice: its plane, and what is drawn there.
        slices: dict[tuple[float, ...], tuple[np.ndarray, list[tuple[np.ndarray, int]]]] = {}
        shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
        for frame, group in zip(pixels, groups, strict=True):
            plane = _plane(path, shared, group)
            corner = tuple(np.floor(plane[:3, 3] / _SAME_PLACE_MM + 0.5))
            if kind == "LABELMAP":
                layers = [(frame == n, values[int(n)]) for n in np.unique(frame) if n]
            else:
                says = (group if _SEGMENT in group else shared)[_SEGMENT][0]
                layers = [(frame != 0, values[int(says.ReferencedSegmentNumber)])]
            slices.setdefault(corner, (plane, []))[1].extend(layers)
    planes, drawn = zip(*slices.values(), strict=True)
    masks = [join_segments(own, pixels.shape[1:]) for own in drawn]
    mask, affine = even_volume(path, planes, masks)
    return oriented_volume(path, mask[None], affine, oriented=True)


def _plane(path: Path, shared: Any, own: Any) -> np.ndarray:
    """(Column, row, slice) index of a frame to RAS mm."""
    value, measures = functools.partial(group_value, {}, (own, shared)), "PixelMeasuresSequence"
    turn = value("PlaneOrientationSequence", "ImageOrientationPatient")
    corner = value("PlanePositionSequence", "ImagePositionPatient")
    spacing = value(measures, "PixelSpacing")
    if turn is None or corner is None or spacing is None:
        cause = f"{printable(path)} does not say where its frames lie"
        raise UserError(cause, "export it again with plane positions, or as NRRD or NIfTI")
    step = value(measures, "SpacingBetweenSlices") or value(measures, "SliceThickness")
    steps = float(spacing[1]), float(spacing[0]), float(step or THICKNESS_MM)
    return patient_affine(np.array(turn, float), np.array(corner, float), steps)
