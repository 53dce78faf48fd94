"""Images of a folder of DICOM files: those that may be cine, and what became of the others."""

import itertools
import operator
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.importers.dicom_headers import (
    FIELDS,
    MAX_FILES,
    MIN_PHASES,
    ColourImage,
    Image,
    is_dicom,
    read_file,
    read_headers,
)
from mvo_jax.data.importers.dicom_pixels import read_pixels, same_pixels
from mvo_jax.data.importers.walk import files_below
from mvo_jax.errors import UserError

_DAY_MS = 86_400_000.0
# In all images of a series or in none.
_GIVEN = (
    "orientation", "position", "spacing", "study", "frame_of_reference", "sequence", "variant",
)  # fmt: skip
# What anonymisers write for every patient.
_NOBODY = re.compile(
    r"(?:anon(?:ym\w*)?|unknown|none|null|n/?a|test|x+|0+|de-?identified|removed|redacted)"
    r"(?:[\^ _-]*(?:patient|name|id))?|patient"
)
# The suffix of an image without .dcm: none, that of Siemens, or the end of a UID.
_BARE_NAME = re.compile(r"|\.ima|\.\d+", re.IGNORECASE)
# ImageType of what is no cine; of complex images and of many slices in one picture, too.
_TYPES = {
    "phase maps": {"P"}
    | {f"{n}{m}" for n in ("PHASE", "VELOCITY") for m in ("", "MAP", " MAP", "_MAP")},
    "real or imaginary parts": {"R", "REAL", "R_FFE", "I", "IMAGINARY", "I_FFE"},
    "projections": {"MIP", "MINIP", "MNIP", "PROJECTION IMAGE"},
    "mosaics": {"MOSAIC"},
}
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

K = TypeVar("K")
T = TypeVar("T")


@dataclass
class Account:
    """What became of the images of a folder, or of one slice."""

    found: int = 0
    left: Counter[str] = field(default_factory=Counter)  # reason -> images that are not used
    notes: list[str] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)  # all of a folder, each once

    def count(self, number: int, reason: str, note: str) -> None:
        """Leave so many images out, if any, with a sentence."""
        if number:
            self.left[reason] += number
            self.notes.append(note)

    def leave(self, images: Iterable[Image], reason: str, why: str = "") -> None:
        """Leave images out, with a sentence a series."""
        for name, number in Counter(image.name for image in images).items():
            self.count(number, reason, f"{name}: {number} images left out, {why or reason}")


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by their keys, both in the order in which they come."""
    out: dict[K, list[T]] = {}
    for item in items:
        out.setdefault(key(item), []).append(item)
    return out


def find_images(series: Series, options: Options, account: Account) -> list[Image]:
    """Headers of the images that may be the cine of a patient.

    Raises:
        UserError: a file that cannot be read, no image at all, none of the series that
            ``options`` chooses, or images of several patients.
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
            note = f"{printable(path.name)} left out, a colour image (a screenshot?)"
            account.count(1, "colour", note)
            continue
        if not found and read_file(path, specific_tags=["Modality"]).get("Modality") == "RTSTRUCT":
            note = f"{printable(path.name)} left out, contours (RTSTRUCT): export what is drawn"
            account.count(1, "contours that are not read", f"{note} as DICOM SEG, NRRD or NIfTI")
        elif not found:
            account.left["no image"] += 1
        images += found
    account.found = len(images) + sum(account.left.values())
    if not images:
        if colour:
            raise colour[0]
        cause = f"{printable(series.path)} holds no DICOM image"
        raise UserError(cause, "leave it out of the source")
    images = _with_one_clock(images)
    account.notes += _missing_parts(images)
    account.images = _without_copies(images, account)
    _check_patient(series, account.images, options)
    images = [image for image in account.images if image.modality != "SEG"]
    if drawn := len(account.images) - len(images):
        account.left["of segmentations"] += drawn
    if not images:
        cause = f"{printable(series.path)} holds no cine: {drawn} images of segmentations"
        raise UserError(cause, "put them into the folder of the cine they belong to")
    by_kind = grouped(_chosen(series, options, images, account), _other_kind)
    kept = by_kind.pop("", [])
    if not kept:
        kinds = ", ".join(f"{len(them)} images of {kind}" for kind, them in by_kind.items())
        cause = f"{printable(series.path)} holds no cine: {kinds}"
        raise UserError(cause, "leave it out of the source")
    for kind, them in by_kind.items():
        account.leave(them, kind)
    kept = _without_copied_series(kept, account)
    _check_tags(series, kept)
    return kept


def _check_tags(series: Series, images: list[Image]) -> None:
    """Refuse a series where some images lack what would make them pass as another stack."""
    for them in grouped(images, lambda image: image.series).values():
        for name in _GIVEN:
            lacking, tag = [i for i in them if not getattr(i, name)], FIELDS[name]["tags"][0]
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
    clocks = {(image.series, image.clock) for image in images}
    moments = {(image.series, image.moment) for image in images}
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
    """Every image once; a UID that others have too is no sign of a copy if the pixels differ."""
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
    account.count(copies, "copies", f"{copies} copies (same SOPInstanceUID) left out")
    return list(kept.values())


