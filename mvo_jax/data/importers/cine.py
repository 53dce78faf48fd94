"""What every importer yields, whatever the format it reads."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.table import Table
from mvo_jax.errors import UserError

MAX_SERIES_BYTES = (
    2 << 30
)  # decoded pixels of one series; a 50-slice 30-phase int16 stack is 0.8 GB
MASK_NAMES = ("background", "infarct", "mvo", "myocardium")
MVO, MYOCARDIUM = 2, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user says about a source beside its path.

    Attributes:
        table: rows about cases (label, split, patient, files, crop centre); may be empty.
        cine_pattern: path below the source with ``{case}`` and perhaps ``{patient}``, ``*``.
        mask_pattern: the same for LGE masks.
        mask_values: value in the file -> 0 background, 1 infarct, 2 MVO, 3 myocardium. Empty:
            the format's own meaning.
        pixel_mm: side of a pixel, for formats that do not store it.
        patient_from: ``header`` or ``folder``: where a DICOM series has its patient from.
        still_images: accept single images in place of a cine (LGE-only data sets).
    """

    table: Table = dataclasses.field(default_factory=Table)
    cine_pattern: str | None = None
    mask_pattern: str | None = None
    mask_values: Mapping[int, int] = dataclasses.field(default_factory=dict)
    pixel_mm: float | None = None
    patient_from: str = "header"
    still_images: bool = False


@dataclasses.dataclass(frozen=True)
class Series:
    """The unit of work: one patient's stack or one file. Found cheaply, holds no pixels.

    Attributes:
        name: unique in its source; case ids start with it.
        path: file or folder that messages name.
        patient_id: None where only the file itself tells.
        detail: what the importer's ``load`` needs beside the path.
    """

    name: str
    path: Path
    patient_id: str | None = None
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CineSlice:
    """One short-axis slice over one heart beat, as it lies in the source.

    Rows run down and columns to the right as the image is displayed.

    Attributes:
        case_id: unique in its source.
        patient_id: slices of one patient share it.
        slice_index: 0-based position in the stack.
        source: file or folder, for messages and the manifest.
        cine: ``[T, H, W]`` grey values of any real dtype, phases in time order, evenly spaced over
            one beat.
        pixel_mm: (row, column) spacing; None where the format does not say.
        lge_mask: uint8 ``[H, W]`` on the grid of the cine, 0 background, 1 infarct, 2 MVO,
            3 myocardium; None without LGE.
        has_mvo: whether the mask as drawn, before any resampling, has MVO; None without LGE.
        anatomy: source frame -> uint8 ``[H, W]``, 0 background, 1 LV cavity, 2 LV myocardium;
            only annotated frames.
        centre: (row, column) of the crop in pixels, given by the user.
        end_diastole: 0-based frame.
        position_mm: along the normal of the slice; None where unknown.
        label: what a table says of this very slice.
    """

    case_id: str
    patient_id: str
    slice_index: int
    source: str
    cine: np.ndarray
    pixel_mm: tuple[float, float] | None
    lge_mask: np.ndarray | None = None
    has_mvo: bool | None = None
    anatomy: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    centre: tuple[float, float] | None = None
    end_diastole: int | None = None
    position_mm: float | None = None
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Importer:
    """A format.

    Attributes:
        name: as in ``--format``.
        title: one line for the help.
        recognise: whether a folder or file looks like this format; reads names, not pixels.
        find: yields the series of a source in a fixed order; bounded memory.
        load: reads one series. Raises UserError naming the file where it cannot.
    """

    name: str
    title: str
    recognise: Callable[[Path], bool]
    find: Callable[[Path, Options], Iterator[Series]]
    load: Callable[[Series, Options], list[CineSlice]]


def slice_name(series: str, index: int, count: int) -> str:
    """Case id of a slice: the series' name, with ``_sNN`` where it has several slices."""
    return series if count == 1 else f"{series}_s{index:02d}"


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
    """Turn the values of a mask file into those of the project.

    Args:
        path: for messages.
        mask: array of any real dtype; values may be off integers by rounding (1e-3).
        mask_values: see ``Options.mask_values``; empty keeps 0 to 3 as they are.
        what: for messages.

    Raises:
        UserError: values that are not integers, or that the mapping does not know.
    """
    if mask.dtype.kind not in "buif":
        raise UserError(
            f"{printable(path)}: {what} has dtype {mask.dtype}", "store a mask of small integers"
        )
    whole = mask if mask.dtype.kind in "bui" else np.rint(mask)
    if mask.dtype.kind == "f" and not np.allclose(mask, whole, rtol=0, atol=1e-3):
        raise UserError(
            f"{printable(path)}: {what} has values between the integers (or NaN)",
            "export labels, not probabilities or interpolated masks",
        )
    known = dict(mask_values) or {i: i for i in range(len(MASK_NAMES))}
    found = [int(v) for v in np.unique(whole)]
    unknown = [v for v in found if v not in known]
    if unknown:
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
