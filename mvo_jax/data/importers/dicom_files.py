"""Images of a folder of DICOM files: those that may be cine, and what became of the others."""

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.importers.dicom_headers import (
    MAX_FILES,
    ColourImage,
    Image,
    is_dicom,
    read_file,
    read_headers,
)
from mvo_jax.data.importers.dicom_pixels import read_pixels, same_pixels
from mvo_jax.data.importers.walk import files_below
from mvo_jax.errors import UserError

MIN_PHASES = 8  # fewer images at one place are a localiser or a map, no cine
_DAY_MS = 86_400_000.0
# In all images of a series or in none.
_GIVEN: dict[str, Callable[[Image], Any]] = {
    "ImageOrientationPatient": lambda image: image.orientation,
    "ImagePositionPatient": lambda image: image.position,
    "PixelSpacing": lambda image: image.spacing,
    "StudyInstanceUID": lambda image: image.study,
    "FrameOfReferenceUID": lambda image: image.frame_of_reference,
    "ScanningSequence": lambda image: image.sequence[0],
    "SequenceVariant": lambda image: image.sequence[1],
}
# What anonymisers write for every patient.
_NOBODY = re.compile(
    r"(?:anon(?:ym\w*)?|unknown|none|null|n/?a|test|x+|0+|de-?identified|removed|redacted)"
    r"(?:[\^ _-]*(?:patient|name|id))?|patient"
)
# The suffix of an image without .dcm: none, that of Siemens, or the end of a UID.
_BARE_NAME = re.compile(r"|\.ima|\.\d+", re.IGNORECASE)
_PHASE_IMAGES = {"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP", "VELOCITYMAP", "PHASEMAP"}
_PROJECTIONS = {"MIP", "MINIP", "MNIP", "PROJECTION IMAGE"}
_PARTS = {"R", "REAL", "R_FFE", "I", "IMAGINARY", "I_FFE"}  # of complex images
# Words of series that are no cine, whole or before an ending; the name of the sequence counts too.
_NO_CINE = {
    "perfusion": r"perf(?:usion)?",
    "late enhancement": r"lge|psir|late.?(?:gad|enh)\w*|delayed.?enh\w*|viability",
    "flow": r"q?flow",
    "relaxation times": r"molli|shmolli|look.?locker|ti.?scout|t[12]\*?.?map\w*",
}
# These say it of a series that is called cine, too.
_NO_PLAIN_CINE = {
    "tagging": r"tag(?:s|ged|ging)?|grid|c?spamm",
    "flow": r"venc\d*|phase.?contrast|fl\dd\d?_v\d+\w*",
    "strain encoding": r"dense|senc",
}
# Of images that are no MR; one that is missing, or OT of secondary captures, says nothing.
_NO_MR = {"CT", "US", "NM", "PT", "XA", "RF", "CR", "DX", "IVUS"}


@dataclass
class Account:
    """What became of the images of a folder.

    Attributes:
        found: how many there are.
        left: reason -> images that are not used.
        notes: sentences about them.
        images: all of them, each once; of the folder, not of its slices.
    """

    found: int = 0
    left: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)

    def leave(self, images: Iterable[Image], reason: str, why: str = "") -> None:
        """Leave images out, with a sentence a series."""
        series: Counter[str] = Counter(image.name for image in images)
        for name, count in series.items():
            self.left[reason] += count
            self.notes.append(f"{name}: {count} images left out, {why or reason}")


