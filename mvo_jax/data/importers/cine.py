"""What an importer is, named by a line in ``formats.py``, and what all of them share."""

import contextlib
import dataclasses
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.table import Table
from mvo_jax.data.labels import BACKGROUND, MASK_NAMES, fills_cavity, has_mvo, is_ring
from mvo_jax.data.slices import CineSlice, Rejected
from mvo_jax.errors import UserError

# Decoded pixels of one series; a stack of 50 slices of 30 phases of int16 is 0.8 GB.
MAX_SERIES_BYTES = 2 << 30


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user says about a source beside its path."""

    # Rows about cases (label, split, patient, files, crop centre); may be empty.
    table: Table = dataclasses.field(default_factory=Table)
    cine_pattern: str | None = None  # path below the source: {case} and perhaps {patient}, *
    mask_pattern: str | None = None  # the same for LGE masks
    # Value in the file -> 0 background, 1 infarct, 2 MVO, 3 myocardium; empty: the format's own.
    mask_values: Mapping[int, int] = dataclasses.field(default_factory=dict)
    pixel_mm: float | None = None  # side of a pixel, for formats that do not store it
    patient_from: str = "header"  # or "folder": where a DICOM series has its patient from
    still_images: bool = False  # accept single images in place of a cine (LGE-only data sets)
    # Which of several acquisitions of a slice is taken, "first" or "last". None: the last within a
    # DICOM series; two series are refused.
    repeats: str | None = None
    series: str | None = None  # number or description of the DICOM series to take


@dataclasses.dataclass(frozen=True)
class Series:
    """The unit of work: one patient's stack or one file. Found cheaply, holds no pixels."""

    name: str  # unique in its source; case ids start with it
    path: Path  # file or folder that messages name
    patient_id: str | None = None  # None where only the file itself says
    # What the importer's ``load`` needs beside the path.
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def slice(self, index: int, count: int, **fields: Any) -> CineSlice:
        """Slice ``index`` (from 0) of ``count``: its case id has ``_sNN`` where there are several.

        ``fields`` of ``CineSlice``, at least ``cine`` and ``pixel_mm``, overrule these names.
        """
        named = {
            "case_id": self.name if count == 1 else f"{self.name}_s{index:02d}",
            "patient_id": self.patient_id or self.name,
            "slice_index": index,
            "source": str(self.path),
        }
        return CineSlice(**(named | fields))

    def rejected(
        self, cause: str, remedy: str, images: int = 0, part: str = "", source: Path | None = None
    ) -> Rejected:
        """The whole series, refused, with the images that were found in it; or a part of it."""
        path, patient = str(source or self.path), self.patient_id or ""
        return Rejected(self.name + part, patient, path, cause, remedy, images)


@dataclasses.dataclass(frozen=True)
class Importer:
    """A format."""

    name: str  # as in --format; its key in ``formats.IMPORTERS``
    title: str  # one line for the help
    # Whether a folder or file looks like this format; reads names, not pixels.
    recognise: Callable[[Path], bool]
    # Yields the series of a source in a fixed order; bounded memory, no pixels.
    find: Callable[[Path, Options], Iterator[Series]]
    # Reads one series. A function of a module, because worker processes find it by its name. Raises
    # UserError naming the file where it cannot; libraries that read files are imported inside.
    load: Callable[[Series, Options], list[CineSlice]]


class RefusedSeries(UserError):
    """A series that cannot be used, and how many images were found in it."""

    def __init__(self, cause: str, remedy: str, *, images: int):
        super().__init__(cause, remedy)
        self.images = images


