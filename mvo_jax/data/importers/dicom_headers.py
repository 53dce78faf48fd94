"""Headers of DICOM images: what they must hold, and what is made of other ones."""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import check_size, printable, reading
from mvo_jax.data.importers.orientation import as_displayed, patient_affine, slice_normal
from mvo_jax.data.importers.volume import Volume, scanned_volume
from mvo_jax.errors import UserError

MIN_PHASES = 8  # fewer images at one place are a localiser or a map, no cine
MAX_FILES = 20_000  # of one patient; also frames of one file
THICKNESS_MM = 8.0  # where the header is silent
_MR_IMAGES = {f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("4", "4.1", "4.4")}
_DIRECTORY = "1.2.840.10008.1.3.10"
_FRAME_GROUPS = (
    "FrameContentSequence", "PlanePositionSequence", "PlaneOrientationSequence",
    "PixelMeasuresSequence",
)  # fmt: skip
# Transfer syntaxes that can only have lost something; of others the header must say it.
_LOSSY = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51)}
# ComplexImageComponent of what is no magnitude image.
_COMPLEX_PARTS = {"PHASE", "REAL", "IMAGINARY"}
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
# TemporalPositionIndex, TemporalPositionTimeOffset, Nominal- and ActualCardiacTriggerDelayTime.
_OF_TIME = (0x00209128, 0x0020930D, 0x00209153, 0x00209252)


def _text(value: Any) -> str:
    return str(value or "")


def _number(value: Any) -> float | None:
    if value in (None, ""):
        return None
    number = float(value)
    if not math.isfinite(number):  # pydicom reads "nan", by which nothing can be put in order
        raise ValueError(f"a number of the header is {number}")
    return number


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or len(value) != count:
        return None
    numbers = tuple(number for v in value if (number := _number(v)) is not None)
    return numbers if len(numbers) == count else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _count(value: Any) -> int:
    return _whole(value) or 0


def _known(first: float | None, second: float | None) -> float | None:
    return second if first is None else first