def find_images(series: Series, options: Options, account: Account) -> list[Image]:
    """Headers of the images that may be the cine of a patient.

    Copies (equal SOPInstanceUID and header) are used once. Colour images, reports, and what the
    headers call phase maps, tagging, perfusion and the like are left out.

    Args:
        series: a folder or a file.
        options: ``series`` chooses one of several.
        account: gets what is left out.

    Raises:
        UserError: a file that cannot be read, no image at all, none of that series, or images of
            several patients.
    """
    paths, lost = _paths(series)
    if lost:
        account.notes.append(
            f"{len(lost)} files are packed, empty or links that lead nowhere, and may be images: "
            f"{', '.join(printable(path.name) for path in lost[:3])}"
        )
    account.found = len(paths)
    images: list[Image] = []
    colour: list[ColourImage] = []
    for path in paths:
        try:
            found = list(read_headers(path))
        except ColourImage as error:
            colour.append(error)
            account.left["colour"] += 1
            account.notes.append(f"{printable(path.name)} left out, a colour image (a screenshot?)")
            continue
        if not found and _is_structure_set(path):
            account.left["contours that are not read"] += 1
            account.notes.append(
                f"{printable(path.name)} left out, contours (RTSTRUCT): export what is drawn as "
                "DICOM SEG, NRRD or NIfTI"
            )
        elif not found:
            account.left["no image"] += 1
        images += found
    account.found = len(images) + sum(account.left.values())
    if not images:
        if colour:
            raise colour[0]
        raise UserError(
            f"{printable(series.path)} holds no DICOM image", "leave it out of the source"
        )
    images = _with_one_clock(images)
    account.notes += _missing_parts(images)
    account.images = _without_copies(images, account)
    _check_patient(series, account.images, options)
    drawn = [image for image in account.images if image.modality == "SEG"]
    if drawn:
        account.left["of segmentations"] += len(drawn)
    images = [image for image in account.images if image.modality != "SEG"]
    if not images:
        raise UserError(
            f"{printable(series.path)} holds no cine: {len(drawn)} images of segmentations",
            "put them into the folder of the cine they belong to",
        )
    images = _chosen(series, options, images, account)
    kept = []
    others: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        kind = _other_kind(image)
        if kind is None:
            kept.append(image)
        else:
            others[kind].append(image)
    if not kept:
        kinds = ", ".join(f"{len(them)} images of {kind}" for kind, them in others.items())
        raise UserError(
            f"{printable(series.path)} holds no cine: {kinds}", "leave it out of the source"
        )
    for kind, them in others.items():
        account.leave(them, kind)
    kept = _without_copied_series(kept, account)
    _check_tags(series, kept)
    return kept


def _check_tags(series: Series, images: list[Image]) -> None:
    """Check that what tells images apart is there in all images of a series, or in none.

    Raises:
        UserError: some lack it, by which they would pass as another stack.
    """
    by_series: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        by_series[image.series].append(image)
    for them in by_series.values():
        for tag, value in _GIVEN.items():
            lacking = [image for image in them if not value(image)]
            if len(them) >= MIN_PHASES and 0 < len(lacking) < len(them):
                raise UserError(
                    f"{printable(series.path)}: {len(lacking)} of {len(them)} images of "
                    f"{lacking[0].name} have no {tag} ({printable(lacking[0].path.name)} for one)",
                    f"export the series again with {tag}, or leave those files out",
                )


def _with_one_clock(images: list[Image]) -> list[Image]:
    """Images with times of day of one tag, that go on growing into the next day.

    AcquisitionTime may be that of the series where AcquisitionDateTime is that of the image.
    """
    clocks, moments = (
        {(image.series, getattr(image, name)) for image in images} for name in ("clock", "moment")
    )
    if len(moments) > len(clocks) and all(image.moment is not None for image in images):
        images = [replace(image, clock=image.moment) for image in images]
    latest: dict[str, float] = defaultdict(float)
    for image in images:
        latest[image.study] = max(latest[image.study], image.clock or 0.0)
    return [
        image
        if image.clock is None or latest[image.study] - image.clock < _DAY_MS / 2
        else replace(image, clock=image.clock + _DAY_MS)
        for image in images
    ]


def _missing_parts(images: Iterable[Image]) -> list[str]:
    """A sentence on each object that was written in several files of which some are not here."""
    there: dict[tuple[str, int, str], set[int]] = defaultdict(set)
    for image in images:
        name, number, total = image.part
        if name and total:
            there[name, total, image.name].add(number)
    return [
        f"{name}: {len(numbers)} of {total} parts of a concatenation are here: slices or phases "
        "may be missing"
        for (_, total, name), numbers in there.items()
        if len(numbers) < total
    ]


