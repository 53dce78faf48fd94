"""DICOM cine: classic single-frame, enhanced multi-frame and old multi-frame.

LGE masks are files beside it (NIfTI, NRRD, DICOM SEG), matched by their world coordinates, or
segmentations and contours of cvi42 in the folder itself. docs/data.md says what each module does.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import (
    Importer,
    Options,
    RefusedSeries,
    Series,
    printable,
    quiet_readers,
    square_pixel,
)
from mvo_jax.data.importers.cvi42 import is_workspace
from mvo_jax.data.importers.dicom_drawings import read_drawings
from mvo_jax.data.importers.dicom_files import Account, differ_in_person, grouped, names_nobody
from mvo_jax.data.importers.dicom_headers import Image, is_dicom, read_headers
from mvo_jax.data.importers.dicom_pixels import count_beats, is_one_place, read_pixels
from mvo_jax.data.importers.dicom_seg import is_segmentation
from mvo_jax.data.importers.dicom_stack import Stack, read_stack
from mvo_jax.data.importers.masks import place_mask
from mvo_jax.data.importers.nifti import (
    below,
    cines_by_name,
    find_masks,
    named_in_table,
    without_cine,
)
from mvo_jax.data.importers.orientation import unit_directions
from mvo_jax.data.importers.sheets import even_grid
from mvo_jax.data.importers.volume import Volume
from mvo_jax.data.importers.walk import files_below, subfolders
from mvo_jax.data.names import composed
from mvo_jax.data.slices import CineSlice, Grid
from mvo_jax.errors import UserError

log = logging.getLogger(__name__)

_SHOWN_ALIKE = np.cos(np.radians(30))  # between axes of slices as they are displayed
_FIRST_FILES = 5  # of a folder, to see whose it is


def recognise(source: Path) -> bool:
    """A DICOM file, or one among the first files of a folder."""
    if source.is_file():
        return is_dicom(source)
    first = itertools.islice(files_below(source), 500)
    return any(is_dicom(path) and not is_segmentation(path) for path in first)


def find(source: Path, options: Options) -> Iterator[Series]:
    """One series for every folder below the source that holds DICOM, and one for loose files.

    Folders whose first files are of one examination and patient are the series of one patient, as
    scanners export them, unless a mask or a table names one of them.
    """
    if source.is_file():
        yield Series(name=source.stem, path=source)
        return
    masks = find_masks(source, options)
    drawings = {*masks.values(), *named_in_table(source, options)}
    workspaces = [path for path in files_below(source) if is_workspace(path)]
    used: dict[str, Path] = {}  # mask of each case
    taken: set[Path] = set()  # workspaces

    def series(folder: Path, parts: Sequence[Path] = (), **more: Any) -> Series:
        name = composed(folder.name)
        row = options.table.row(name)
        detail: dict[str, Any] = {}
        if row is not None and row.mask is not None:
            detail["mask"] = below(source, row.mask, options.table.path)
        elif name in masks:
            detail["mask"] = masks[name]
        used[name] = detail.get("mask", folder)
        own = [
            path
            for path in workspaces
            if composed(path.stem).removesuffix("_lge_mask") == name
            or (path.parent == source if "loose" in more else {folder, *parts} & set(path.parents))
        ]
        taken.update(own)
        if len(own) > 1:
            cause = f"{printable(own[1])} and {printable(own[0])} are both contours of {name!r}"
            detail["refused"] = cause, "leave one of them in the source"
        elif own:
            detail["workspace"] = own[0]
        if parts:
            detail["files"] = parts
        return Series(name=name, path=source if parts else folder, detail=detail | more)

    with os.scandir(source) as entries:
        files = [Path(e.path) for e in entries if not e.is_dir() and e.name[0] != "."]
    # A DICOMDIR lists what lies below it.
    images = (path for path in files if path.name.upper() != "DICOMDIR" and is_dicom(path))
    loose = [path for path in images if path not in drawings]
    firsts: dict[Path, Image | None] = {}
    for folder in subfolders(_unwrapped(source, masks, drawings)):
        if any(is_dicom(path) and path not in drawings for path in files_below(folder)):
            firsts[folder] = _first_image(files_below(folder))
    if loose:
        of = _examination(_first_image(loose))
        beside = [f.name for f, first in firsts.items() if of and _examination(first) == of]
        yield series(source, loose=True, beside=beside)

    def whose(folder: Path) -> Any:
        is_named = composed(folder.name) in masks or options.table.row(folder.name) is not None
        alone = is_named or options.patient_from == "folder"
        return folder if alone else _examination(firsts[folder]) or folder

    examinations = grouped(firsts, whose)
    about = _shared_names([first for first in firsts.values() if first is not None])
    for folders in examinations.values():
        first = firsts[folders[0]]
        patient = None if first is None else about.get(first.patient_id.strip())
        if len(folders) == 1:
            yield series(folders[0], patient=patient)
            continue
        name = "_".join(folder.name for folder in folders)[:60]
        is_all = (len(examinations) == 1 and not loose) or name == source.name
        yield series(source if is_all else source / name, folders, patient=patient)
    cines = cines_by_name(source, {*used.values(), *taken, *drawings})
    niftis = (path for path in cines if not is_dicom(path))
    choice = "--format=nifti reads the NIfTI files alone"
    for case, files in grouped(niftis, cines.__getitem__).items():
        which = printable(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        if case in used:
            said = f"{printable(case)} is read from its DICOM files"
            log.warning(f"{which} not read: {said} ({choice})")
            continue
        cause = f"{which}: a NIfTI cine by its name, and {printable(source)} is read as DICOM"
        remedy = f"keep each format in a folder of its own ({choice})"
        yield Series(case, files[0], detail={"refused": (cause, remedy)})
    yield from without_cine(source, options, {*used.values(), *taken, *cines}, used)


def _unwrapped(source: Path, masks: Collection[str], drawings: Collection[Path]) -> Path:
    """The only folder of a source where that holds folders of several patients, as archives do.

    Or one that a mask is named after, and no other DICOM image.
    """
    folders = subfolders(source)
    inner = subfolders(folders[0]) if len(folders) == 1 else []
    named = [composed(one.name) in masks for one in (*folders, *inner)]
    if len(inner) == 1 and named == [False, True]:
        beside = (path for path in folders[0].iterdir() if path.is_file() and path not in drawings)
        return source if any(map(is_dicom, beside)) else folders[0]
    if len(inner) < 2:
        return source
    # Of those whose name is nobody's each examination is one.
    patients = {
        (first.patient_id, first.study if names_nobody(first.patient_id) else "")
        for folder in inner
        if (first := _first_image(files_below(folder))) is not None
    }
    return folders[0] if len(patients) > 1 else source


def _first_image(paths: Iterable[Path]) -> Image | None:
    """The first grey image of some files, by which it is told whose they are."""
    for path in itertools.islice(filter(is_dicom, paths), _FIRST_FILES):
        # A screenshot raises; of another fault reading the series will say so.
        with contextlib.suppress(UserError), quiet_readers():
            if (first := next(iter(read_headers(path)), None)) is not None:
                return first
    return None


def _examination(first: Image | None) -> tuple[str, ...] | None:
    """Patient and examination of a folder; None where its images do not say."""
    if first is None or not first.study:
        return None
    nobody = names_nobody(first.patient_id)
    return first.patient_id, first.study, *((first.frame_of_reference, *first.person) * nobody)


def _shared_names(firsts: Sequence[Image]) -> dict[str, tuple[bool, str]]:
    """PatientIDs in several examinations: (whether of several people, what is made of it)."""
    out = {}
    for name, images in grouped(firsts, lambda first: first.patient_id.strip()).items():
        studies = {image.study for image in images}
        if not name or len(studies) < 2 or names_nobody(name):
            continue
        said = f"PatientID {printable(name)!r} is in {len(studies)} examinations"
        if what := differ_in_person(images):
            out[name] = True, f"{said} of several people ({what} differ)"
        else:
            out[name] = False, f"{said}: one patient is taken for granted (else --patient_from)"
    return out


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the short-axis stack of one patient; the first slice has the notes of the folder.

    Raises:
        RefusedSeries: its images, or what is drawn on them, cannot be used.
    """
    if "refused" in series.detail:  # a mask that no cine goes with
        raise UserError(*series.detail["refused"])
    stack, account = None, Account()
    try:
        stack = read_stack(series, options, account)
        return _slices(series, options, stack)
    except UserError as error:
        remedy, folders = error.remedy, _joined_folders(series)
        if stack is None and folders and "--patient_from" not in remedy:
            remedy += f"; if {folders} are several patients, --patient_from=folder"
        raise RefusedSeries(error.cause, remedy, images=account.found) from error


