"""DICOM cine: classic single-frame, enhanced multi-frame and old multi-frame.

One folder directly below the source is one patient (or study); a source that holds DICOM files
itself is one. LGE masks come as NIfTI files, matched by their world coordinates.
"""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
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
    printable,
    slice_name,
)
from mvo_jax.data.importers.nifti import below, find_masks, read_mask
from mvo_jax.data.importers.volume import (
    Volume,
    as_displayed,
    check_mask_is_seen,
    display_flips,
    mask_on_cine,
)
from mvo_jax.data.importers.walk import files_below, subfolders
from mvo_jax.errors import UserError

MAX_FILES = 20_000  # of one patient; also frames of one file
_MIN_PHASES = 8  # fewer images at one place are a localiser or a map, no cine
_PHASE_IMAGES = {"P", "PHASE", "PHASE MAP", "VELOCITY"}
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
# What tells the phases of a slice apart, best first.
_TIMES = (
    ("TriggerTime", "trigger"),
    ("NominalCardiacTriggerDelayTime", "delay"),
    ("TemporalPositionIdentifier", "temporal"),
    ("InstanceNumber", "instance"),
)


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


@dataclasses.dataclass(frozen=True)
class Slice:
    """Images of one slice in time order."""

    images: tuple[Image, ...]

    @property
    def first(self) -> Image:
        """Any of them stands for the geometry."""
        return self.images[0]


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM mark, or is named ``.dcm``."""
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def recognise(source: Path) -> bool:
    """A DICOM file, or one among the first files of a folder."""
    if source.is_file():
        return is_dicom(source)
    return any(is_dicom(path) for path, _ in zip(files_below(source), range(500), strict=False))


def find(source: Path, options: Options) -> Iterator[Series]:
    """One series for every folder below the source that holds DICOM, and one for loose files."""
    if source.is_file():
        yield Series(name=source.stem, path=source)
        return
    masks = find_masks(source, options)

    def series(folder: Path) -> Series:
        row = options.table.row(folder.name)
        detail: dict[str, Any] = {}
        if row is not None and row.mask is not None:
            detail["mask"] = below(source, row.mask, options.table.path)
        elif folder.name in masks:
            detail["mask"] = masks[folder.name]
        return Series(name=folder.name, path=folder, detail=detail)

    with os.scandir(source) as entries:
        loose = any(is_dicom(Path(e.path)) for e in entries if not e.is_dir() and e.name[0] != ".")
    if loose:
        one = series(source)
        yield dataclasses.replace(one, detail={**one.detail, "loose": True})
    for folder in subfolders(source):
        if any(is_dicom(path) for path in files_below(folder)):
            yield series(folder)


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the short-axis stack of one patient."""
    slices = read_stack(series, options)
    cines = read_pixels(slices)
    mask = read_mask(series.detail["mask"], options) if "mask" in series.detail else None
    header = slices[0].first.patient_id.strip()
    patient = header if header and options.patient_from == "header" else series.name
    out = []
    for z, (one, cine) in enumerate(zip(slices, cines, strict=True)):
        image = one.first
        pixel_mm = image.spacing
        if pixel_mm is None and options.pixel_mm is not None:
            pixel_mm = (options.pixel_mm, options.pixel_mm)
        volume = volume_of(series.path, image, cine)
        labels, own = (None, None) if mask is None else mask_on_cine(mask, volume)
        out.append(
            CineSlice(
                case_id=slice_name(series.name, z, len(slices)),
                patient_id=patient,
                slice_index=z,
                source=str(series.path),
                cine=volume.data[:, 0],
                pixel_mm=pixel_mm,
                lge_mask=None if labels is None else labels[0],
                has_mvo=None if own is None else bool((own[0] == MVO).any()),
                position_mm=image.distance,
            )
        )
    if mask is not None:
        check_mask_is_seen(mask, series.path, [s.lge_mask for s in out])
    return out


def volume_of(path: Path, image: Image, cine: np.ndarray) -> Volume:
    """One slice with its world geometry, as displayed.

    Args:
        path: for messages.
        image: header that stands for the slice.
        cine: ``[T, H, W]`` as stored.
    """
    spacing = image.spacing or (1.0, 1.0)
    data, affine = cine[:, None], np.diag([spacing[1], spacing[0], image.thickness, 1.0])
    oriented = image.orientation is not None and image.position is not None
    if image.orientation is not None and image.position is not None:
        to_ras = np.array([-1.0, -1.0, 1.0])  # DICOM counts to the left and to posterior
        column, row = np.array(image.orientation[:3]), np.array(image.orientation[3:])
        affine[:3, 0] = column * spacing[1] * to_ras
        affine[:3, 1] = row * spacing[0] * to_ras
        affine[:3, 2] = np.cross(column, row) * image.thickness * to_ras
        affine[:3, 3] = np.array(image.position) * to_ras
        data, affine = as_displayed(data, affine)
    return Volume(path, data, affine, spacing, oriented)