def _without_copies(images: list[Image], account: Account) -> list[Image]:
    """Every image once. A UID that an anonymiser gave to all images is no sign of a copy.

    Neither is it where the pixels differ, as in filtered images that kept the UID.
    """
    kept: dict[Any, Image] = {}
    same: dict[tuple[Path, Path], bool] = {}
    for image in images:
        key = replace(image, path=Path()) if image.uid else image
        paths = kept.setdefault(key, image).path, image.path
        if paths not in same:
            same[paths] = paths[0] == paths[1] or same_pixels(*paths)
        if not same[paths]:
            kept[image] = image
    copies = len(images) - len(kept)
    if copies:
        account.left["copies"] += copies
        account.notes.append(f"{copies} copies (same SOPInstanceUID) left out")
    return list(kept.values())


def _without_copied_series(images: list[Image], account: Account) -> list[Image]:
    """Every series once: one whose images are those of another by place, time and pixels goes.

    A second export has UIDs, numbers and names of its own, and the noise of a scan it has not.
    """
    groups: dict[tuple[str, ...], list[Image]] = defaultdict(list)
    for image in images:
        groups[image.study, image.frame_of_reference, image.series].append(image)
    ordered = sorted(groups.values(), key=lambda g: (-len(g), g[0].series_number or 0))
    kept: dict[str, list[list[Image]]] = defaultdict(list)  # by appearance of their images
    copies: set[int] = set()
    for group in ordered:
        first = next((one for one in kept[_appearance(group[0])] if _is_copy(group, one)), None)
        if first is None:
            for appearance in {_appearance(image) for image in group}:
                kept[appearance].append(group)
            continue
        copies |= set(map(id, group))
        why = f"copies of {first[0].name} (same place, time and pixels)"
        account.leave(group, "copies", why)
    return [image for image in images if id(image) not in copies]


def _appearance(image: Image) -> str:
    """Place, time and grid of an image."""
    grid = image.shape, image.spacing, image.orientation, image.position, image.location
    times = image.trigger, image.delay, image.actual_delay, image.temporal
    return repr((grid, *times, image.echo, image.echo_time))


def _is_copy(group: list[Image], other: list[Image]) -> bool:
    """Whether each image of a series is one of another series, by appearance and every pixel."""
    theirs: dict[str, list[Image]] = defaultdict(list)
    for image in sorted(other, key=lambda i: i.instance or 0.0):
        theirs[_appearance(image)].append(image)
    matches = []
    for image in sorted(group, key=lambda i: i.instance or 0.0):
        left = theirs[_appearance(image)]
        if not left:
            return False
        matches.append((image, left.pop(0)))

    def equal(pairs: list[tuple[Image, Image]]) -> bool:
        mine, others = (read_pixels([[i] for i in side]) for side in zip(*pairs, strict=True))
        return all(map(np.array_equal, mine, others))

    try:
        return equal(matches[:1]) and equal(matches)  # one is enough to tell most that differ
    except UserError:  # reading the slices will say so
        return False


def _chosen(series: Series, options: Options, images: list[Image], account: Account) -> list[Image]:
    """The images of the series that the user named, by number or description."""
    if options.series is None:
        return images
    wanted = options.series.strip().casefold()
    kept = [
        image
        for image in images
        if wanted in (str(image.series_number), image.description.strip().casefold())
    ]
    if not kept:
        there = ", ".join(sorted({image.name for image in images})[:8])
        raise UserError(
            f"{printable(series.path)} has no series {options.series!r}; it has {there}",
            "give --series the number or the description of one of them",
        )
    names = {id(image) for image in kept}
    account.leave((i for i in images if id(i) not in names), "other series", "not --series")
    return kept


