"""Headers of DICOM images: one ``Image`` a file, or a frame of a multi-frame file.

What a header must hold, and what is made of one that holds something else, is decided here alone.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import check_size, printable, reading
from mvo_jax.data.importers.orientation import as_displayed, display_flips, patient_affine
from mvo_jax.data.importers.volume import Volume
from mvo_jax.errors import UserError

MAX_FILES = 20_000  # of one patient; also frames of one file
_THICKNESS_MM = 8.0  # where the header is silent
_MR_IMAGES = {f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("4", "4.1", "4.4")}
_DIRECTORY = "1.2.840.10008.1.3.10"
_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "PatientID",
    "Modality", "ImageType", "Rows", "Columns", "SamplesPerPixel", "PixelSpacing",
    "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "TriggerTime",
    "NominalCardiacTriggerDelayTime", "TemporalPositionIdentifier", "InstanceNumber",
    "AcquisitionNumber", "CardiacNumberOfImages", "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Image:
    """Header of one image: a file, or a frame of a multi-frame file (``frame`` counts from 0)."""

    path: Path
    frame: int | None
    series: str
    description: str
    patient_id: str
    image_type: tuple[str, ...]
    shape: tuple[int, int]
    spacing: tuple[float, float] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    thickness: float
    trigger: float | None
    delay: float | None
    temporal: float | None
    instance: float | None
    acquisition: float
    cardiac_images: int

    @property
    def group(self) -> tuple:
        """Images of one stack share it."""
        turn = None if self.orientation is None else tuple(round(v, 2) for v in self.orientation)
        spacing = None if self.spacing is None else tuple(round(v, 3) for v in self.spacing)
        return self.series, turn, self.shape, spacing, self.image_type

    @property
    def distance(self) -> float | None:
        """Position along the normal of the slice, mm."""
        if self.orientation is None or self.position is None:
            return None
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return float(normal @ np.array(self.position))

    @property
    def flips(self) -> tuple[bool, bool]:
        """Whether (rows, columns) are reversed for display."""
        if self.orientation is None or self.position is None:
            return False, False
        affine = self._affine(self.orientation, self.position)
        return display_flips(affine[:3, 0], affine[:3, 1])

    def volume(self, path: Path, cine: np.ndarray) -> Volume:
        """A slice of which this is one image, with its world geometry, as displayed.

        Args:
            path: for messages.
            cine: ``[T, H, W]`` as stored.
        """
        spacing = self.spacing or (1.0, 1.0)
        data, affine = cine[:, None], np.diag([spacing[1], spacing[0], self.thickness, 1.0])
        if self.orientation is None or self.position is None:
            return Volume(path, data, affine, spacing, oriented=False)
        data, affine = as_displayed(data, self._affine(self.orientation, self.position))
        return Volume(path, data, affine, spacing, oriented=True)

    def _affine(self, orientation: tuple[float, ...], position: tuple[float, ...]) -> np.ndarray:
        spacing = self.spacing or (1.0, 1.0)
        steps = (spacing[1], spacing[0], self.thickness)
        return patient_affine(np.array(orientation), np.array(position), steps)


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM mark, or is named ``.dcm``."""
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_headers(path: Path) -> Iterator[Image]:
    """Headers of the images in a file.

    Raises:
        UserError: damaged, colour, or claiming more than can be read.
    """
    import pydicom

    with reading(path, " as DICOM"):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        if "Rows" not in header:  # a directory file or a report
            stored = header.file_meta.get("MediaStorageSOPClassUID", "")
            if stored != _DIRECTORY and header.get("SOPClassUID", "") in ("", *_MR_IMAGES):
                raise ValueError("the header ends before the size of the image")
            return
        if int(header.get("SamplesPerPixel", 1)) != 1:
            raise UserError(
                f"{printable(path)} is a colour image", "export the grey images, no screen captures"
            )
        frames = int(header.get("NumberOfFrames", 1) or 1)
        check_size(path, int(header.Rows) * int(header.Columns) * max(frames, 1))
        if frames > MAX_FILES:  # each would get a header, however small its pixels
            raise UserError(
                f"{printable(path)} claims {frames:,} frames, more than any cine has",
                "check the file's header; it may be damaged",
            )
        # Some exporters leave an empty sequence in classic images.
        groups = header.get("PerFrameFunctionalGroupsSequence") or [{}]
        if "FrameContentSequence" in groups[0] or "PlanePositionSequence" in groups[0]:
            if len(groups) != frames:
                raise ValueError(f"{frames} frames and headers of {len(groups)}")
            yield from _enhanced(path, header)
        elif frames > 1:
            for frame in range(frames):
                yield _image(path, header, frame, delay=float(frame))
        else:
            yield _image(path, header, None)


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or len(value) != count:
        return None
    return tuple(float(v) for v in value)


def _image(path: Path, header: Any, frame: int | None, **changes: Any) -> Image:
    fields: dict[str, Any] = {
        "path": path,
        "frame": frame,
        "series": str(header.get("SeriesInstanceUID", "")),
        "description": str(header.get("SeriesDescription", "")),
        "patient_id": str(header.get("PatientID", "") or ""),
        "image_type": tuple(str(v).upper() for v in header.get("ImageType", None) or ()),
        "shape": (int(header.Rows), int(header.Columns)),
        "spacing": _numbers(header.get("PixelSpacing"), 2),
        "orientation": _numbers(header.get("ImageOrientationPatient"), 6),
        "position": _numbers(header.get("ImagePositionPatient"), 3),
        "thickness": _number(header.get("SliceThickness")) or _THICKNESS_MM,
        "trigger": _number(header.get("TriggerTime")) if frame is None else None,
        "delay": _number(header.get("NominalCardiacTriggerDelayTime")),
        "temporal": _number(header.get("TemporalPositionIdentifier")),
        "instance": _number(header.get("InstanceNumber")),
        "acquisition": _number(header.get("AcquisitionNumber")) or 0.0,
        "cardiac_images": int(_number(header.get("CardiacNumberOfImages")) or 0),
    }
    return Image(**(fields | changes))


def _enhanced(path: Path, header: Any) -> Iterator[Image]:
    """Frames of an enhanced multi-frame file, each with its own geometry and time."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    for frame, own in enumerate(header.PerFrameFunctionalGroupsSequence):

        def value(sequence: str, name: str, own: Any = own) -> Any:
            for group in (own, shared):
                if group is not None and sequence in group and name in group[sequence][0]:
                    return group[sequence][0][name].value
            return None

        yield _image(
            path,
            header,
            frame,
            orientation=_numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            position=_numbers(value("PlanePositionSequence", "ImagePositionPatient"), 3),
            spacing=_numbers(value("PixelMeasuresSequence", "PixelSpacing"), 2),
            thickness=_number(value("PixelMeasuresSequence", "SliceThickness")) or _THICKNESS_MM,
            trigger=None,
            delay=_number(
                value("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")
            ),
            temporal=_number(value("FrameContentSequence", "TemporalPositionIndex")),
            instance=float(frame),
            image_type=tuple(
                str(v).upper()
                for v in value("MRImageFrameTypeSequence", "FrameType")
                or header.get("ImageType", None)
                or ()
            ),
        )