def _joined_folders(series: Series) -> str:
    """The folders of a series that was made of several, for a message; else empty."""
    return ", ".join(printable(folder.name) for folder in series.detail.get("files", ())[:8])


def _slices(series: Series, options: Options, stack: Stack) -> list[CineSlice]:
    """The slices of a stack with their pixels and what is drawn on them."""
    sound = stack.sound
    decoded = read_pixels([*sound.values()])
    _check_movement(series, stack, decoded)
    drawn = read_drawings(series, options, stack)
    patient, about_patient = _patient(series, options, [i for one in sound.values() for i in one])
    stack.account.notes += [*about_patient, *drawn.notes]
    if beside := series.detail.get("beside"):
        stack.account.notes.append(
            f"its files lie beside {printable(', '.join(beside))}, which is of the same "
            "examination: both are cases, and an image that is in both counts twice"
        )
    volumes = {
        z: images[0].volume(series.path, cine)
        for (z, images), cine in zip(sound.items(), decoded, strict=True)
    }
    axes = [unit_directions(one.affine)[:, :2] for one in volumes.values()]
    if any((one * axes[0]).sum(axis=0).min() < _SHOWN_ALIKE for one in axes):
        raise UserError(
            f"{printable(series.path)}: the slices are turned a little from one another, and about "
            "45 degrees from left, posterior or feet: they would be shown turned differently",
            "export the stack with one ImageOrientationPatient, or make a NIfTI of it",
        )
    placed = None
    if drawn.mask is not None:  # on the refused slices too, or their drawings go to the next ones
        firsts = [one.images[0] for one in stack.slices]
        every = [
            volumes.get(z) or image.volume(series.path, np.zeros((1, *image.shape), np.uint8))
            for z, image in enumerate(firsts)
        ]
        placed = place_mask(series, drawn.mask, every)
        stack.account.notes += placed.notes
    grids = dict(zip(volumes, _grids(series.path, [*volumes.values()]), strict=True))
    out = []
    for z, one in enumerate(stack.slices):
        image, shown = one.images[0], volumes.get(z)
        notes, images = list(one.account.notes), Counter(one.account.left)
        images["used"] = one.account.found if shown is None else len(one.images)
        if z == 0:
            notes, images = stack.account.notes + notes, stack.account.left + images
        about: dict[str, Any] = {
            "patient_id": patient,
            "pixel_mm": image.spacing or square_pixel(options.pixel_mm),
            "position_mm": image.distance,
            "note": "; ".join(notes),
            "images": dict(images),
        }
        if shown is not None:
            about |= {"cine": shown.data[:, 0], "orientation_rule": shown.rule}
            if image.spacing is not None:
                about["pixel_mm"] = shown.pixel_mm
            about |= {} if placed is None else placed.fields(z)
            about["anatomy"] = drawn.anatomy.get(z, {})
            about["grid"], about["plane"] = grids[z]
        elif one.refusal is not None:
            about["cine"] = np.zeros((0, *image.shape), np.uint8)
            about["refusal"] = one.refusal.cause, one.refusal.remedy
        out.append(series.slice(z, len(stack.slices), **about))
    lost = (*out[0].unplaced, *drawn.unplaced)
    return [dataclasses.replace(out[0], unplaced=lost), *out[1:]]