def _without_copied_series(images: list[Image], account: Account) -> list[Image]:
    """Every series once: one whose images are those of another by place, time and pixels goes.

    A second export has UIDs, numbers and names of its own, and the noise of a scan it has not.
    """
    groups = grouped(images, operator.attrgetter("study", "frame_of_reference", "series"))
    kept: dict[str, list[list[Image]]] = defaultdict(list)  # by appearance of their images
    copies: set[int] = set()
    for group in sorted(groups.values(), key=lambda g: (-len(g), g[0].series_number or 0)):
        first = next((one for one in kept[_appearance(group[0])] if _is_copy(group, one)), None)
        if first is None:
            for appearance in set(map(_appearance, group)):
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
    ordered = (sorted(them, key=lambda i: i.instance or 0.0) for them in (group, other))
    mine, theirs = (grouped(them, _appearance) for them in ordered)
    if any(len(theirs.get(at, ())) < len(them) for at, them in mine.items()):
        return False
    matches = [pair for at, them in mine.items() for pair in zip(them, theirs[at], strict=False)]

    def equal(pairs: list[tuple[Image, Image]]) -> bool:
        sides = (read_pixels([[i] for i in side]) for side in zip(*pairs, strict=True))
        return all(map(np.array_equal, *sides))

    try:
        return equal(matches[:1]) and equal(matches)  # one is enough to tell most that differ
    except UserError:  # reading the slices will say so
        return False


def _chosen(series: Series, options: Options, images: list[Image], account: Account) -> list[Image]:
    if options.series is None:
        return images
    wanted = options.series.strip().casefold()
    parts = grouped(
        images, lambda i: wanted in (str(i.series_number), i.description.strip().casefold())
    )
    if True not in parts:
        there = ", ".join(sorted({image.name for image in images})[:8])
        cause = f"{printable(series.path)} has no series {options.series!r}; it has {there}"
        raise UserError(cause, "give --series the number or the description of one of them")
    account.leave(parts.get(False, []), "other series", "not --series")
    return parts[True]


def _check_patient(series: Series, images: list[Image], options: Options) -> None:
    """Refuse images of several people, unless the folder's name says whose they are."""
    if options.patient_from != "header":
        return
    patients = sorted({image.patient_id.strip() for image in images} - {""})
    if len(patients) > 1:
        of = f"{len(patients)} patients: {', '.join(map(printable, patients[:4]))}"
    elif what := differ_in_person(images):
        of = f"one PatientID that differ in {what}: several people"
    else:
        return
    raise UserError(
        f"{printable(series.path)} holds images of {of}",
        "sort them into one folder a patient; if the headers are wrong, --patient_from=folder",
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


def _other_kind(image: Image) -> str:
    """What an image is instead of cine, as far as its header says it surely; else empty."""
    for kind, types in _TYPES.items():
        if types & set(image.image_type):
            return kind
    if image.modality in _NO_MR:
        return f"modality {image.modality}"
    is_cine = "cine" in image.words.casefold()  # "cine after LGE" is cine
    words = [*_NO_PLAIN_CINE.items(), *([] if is_cine else _NO_CINE.items())]
    return next((kind for kind, pattern in words if _says(image, pattern)), "")


def late_enhancement(image: Image) -> bool:
    """Whether an image is called late enhancement, phase-sensitive or not."""
    return "cine" not in image.words.casefold() and _says(image, _NO_CINE["late enhancement"])


def _says(image: Image, pattern: str) -> bool:
    words = image.words.casefold()
    return re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", words) is not None


def _paths(series: Series) -> tuple[list[Path], list[Path]]:
    """The DICOM files of a series, and what may have been some; other kinds are passed over."""
    if series.path.is_file():
        return [series.path], []
    folders = series.detail.get("files", [series.path])
    found: Any = (path for folder in folders for path in files_below(folder))
    if series.detail.get("loose"):
        found = sorted(p for p in series.path.iterdir() if not p.is_dir() and p.name[0] != ".")
    paths, lost = [], []
    for path in found:
        if path.name.upper() == "DICOMDIR":  # lists what lies below it
            continue
        bare = _BARE_NAME.fullmatch(path.suffix) is not None
        if is_dicom(path):
            paths.append(path)
        elif path.name.lower().endswith(".dcm.gz") or (
            bare and (not path.exists() or path.stat().st_size == 0)
        ):
            lost.append(path)
        if len(paths) > MAX_FILES:
            cause = f"{printable(series.path)} holds more than {MAX_FILES:,} DICOM files"
            raise UserError(cause, "sort them into one folder a patient below the source")
    return paths, lost