def printable(value: object) -> str:
    """Text of a path or value that any terminal and any UTF-8 file can take."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_size(path: object, values: int, item_bytes: int = 4) -> None:
    """Refuse what would not fit, before anything is allocated.

    Raises:
        UserError: ``values`` items of ``item_bytes`` exceed ``MAX_SERIES_BYTES``.
    """
    if values * item_bytes > MAX_SERIES_BYTES:
        raise UserError(
            f"{printable(path)} claims {values:,} values, more than the "
            f"{MAX_SERIES_BYTES >> 30} GiB that a series may take",
            "check the file's header; if it is right, split the series into smaller files",
        )


def map_mask(
    path: object, mask: np.ndarray, mask_values: Mapping[int, int], *, what: str = "LGE mask"
) -> np.ndarray:
    """Turn the values of a mask file into those of the project, uint8.

    Args:
        mask: array of any real dtype; values may be off integers by rounding (1e-3).
        mask_values: see ``Options.mask_values``; empty keeps 0 to 3 as they are.

    Raises:
        UserError: values that are not integers, or that the mapping does not know.
    """
    if mask.dtype.kind not in "buif":
        cause = f"{printable(path)}: {what} has dtype {mask.dtype}"
        raise UserError(cause, "store a mask of small integers")
    whole = mask if mask.dtype.kind in "bui" else np.rint(mask)
    if mask.dtype.kind == "f" and not np.allclose(mask, whole, rtol=0, atol=1e-3):
        cause = f"{printable(path)}: {what} has values between the integers (or NaN)"
        raise UserError(cause, "export labels, not probabilities or interpolated masks")
    known = dict(mask_values) or {i: i for i in range(len(MASK_NAMES))}
    found = [int(v) for v in np.unique(whole)]
    if unknown := [v for v in found if v not in known]:
        listed = ", ".join(f"{k} {MASK_NAMES[v]}" for k, v in sorted(known.items()))
        raise UserError(
            f"{printable(path)}: {what} has values {unknown[:8]}, known are {listed}",
            "say what they mean, for example --mask_values 0=background,1=infarct,2=mvo,"
            "3=myocardium",
        )
    out = np.zeros(mask.shape, np.uint8)
    for value in found:
        out[whole == value] = known[value]
    return out


def note_of_values(
    path: Path, masks: Sequence[np.ndarray], mask_values: Mapping[int, int]
) -> tuple[str, ...]:
    """A note where masks, in the project's values, have a 1 (infarct) alone, which may be MVO.

    Raises:
        UserError: what the values say is MVO fills a ventricle, as the cavity does, or surrounds
            one, as the myocardium does; or the edge of the images is no background.
    """
    if mask_values or not len(masks):
        return ()
    slices = [one for mask in masks for one in mask.reshape(-1, *mask.shape[-2:])]
    edge = [np.r_[one[0], one[-1], one[:, 0], one[:, -1]] for one in slices]
    around = np.unique(np.concatenate(edge))
    has_background = any((one == BACKGROUND).any() for one in slices)
    if len(around) == 1 and around[0] != BACKGROUND and has_background:
        raise UserError(
            f"{printable(path)}: the edge of its images is {MASK_NAMES[around[0]]} by its values",
            "say what the values mean, for example --mask_values 3=background,2=infarct,1=mvo,"
            "0=myocardium; save a palette image without its palette",
        )
    of_mvo = [one for one in slices if has_mvo(one)]
    for is_other, what in (
        (fills_cavity, "fills all that value 3 encloses, as the cavity does"),
        (is_ring, "surrounds what lies within, as the myocardium does"),
    ):
        if 2 * sum(map(is_other, of_mvo)) > len(of_mvo):
            raise UserError(
                f"{printable(path)}: value 2, which is MVO, {what}",
                "say what the values mean, for example --mask_values 0=background,1=infarct,"
                "2=background,3=myocardium,4=mvo; if 2 is MVO all the same, 0=background,"
                "1=infarct,2=mvo,3=myocardium",
            )
    if {value for mask in masks for value in np.unique(mask)} - {0} != {1}:
        return ()
    said = f"{printable(path.name)} has no other value than 1, which is taken as infarct"
    return (f"{said} (else --mask_values, as 0=background,1=mvo)",)


def note_of_axes(shape: Sequence[int]) -> tuple[str, ...]:
    """A note on a cine ``[T, Z, H, W]`` whose axes may be exchanged."""
    frames, slices, rows, columns = shape
    again = "if these are exchanged, save it again"
    if slices > frames:
        return (f"{slices} slices of {frames} frames: {again}",)
    if frames > min(rows, columns):
        return (f"{frames} frames of {rows}x{columns} pixels: {again}",)
    return ()


def square_pixel(pixel_mm: float | None) -> tuple[float, float] | None:
    """(row, column) spacing of a pixel whose side the user gave."""
    return None if pixel_mm is None else (pixel_mm, pixel_mm)


_DAMAGED = "copy it again, it may be cut off; if the copy says the same, export it again"


@contextlib.contextmanager
def reading(path: Path, what: str, remedy: str = _DAMAGED) -> Iterator[None]:
    """Name the file in whatever a library makes of damaged bytes.

    Args:
        path: file that is read in the body.
        what: ends the sentence "... cannot be read".

    Raises:
        UserError: the file is missing or empty, or the body raised anything but a UserError,
            MemoryError or error of the system.
    """
    name = printable(path)
    if not path.exists():
        raise UserError(f"{name} does not exist", "check the name, and links that lead nowhere")
    if path.stat().st_size == 0:
        raise UserError(f"{name} is empty (0 bytes)", "copy it again")
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = printable((str(error).splitlines() or [""])[0])[:120]
        if re.search(r"'-?\d+,\d+'", text):
            remedy = "export it again; numbers are written with a decimal point, not a comma"
        cause = f"{name} cannot be read{what} ({type(error).__name__}: {text})"
        raise UserError(cause, remedy) from error


@contextlib.contextmanager
def quiet_readers() -> Iterator[None]:
    """Silence the libraries that read files: what matters of a file is raised.

    pydicom has a line for every odd UID of every file, nibabel one for every odd header.
    """
    with contextlib.ExitStack() as stack, warnings.catch_warnings(action="ignore"):
        for logger in map(logging.getLogger, ("pydicom", "nibabel", "nibabel.global")):
            stack.callback(setattr, logger, "disabled", logger.disabled)
            # Not set to a level: pydicom sets its own when it is first imported.
            logger.disabled = True
        yield
