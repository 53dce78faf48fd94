"""DICOM cine: classic single-frame, enhanced multi-frame and old multi-frame.

One folder directly below the source is one patient (or study); a source that holds DICOM files
itself is one. LGE masks come as NIfTI files, matched by their world coordinates.

``dicom_headers.py`` reads headers, ``dicom_stack.py`` picks and orders the images, and
``dicom_pixels.py`` decodes them.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvo_jax.data.importers.cine import Importer, Options, Series, square_pixel
from mvo_jax.data.importers.dicom_headers import is_dicom, read_headers
from mvo_jax.data.importers.dicom_pixels import read_pixels
from mvo_jax.data.importers.dicom_stack import read_stack
from mvo_jax.data.importers.masks import place_mask
from mvo_jax.data.importers.nifti import below, find_masks, read_mask, without_cine
from mvo_jax.data.importers.walk import files_below, subfolders
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError


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
    used: dict[str, Path] = {}  # mask of each case

    def series(folder: Path) -> Series:
        row = options.table.row(folder.name)
        detail: dict[str, Any] = {}
        if row is not None and row.mask is not None:
            detail["mask"] = below(source, row.mask, options.table.path)
        elif folder.name in masks:
            detail["mask"] = masks[folder.name]
        used[folder.name] = detail.get("mask", folder)
        return Series(name=folder.name, path=folder, detail=detail)

    with os.scandir(source) as entries:
        loose = any(is_dicom(Path(e.path)) for e in entries if not e.is_dir() and e.name[0] != ".")
    if loose:
        one = series(source)
        yield dataclasses.replace(one, detail={**one.detail, "loose": True})
    for folder in subfolders(_unwrapped(source)):
        if any(is_dicom(path) for path in files_below(folder)):
            yield series(folder)
    yield from without_cine(source, options, set(used.values()), used)


def _unwrapped(source: Path) -> Path:
    """The only folder of a source where that holds folders of several patients, as archives do."""
    folders = subfolders(source)
    inner = subfolders(folders[0]) if len(folders) == 1 else []
    if len(inner) < 2:
        return source
    patients = set()
    for folder in inner:
        first = next(filter(is_dicom, files_below(folder)), None)
        with contextlib.suppress(UserError):  # reading the series will say so
            patients |= {image.patient_id for image in read_headers(first)} if first else set()
    return folders[0] if len(patients) > 1 else source


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the short-axis stack of one patient."""
    if "refused" in series.detail:  # a mask that no cine goes with
        raise UserError(*series.detail["refused"])
    stack = read_stack(series, options)
    mask = read_mask(series.detail["mask"], options) if "mask" in series.detail else None
    header = stack[0][0].patient_id.strip()
    patient = header if header and options.patient_from == "header" else series.name
    pixels = zip(stack, read_pixels(stack), strict=True)
    volumes = [images[0].volume(series.path, cine) for images, cine in pixels]
    placed = None if mask is None else place_mask(series, mask, volumes)
    return [
        series.slice(
            z,
            len(stack),
            patient_id=patient,
            cine=volume.data[:, 0],
            pixel_mm=images[0].spacing or square_pixel(options.pixel_mm),
            position_mm=images[0].distance,
            **({} if placed is None else placed.fields(z)),
        )
        for z, (images, volume) in enumerate(zip(stack, volumes, strict=True))
    ]


DICOM = Importer("dicom", "DICOM cine, single-frame or multi-frame", recognise, find, load)