def _first(value: Any) -> float | None:
    """The first number of an element that may have several."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if len(value) else None
    return _number(value)


def _texts(value: Any) -> tuple[str, ...]:
    """The values of an element that may have one, several or none."""
    if value is None or value == "":
        return ()
    several = not isinstance(value, str) and isinstance(value, Iterable)
    return tuple(str(v).upper() for v in (value if several else [value]))


def _joined(value: Any) -> str:
    return "\\".join(_texts(value))


def _image_type(kind: Any, component: Any) -> tuple[str, ...]:
    """ImageType, with ComplexImageComponent where that is no magnitude."""
    return (*_texts(kind), *(_COMPLEX_PARTS & set(_texts(component))))


def _seconds(value: Any) -> float | None:
    """Milliseconds of a time of day, HHMMSS.FFFFFF, of UTC with an offset &ZZXX; None if none."""
    text, *offset = re.split(r"([+-])", _text(value), maxsplit=1)
    sign, zone = offset or ("+", "0000")
    try:
        hours, minutes, seconds = int(text[:2]), int(text[2:4]), float(text[4:])
        ahead = int(f"{sign}1") * (60 * int(zone[:2]) + int(zone[2:]))
    except ValueError:
        return None
    return 1000.0 * (3600 * hours + 60 * (minutes - ahead) + seconds)


def _moment(date_time: Any) -> float | None:
    return _seconds(_text(date_time)[8:])


def _interval(nominal: Any, heart_rate: Any) -> float:
    rate = _number(heart_rate) or 0.0
    return _number(nominal) or (60_000 / rate if rate > 0 else 0.0)


def _each(of: Callable[[Any], Any]) -> Callable[..., tuple]:
    return lambda *values: tuple(map(of, values))


def _of(*tags: str, by: Callable[..., Any] = _text) -> Any:
    """A field of ``Image``: the elements of a header that it is made of, and how."""
    return dataclasses.field(metadata={"tags": tags, "by": by})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """Header of one image: a file, or a frame of a multi-frame file (``frame`` counts from 0)."""

    path: Path
    frame: int | None
    uid: str = _of("SOPInstanceUID")
    study: str = _of("StudyInstanceUID")
    frame_of_reference: str = _of("FrameOfReferenceUID")
    series: str = _of("SeriesInstanceUID")
    series_number: int | None = _of("SeriesNumber", by=_whole)
    description: str = _of("SeriesDescription", by=lambda v: printable(_text(v)))
    words: str = _of(
        "SeriesDescription", "ProtocolName", "SequenceName", by=lambda *v: " ".join(map(_text, v))
    )
    patient_id: str = _of("PatientID")
    # Date of birth, sex and name; compared, never kept.
    person: tuple[str, str, str] = _of(
        "PatientBirthDate", "PatientSex", "PatientName", by=_each(lambda v: _text(v).strip())
    )
    modality: str = _of("Modality")
    image_type: tuple[str, ...] = _of("ImageType", "ComplexImageComponent", by=_image_type)
    sequence: str = _of("ScanningSequence", by=_joined)
    variant: str = _of("SequenceVariant", by=_joined)
    echo: float | None = _of("EchoNumbers", by=_first)
    echo_time: float | None = _of("EchoTime", by=_first)
    shape: tuple[int, int] = _of("Rows", "Columns", by=_each(int))
    bits: int = _of("BitsAllocated", by=_count)
    photometric: str = _of("PhotometricInterpretation")  # MONOCHROME1 where low values are white
    # Of the file as a whole.
    rescale: tuple[float | None, ...] = _of("RescaleSlope", "RescaleIntercept", by=_each(_number))
    spacing: tuple[float, float] | None = _of("PixelSpacing", by=lambda v: _numbers(v, 2))
    orientation: tuple[float, ...] | None = _of(
        "ImageOrientationPatient", by=lambda v: _numbers(v, 6)
    )
    position: tuple[float, ...] | None = _of("ImagePositionPatient", by=lambda v: _numbers(v, 3))
    location: float | None = _of("SliceLocation", by=_number)
    in_stack: float | None = None  # InStackPositionNumber of an enhanced file
    thickness: float = _of("SliceThickness", by=lambda v: _number(v) or THICKNESS_MM)
    trigger: float | None = _of("TriggerTime", by=_number)
    delay: float | None = _of("NominalCardiacTriggerDelayTime", by=_number)
    actual_delay: float | None = None  # of the beats it was scanned in
    temporal: float | None = _of("TemporalPositionIdentifier", by=_number)
    # AcquisitionTime, else moment.
    clock: float | None = _of(
        "AcquisitionTime", "AcquisitionDateTime", by=lambda v, w: _known(_seconds(v), _moment(w))
    )
    moment: float | None = _of("AcquisitionDateTime", by=_moment)
    instance: float | None = _of("InstanceNumber", by=_number)
    acquisition: float = _of("AcquisitionNumber", by=lambda v: _number(v) or 0.0)
    interval: float = _of("NominalInterval", "HeartRate", by=_interval)
    cardiac_images: int = _of("CardiacNumberOfImages", by=_count)
    temporal_positions: int = _of("NumberOfTemporalPositions", by=_count)
    loss: str  # how it was compressed with loss; empty where it was not
    # Of a concatenation: its UID, number and how many there are.
    part: tuple[str, int, int] = _of(
        "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber",
        by=lambda uid, *v: (_text(uid), *map(_count, v)),
    )  # fmt: skip

    @property
    def name(self) -> str:
        """The series as a message names it: by number and description."""
        number = "without number" if self.series_number is None else str(self.series_number)
        return f"series {number}" + (f" {self.description!r}" if self.description else "")

    def along(self, normal: np.ndarray) -> float | None:
        """Position of the image's middle along a direction, mm."""
        if self.orientation is None or self.position is None:
            return None
        down, across = (n - 1 for n in self.shape)
        row_mm, column_mm = self.spacing or (1.0, 1.0)
        axes = np.array(self.orientation)
        middle = np.array(self.position) + axes[:3] * (across * column_mm / 2)
        return float(normal @ (middle + axes[3:] * (down * row_mm / 2)))

    @property
    def distance(self) -> float | None:
        """Position along the normal of the slice, mm."""
        if self.orientation is None or self.position is None:
            return None
        return float(slice_normal(np.array(self.orientation)) @ np.array(self.position))

    @property
    def has_no_place(self) -> bool:
        """Whether nothing says where it lies; an anonymiser's position is 0, 0, 0."""
        return self.location is None and not any(self.position or ())

    @property
    def place(self) -> str:
        """Where it lies, for a message."""
        if self.distance is not None:
            return f"{self.distance:.1f} mm"
        return "an unknown place" if self.location is None else f"SliceLocation {self.location:g}"

    @property
    def plane(self) -> np.ndarray | None:
        """(Column, row, slice) index to RAS mm, as stored; None where it does not say."""
        return None if self.position is None else self._directions

    @property
    def _directions(self) -> np.ndarray | None:
        """``plane``; where only the position is missing it lies at the origin."""
        if self.orientation is None:
            return None
        spacing = self.spacing or (1.0, 1.0)
        steps = (spacing[1], spacing[0], self.thickness)
        position = np.array(self.position or (0.0, 0.0, 0.0))
        return patient_affine(np.array(self.orientation), position, steps)

    def shown(self, image: np.ndarray) -> np.ndarray:
        """``[..., H, W]`` as stored, turned as it is displayed."""
        return image if self._directions is None else as_displayed(image, self._directions)[0]

    def volume(self, path: Path, cine: np.ndarray) -> Volume:
        """The slice of this image in its place, as displayed; ``cine`` ``[T, H, W]`` as stored."""
        spacing, data, rule = self.spacing or (1.0, 1.0), cine[:, None], 1
        if self._directions is not None:
            out = scanned_volume(path, data, self._directions, oriented=True)
            exchanged = out.grid is not None and out.grid.order[0] == 1
            spacing = (spacing[1], spacing[0]) if exchanged else spacing
            if self.position is not None:
                return dataclasses.replace(out, pixel_mm=spacing)
            # Until version 3 such images were shown as stored.
            data, rule = out.data, 1 if out.grid is None or out.grid.is_plain else 3
        affine = np.diag([spacing[1], spacing[0], self.thickness, 1.0])
        return Volume(path, data, affine, spacing, oriented=False, rule=rule)