def flipped(image: Image) -> tuple[bool, bool]:
    """Whether ``volume_of`` reverses (rows, columns)."""
    if image.orientation is None or image.position is None:
        return False, False
    to_ras = np.array([-1.0, -1.0, 1.0])
    return display_flips(
        np.array(image.orientation[:3]) * to_ras, np.array(image.orientation[3:]) * to_ras
    )


def read_stack(series: Series, options: Options) -> list[Slice]:
    """Headers of a patient's short-axis cine, slice by slice, each in time order.

    Groups images by series, orientation, size, spacing and kind; orders slices along their normal
    and phases by trigger time (or what stands in for it).

    Raises:
        UserError: nothing, or no single cine stack, was found; incomplete slices. The message
            lists what is there.
    """
    groups: dict[tuple, list[Image]] = defaultdict(list)
    for image in _images(series):
        if not _PHASE_IMAGES & set(image.image_type):
            groups[image.group].append(image)
    if not groups:
        raise UserError(
            f"{printable(series.path)} holds no DICOM image", "leave it out of the source"
        )
    stacks: dict[tuple, dict[Any, list[Image]]] = defaultdict(dict)
    for key, images in groups.items():
        places: dict[Any, list[Image]] = defaultdict(list)
        for image in images:
            distance = image.distance
            place = (
                round(distance * 2) / 2  # half a millimetre
                if distance is not None
                else (str(image.path) if image.frame is not None else str(image.path.parent))
            )
            places[place].append(image)
        for place, there in places.items():
            if len(there) >= _MIN_PHASES:
                stack = stacks[key[1:4]]
                if place in stack:
                    raise _ambiguous(series, groups, "two series show the same slice")
                stack[place] = there
    if not stacks:
        raise _ambiguous(series, groups, f"no slice has {_MIN_PHASES} phases or more: no cine")
    sizes = sorted((len(stack) for stack in stacks.values()), reverse=True)
    # A long-axis view is a slice or three of its own orientation beside the short-axis stack.
    if len(sizes) > 1 and (sizes[0] < 3 or sizes[1] > sizes[0] / 2):
        raise _ambiguous(series, groups, "several orientations, and none is plainly the short axis")
    stack = max(stacks.values(), key=len)
    patients = sorted({i.patient_id.strip() for images in stack.values() for i in images} - {""})
    if len(patients) > 1 and options.patient_from == "header":
        raise UserError(
            f"{printable(series.path)} holds images of {len(patients)} patients: "
            f"{', '.join(printable(p) for p in patients[:4])}",
            "sort them into one folder a patient; if the headers are wrong, --patient_from=folder",
        )
    ordered = [stack[place] for place in sorted(stack)]
    return [Slice(tuple(_in_time(series, images, groups))) for images in _even(series, ordered)]


def _even(series: Series, stack: list[list[Image]]) -> list[list[Image]]:
    """Check that no slice lacks phases, as far as that can be known."""
    counts = [len(images) for images in stack]
    usual = Counter(counts).most_common(1)[0][0]
    for images in stack:
        expected = images[0].cardiac_images or usual
        if len(images) % expected:
            raise UserError(
                f"{printable(series.path)}: the slices have {counts} images, {expected} are "
                f"expected at {images[0].position}",
                "export the whole series again, or leave that slice out",
            )
    return stack


def _in_time(series: Series, images: list[Image], groups: dict) -> list[Image]:
    """Phases of one slice in time order; of repeated acquisitions the last complete one."""
    expected = images[0].cardiac_images or len(images)
    if len(images) > expected:
        last = sorted(images, key=lambda i: (i.acquisition, i.instance or 0.0))[-expected:]
        images = last
    for name, field in _TIMES:
        values = [getattr(image, field) for image in images]
        if any(value is None for value in values) or len(set(values)) == 1:
            continue
        repeats = set(Counter(values).values())
        if len(repeats) > 1:
            raise _ambiguous(series, groups, f"{name} repeats unevenly within a slice")
        kept = {}
        for image in sorted(images, key=lambda i: (i.acquisition, i.instance or 0.0)):
            kept[getattr(image, field)] = image  # the last of each time
        if len(kept) < _MIN_PHASES:
            continue
        times = np.array(sorted(kept))
        gaps = np.diff(times)
        if field != "instance" and gaps.max() > 1.7 * np.median(gaps):
            raise UserError(
                f"{printable(series.path)}: a phase is missing between {name} "
                f"{times[gaps.argmax()]:g} and {times[gaps.argmax() + 1]:g}",
                "export the whole series again, or leave it out",
            )
        return [kept[time] for time in sorted(kept)]
    raise _ambiguous(series, groups, "nothing tells the phases of a slice apart")


def _ambiguous(series: Series, groups: dict[tuple, list[Image]], why: str) -> UserError:
    """A refusal with a table of what was found."""
    found = []
    for key, images in groups.items():
        places = len({round(i.distance or 0.0, 1) for i in images})
        found.append(
            f"{printable(images[0].description) or 'series'} {key[2][0]}x{key[2][1]} at "
            f"{key[1]}: {places} slices, {len(images)} images"
        )
    table = " | ".join(sorted(found)[:8]) + (" | ..." if len(found) > 8 else "")
    return UserError(
        f"{printable(series.path)}: {why}. Found: {table}",
        "leave only the short-axis cine in the folder",
    )