def _check_patient(series: Series, images: list[Image], options: Options) -> None:
    """Check that images are of one person, unless the folder's name says so.

    Raises:
        UserError: they have several PatientIDs, or dates of birth, sexes or names under one.
    """
    if options.patient_from != "header":
        return
    remedy = "sort them into one folder a patient; if the headers are wrong, --patient_from=folder"
    patients = sorted({image.patient_id.strip() for image in images} - {""})
    if len(patients) > 1:
        raise UserError(
            f"{printable(series.path)} holds images of {len(patients)} patients: "
            f"{', '.join(printable(p) for p in patients[:4])}",
            remedy,
        )
    if what := differ_in_person(images):
        raise UserError(
            f"{printable(series.path)} holds images of one PatientID that differ in {what}: "
            "several people",
            remedy,
        )


def names_nobody(text: str) -> bool:
    """Whether a PatientID or PatientName is what anonymisers write for everybody."""
    return _NOBODY.fullmatch(text.strip().casefold()) is not None


def differ_in_person(images: Sequence[Image]) -> str:
    """What says that images of one PatientID are of several people; empty where nothing does.

    Names may differ by parts that one lacks, and where all state one date of birth.
    """
    births, sexes, names = ({image.person[i] for image in images} - {""} for i in range(3))
    if len(births) > 1 or len(sexes) > 1:
        return "dates of birth" if len(births) > 1 else "sex"
    if births and all(image.person[0] for image in images):
        return ""
    plain = [
        frozenset(re.findall(r"[^\W_]+", unicodedata.normalize("NFC", name).casefold()))
        for name in names
        if not names_nobody(name)
    ]
    pairs = itertools.combinations(plain, 2)
    return "names" if any(not (a <= b or b <= a) for a, b in pairs) else ""


def _other_kind(image: Image) -> str | None:
    """What an image is instead of cine, as far as its header says it surely."""
    if _PHASE_IMAGES & {kind.replace("_", " ") for kind in image.image_type}:
        return "phase maps"
    if _PARTS & set(image.image_type):
        return "real or imaginary parts"
    if _PROJECTIONS & set(image.image_type):
        return "projections"
    if "MOSAIC" in image.image_type:  # many slices in one picture
        return "mosaics"
    if image.modality in _NO_MR:
        return f"modality {image.modality}"
    is_cine = "cine" in image.words.casefold()  # "cine after LGE" is cine
    words = [*_NO_PLAIN_CINE.items(), *([] if is_cine else _NO_CINE.items())]
    return next((kind for kind, pattern in words if _says(image, pattern)), None)


def late_enhancement(image: Image) -> bool:
    """Whether an image is called late enhancement, phase-sensitive or not."""
    cine = "cine" in image.words.casefold()
    return not cine and _says(image, _NO_CINE["late enhancement"])


def _says(image: Image, pattern: str) -> bool:
    words = image.words.casefold()
    return re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", words) is not None


def _paths(series: Series) -> tuple[list[Path], list[Path]]:
    """The DICOM files of a series, and what may have been some; other kinds are passed over.

    Raises:
        UserError: more than any patient has.
    """
    if series.path.is_file():
        return [series.path], []
    folders = [part for key, part in series.detail.items() if key.startswith("folder ")]
    found: Any = (path for folder in folders or [series.path] for path in files_below(folder))
    if series.detail.get("loose"):
        found = sorted(p for p in series.path.iterdir() if not p.is_dir() and p.name[0] != ".")
    paths, lost = [], []
    for path in found:
        if path.name.upper() == "DICOMDIR":  # lists what lies below it
            continue
        if not is_dicom(path):
            packed = path.name.lower().endswith(".dcm.gz")
            if packed or (_BARE_NAME.fullmatch(path.suffix) and _is_nothing(path)):
                lost.append(path)
            continue
        paths.append(path)
        if len(paths) > MAX_FILES:
            raise UserError(
                f"{printable(series.path)} holds more than {MAX_FILES:,} DICOM files",
                "sort them into one folder a patient below the source",
            )
    return paths, lost


def _is_structure_set(path: Path) -> bool:
    """Whether a DICOM file without an image holds the contours of a radiotherapy structure set."""
    return read_file(path, specific_tags=["Modality"]).get("Modality") == "RTSTRUCT"


def _is_nothing(path: Path) -> bool:
    """Whether a file is empty or a link that leads nowhere."""
    return not path.exists() or path.stat().st_size == 0