# Elements that make a field of an image by themselves, and the others that are read.
FIELDS = {f.name: f.metadata for f in dataclasses.fields(Image) if f.metadata}
_TAGS = [
    *(tag for one in FIELDS.values() for tag in one["tags"]),
    "SOPClassUID", "SamplesPerPixel", "NumberOfFrames", "DimensionIndexSequence",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
]  # fmt: skip


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM mark, begins as a bare data set, or is named ``.dcm``."""
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or _is_bare(start)


def _is_bare(start: bytes) -> bool:
    """Whether bytes begin a data set without preamble, little endian: an element of group 2 or 8.

    The first element is short: a length, a character set, a type of image, a UID or a date.
    """
    if len(start) < 16 or start[0] not in (2, 8) or start[1] != 0 or start[3] != 0:
        return False
    explicit = start[4:6] in (b"UL", b"CS", b"UI", b"DA", b"TM", b"SH", b"OB")
    length = int.from_bytes(start[4:8], "little")
    return explicit or (0 < length <= 128 and length % 2 == 0)


def read_file(path: Path, **how: Any) -> Any:
    """``pydicom.dcmread``, also without preamble; the transfer syntax is known afterwards.

    Raises:
        pydicom.errors.InvalidDicomError: it is no DICOM.
        UserError: compressed, and nothing says how.
    """
    import pydicom
    from pydicom.uid import UID

    with path.open("rb") as file:
        start = file.read(132)
    data = pydicom.dcmread(path, force=_is_bare(start), **how)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit = data.original_encoding[0]
        data.file_meta.TransferSyntaxUID = UID(_IMPLICIT if implicit else _EXPLICIT)
        if data.get("PixelData", b"")[:4] == b"\xfe\xff\x00\xe0":
            raise UserError(
                f"{printable(path)} has compressed pixels and does not say how (no transfer "
                "syntax)",
                "export it again with its meta header, or uncompressed",
            )
    return data


class ColourImage(UserError):
    """A file that holds a colour image, as a screenshot does."""


def read_headers(path: Path) -> Iterator[Image]:
    """Headers of the images in a file.

    Raises:
        ColourImage: it is no grey image.
        UserError: damaged, or claiming more than can be read.
    """
    with reading(path, " as DICOM"):
        header = read_file(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        if "Rows" not in header:  # a directory file or a report
            stored = header.file_meta.get("MediaStorageSOPClassUID", "")
            if stored != _DIRECTORY and header.get("SOPClassUID", "") in ("", *_MR_IMAGES):
                raise ValueError("the header ends before the size of the image")
            return
        if int(header.get("SamplesPerPixel", 1)) != 1:
            cause = f"{printable(path)} is a colour image"
            raise ColourImage(cause, "export the grey images, no screen captures")
        frames = int(header.get("NumberOfFrames", 1) or 1)
        check_size(path, int(header.Rows) * int(header.Columns) * max(frames, 1))
        if frames > MAX_FILES:  # each would get a header, however small its pixels
            cause = f"{printable(path)} claims {frames:,} frames, more than any cine has"
            raise UserError(cause, "check the file's header; it may be damaged")
        # Some exporters leave an empty sequence in classic images.
        groups = header.get("PerFrameFunctionalGroupsSequence") or [{}]
        shared = header.get("SharedFunctionalGroupsSequence") or [{}]
        told = {name for group in (groups[0], shared[0]) for name in _FRAME_GROUPS if name in group}
        if told and (groups[0] or frames == 1):
            if len(groups) != frames:
                raise ValueError(f"{frames} frames and headers of {len(groups)}")
            yield from _enhanced(path, header, groups, shared[0])
        elif frames > 1:
            for frame in range(frames):
                yield _image(path, header, frame, trigger=None, delay=float(frame), clock=None)
        else:
            yield _image(path, header, None)


def _loss(header: Any) -> str:
    """How an image was once compressed with loss, as its header says, or its transfer syntax."""
    syntax = header.file_meta.TransferSyntaxUID
    if str(header.get("LossyImageCompression", "")) != "01" and syntax not in _LOSSY:
        return ""
    said = [*_texts(header.get("LossyImageCompressionMethod"))]
    with contextlib.suppress(ValueError):  # no number, which is no reason to refuse an image
        said += [f"{ratio}:1" for ratio in _texts(header.get("LossyImageCompressionRatio"))]
    return ", ".join(said) or (syntax.name if syntax in _LOSSY else "how is not said")


def _image(path: Path, header: Any, frame: int | None, **changes: Any) -> Image:
    """An image by the header of its file; a change to None is of what is not even read."""
    fields = {
        name: one["by"](*map(header.get, one["tags"]))
        for name, one in FIELDS.items()
        if changes.get(name, "") is not None
    }
    fields |= {"path": path, "frame": frame, "loss": _loss(header)}
    return Image(**(fields | changes))


def group_value(header: Any, groups: Iterable[Any], sequence: str, name: str) -> Any:
    """What the functional groups of a frame say, the first that does; else the header itself."""
    for group in groups:
        if sequence in group and name in group[sequence][0]:
            return group[sequence][0][name].value
    return header.get(name)


def _enhanced(path: Path, header: Any, groups: Sequence[Any], shared: Any) -> Iterator[Image]:
    """Frames of an enhanced file; of one image a file, scanners write much to the top level."""
    sequence = header.get("DimensionIndexSequence") or []
    dimensions = [one.get("DimensionIndexPointer") for one in sequence]
    in_time = next((i for i, of in enumerate(dimensions) if of in _OF_TIME), None)
    heart, content = "CardiacSynchronizationSequence", "FrameContentSequence"
    for frame, own in enumerate(groups):
        value = functools.partial(group_value, header, (own, shared))
        actual_delay = _number(value(heart, "ActualCardiacTriggerDelayTime"))
        complex_part = value("MRImageFrameTypeSequence", "ComplexImageComponent")
        kind = value("MRImageFrameTypeSequence", "FrameType") or header.get("ImageType")
        top = _image(path, header, frame, trigger=None)
        indices = value(content, "DimensionIndexValues") if in_time is not None else None
        order = top.temporal if indices is None else _number(np.ravel(indices)[in_time])
        yield dataclasses.replace(
            top,
            orientation=_numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            position=_numbers(value("PlanePositionSequence", "ImagePositionPatient"), 3),
            spacing=_numbers(value("PixelMeasuresSequence", "PixelSpacing"), 2),
            thickness=_number(value("PixelMeasuresSequence", "SliceThickness")) or THICKNESS_MM,
            in_stack=_number(value(content, "InStackPositionNumber")),
            trigger=_number(header.get("TriggerTime")),
            delay=_known(_number(value(heart, "NominalCardiacTriggerDelayTime")), actual_delay),
            actual_delay=actual_delay,
            temporal=_known(_number(value(content, "TemporalPositionIndex")), order),
            clock=_known(_moment(value(content, "FrameAcquisitionDateTime")), top.clock),
            # By file and, within it, by frame: one file may hold all slices of a phase.
            instance=(top.instance or 0.0) + (frame / MAX_FILES if len(groups) > 1 else 0.0),
            acquisition=_number(value(content, "FrameAcquisitionNumber")) or top.acquisition,
            interval=_number(value(heart, "RRIntervalTimeNominal")) or top.interval,
            echo_time=_number(value("MREchoSequence", "EffectiveEchoTime")) or top.echo_time,
            image_type=_image_type(kind, complex_part),
        )