def _images(series: Series) -> Iterator[Image]:
    """Headers of all DICOM images of a series; files of other kinds are passed over."""
    if series.path.is_file():
        yield from read_headers(series.path)
        return
    paths: Any = files_below(series.path)
    if series.detail.get("loose"):
        paths = sorted(p for p in series.path.iterdir() if not p.is_dir() and p.name[0] != ".")
    count = 0
    for path in paths:
        if not is_dicom(path):
            continue
        count += 1
        if count > MAX_FILES:
            raise UserError(
                f"{printable(series.path)} holds more than {MAX_FILES:,} DICOM files",
                "sort them into one folder a patient below the source",
            )
        yield from read_headers(path)


def read_headers(path: Path) -> Iterator[Image]:
    """Headers of the images in a file.

    Raises:
        UserError: damaged, colour, or claiming more than can be read.
    """
    import pydicom

    if path.stat().st_size == 0:
        raise UserError(f"{printable(path)} is empty (0 bytes)", "copy it again")
    try:
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
    except UserError:
        raise
    except Exception as error:  # pydicom raises what the damaged bytes happen to lead to
        text = printable((str(error).splitlines() or [""])[0])[:120]
        raise UserError(
            f"{printable(path)} cannot be read as DICOM ({type(error).__name__}: {text})",
            "copy it again; it may be cut off",
        ) from error


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or len(value) != count:
        return None
    return tuple(float(v) for v in value)


def _image(path: Path, header: Any, frame: int | None, **changes: Any) -> Image:
    spacing = _numbers(header.get("PixelSpacing"), 2)
    fields: dict[str, Any] = {
        "path": path,
        "frame": frame,
        "series": str(header.get("SeriesInstanceUID", "")),
        "description": str(header.get("SeriesDescription", "")),
        "patient_id": str(header.get("PatientID", "") or ""),
        "image_type": tuple(str(v).upper() for v in header.get("ImageType", None) or ()),
        "shape": (int(header.Rows), int(header.Columns)),
        "spacing": spacing,
        "orientation": _numbers(header.get("ImageOrientationPatient"), 6),
        "position": _numbers(header.get("ImagePositionPatient"), 3),
        "thickness": _number(header.get("SliceThickness")) or 8.0,
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
            thickness=_number(value("PixelMeasuresSequence", "SliceThickness")) or 8.0,
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


def read_pixels(slices: Sequence[Slice]) -> list[np.ndarray]:
    """Grey values of slices, each ``[T, H, W]``, after rescaling and with black at the low end.

    Raises:
        UserError: too large, damaged, or compressed in a way no installed decoder reads.
    """
    images = [image for one in slices for image in one.images]
    check_size(images[0].path.parent, sum(i.shape[0] * i.shape[1] for i in images), 4)
    files: dict[Path, np.ndarray] = {}
    out = []
    for one in slices:
        frames = []
        for image in one.images:
            if image.frame is None:
                frames.append(_pixels(image.path))
                continue
            if image.path not in files:
                files[image.path] = _pixels(image.path)
            frames.append(files[image.path][image.frame])
        out.append(np.stack(frames))
    return out


def _pixels(path: Path) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_modality_lut, get_decoder

    syntax = ""
    try:
        data = pydicom.dcmread(path)
        compressed = data.file_meta.TransferSyntaxUID.is_compressed
        syntax = data.file_meta.TransferSyntaxUID.name if compressed else ""
        raw = data.pixel_array
        if data.get("PhotometricInterpretation", "") == "MONOCHROME1":  # low values are white
            raw = np.float32(2 ** int(data.BitsStored) - 1) - raw.astype(np.float32)
        sequence = "PixelValueTransformationSequence"
        shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
        if sequence in shared:
            step = shared[sequence][0]
            return raw * np.float32(step.RescaleSlope) + np.float32(step.RescaleIntercept)
        values = apply_modality_lut(raw, data)
        return values.astype(np.float32) if values.dtype == np.float64 else values
    except OSError:
        raise
    except Exception as error:
        text = printable((str(error).splitlines() or [""])[0])[:120]
        if syntax and not get_decoder(data.file_meta.TransferSyntaxUID).is_available:
            raise UserError(
                f"{printable(path)} is compressed ({syntax}) and no decoder for it is installed",
                "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress the "
                "files (gdcmconv --raw)",
            ) from error
        what = f"compressed pixels ({syntax})" if syntax else "pixels"
        raise UserError(
            f"{printable(path)}: the {what} cannot be read ({type(error).__name__}: {text})",
            "copy it again; it may be cut off",
        ) from error


DICOM = Importer("dicom", "DICOM cine, single-frame or multi-frame", recognise, find, load)
