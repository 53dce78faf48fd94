"""Sunnybrook Cardiac Data: DICOM cine with expert contours.

``dicom/SCD0000101/81.dcm`` is an image of a patient, whose contours ``contours/link.csv`` names;
``contours/SC-HF-I-1/i-contours/IM-0001-0099-icontour-manual.txt`` the endocardium of 99.dcm, with o
in place of i the epicardium. A line of a contour is ``x y``: column and row in pixels.
"""

import csv
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mvo_jax.data.importers import dicom
from mvo_jax.data.importers.cine import Importer, Options, Series
from mvo_jax.data.importers.contours import anatomy_of
from mvo_jax.data.importers.dicom_stack import read_stack
from mvo_jax.data.importers.walk import fault
from mvo_jax.data.slices import CineSlice

_NAME = re.compile(r"IM-\d+-(\d+)-([io])contour-manual\.txt")


def recognise(source: Path) -> bool:
    """The folders ``dicom`` and ``contours`` with ``link.csv``."""
    return (source / "dicom").is_dir() and (source / "contours" / "link.csv").is_file()


def find(source: Path, options: Options) -> Iterator[Series]:
    """One series a patient."""
    link = source / "contours" / "link.csv"
    try:
        with link.open(encoding="utf-8-sig", newline="") as file:
            original = {row["patient_id"]: row["original_id"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        remedy = "columns are patient_id,original_id"
        raise fault(link, f" cannot be read ({error})", remedy) from error
    for series in dicom.find(source / "dicom", options):
        folder = source / "contours" / original.get(series.name, series.name)
        yield dataclasses.replace(series, detail={**series.detail, "contours": folder})


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the stack, and the contours as masks of the frames they were drawn on."""
    slices = dicom.load(series, options)
    if not series.detail["contours"].is_dir():
        return slices
    contours, out = read_contours(series.detail["contours"]), []
    for one, stored in zip(slices, read_stack(series, options).slices, strict=True):
        anatomy = {}
        for t, image in enumerate(stored.images):
            number = re.search(r"(\d+)$", image.path.stem)
            if number and (drawn := contours.get(int(number[1]))):
                mask = anatomy_of(drawn.get("i"), drawn.get("o"), image.shape)
                anatomy[t] = image.shown(mask)
        out.append(dataclasses.replace(one, anatomy=anatomy))
    return out


def read_contours(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """Image number -> ``i`` and ``o`` -> float ``[N, 2]`` (row, column)."""
    out: dict[int, dict[str, np.ndarray]] = {}
    for path in sorted(folder.glob("?-contours/*.txt")):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        try:
            points = np.loadtxt(path, ndmin=2)
        except ValueError as error:
            remedy = "a line is 'x y', numbers with a decimal point; if it is not, copy it again"
            raise fault(path, f" is no contour ({error})", remedy) from error
        if points.shape[1:] != (2,) or len(points) < 3 or not np.isfinite(points).all():
            raise fault(path, f" is no contour (shape {points.shape})", "a line is 'x y'")
        out.setdefault(int(match[1]), {})[match[2]] = points[:, ::-1]
    return out


SUNNYBROOK = Importer(
    "sunnybrook", "Sunnybrook Cardiac Data, DICOM with contours", recognise, find, load
)