def _grids(path: Path, volumes: Sequence[Volume]) -> list[tuple[Grid | None, int]]:
    """The voxels of each slice: of the stack where its slices are alike and even, else its own."""
    own: list[tuple[Grid | None, int]] = [(one.grid, 0) for one in volumes]
    grids = [one.grid for one in volumes if one.grid is not None]
    alike = {(grid.shape, grid.order, grid.flips) for grid in grids}
    if len(grids) < len(volumes) or len(alike) > 1:
        return own
    try:
        affine, numbers = even_grid(path, [grid.affine for grid in grids])
    except UserError:
        return own
    shape = *grids[0].shape[:2], max(numbers) + 1
    grid = dataclasses.replace(grids[0], shape=shape, affine=affine)
    return [(grid, number) for number in numbers]


def _check_movement(series: Series, stack: Stack, decoded: list[np.ndarray]) -> None:
    """Refuse slices that look like several where no header says where or how long a beat is."""
    firsts = [images[0] for images in stack.sound.values()]
    if all(one.has_no_place for one in firsts) and not all(map(is_one_place, decoded)):
        raise UserError(
            f"{printable(series.path)}: neither position (none, or 0, 0, 0) nor SliceLocation says "
            "which images are of one slice, and they look like several slices",
            "export the series again with ImagePositionPatient, or put each slice into a folder",
        )
    if firsts[0].interval:
        return
    beats = Counter(map(count_beats, decoded)).most_common(1)[0][0]
    if beats > 1:
        raise UserError(
            f"{printable(series.path)}: the phases of a slice show {beats} heart beats (a "
            "real-time series?), are of several slices, or are not in the order of time; no "
            "NominalInterval, position or time says which",
            "export one beat of each slice with TriggerTime and ImagePositionPatient, or leave the "
            "series out of the folder",
        )
    if not firsts[0].cardiac_images:
        stack.account.notes.append(
            "no header says how long a beat is: the phases of a slice are taken for one"
        )


def _patient(series: Series, options: Options, images: Sequence[Image]) -> tuple[str, list[str]]:
    """The patient of a series, and a note where the header's name stands for many."""
    header = images[0].patient_id.strip()
    if options.patient_from == "folder":
        return series.name, []
    if not header or names_nobody(header):
        notes = []
        if header:
            notes.append(f"PatientID {printable(header)!r} names nobody: {series.name!r} is used")
        inner = sorted({image.path.parent.name for image in images})
        if folders := _joined_folders(series):  # some anonymisers give everybody one study
            notes.append(
                f"the folders {folders} state one examination: one patient is taken for granted "
                "(else --patient_from=folder)"
            )
        elif len(inner) > 1:
            notes.append(
                f"images of {len(inner)} folders ({', '.join(map(printable, inner[:3]))}) are "
                "taken for those of one patient: nothing in them says whose they are"
            )
        return series.name, notes
    of_several, said = series.detail.get("patient") or (False, "")
    if of_several:
        return series.name, [f"{said}: {series.name!r} is used"]
    return header, [said] if said else []


DICOM = Importer("dicom", "DICOM cine, single-frame or multi-frame", recognise, find, load)
