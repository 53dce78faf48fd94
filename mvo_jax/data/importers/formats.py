"""The table of formats (``cine.py`` says how to add one), and what every format goes through."""

import dataclasses
import logging
import os
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

from mvo_jax.data.importers.cine import Importer, Options, Series, printable
from mvo_jax.data.importers.walk import DRAWING_WORDS, fault, files_below, what_is_there
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

log = logging.getLogger(__name__)

_ARCHIVE = re.compile(r"\.(?:zip|7z|rar|tar|tgz|tar\.\w+)$", re.IGNORECASE)
_IMAGE = re.compile(
    r"\.(?:jpe?g|png|tiff?|bmp|gif|dcm(?:\.gz)?|nii(?:\.\w+)?|n(?:rrd|hdr)|mh[ad]|hdr|mgz|mnc|np[yz]"
    r"|mat)$"
    rf"|{DRAWING_WORDS}.*\.(?:json|xml)$",
    re.IGNORECASE,
)
# Files of the general formats that are read, or told of by their importer.
_OWN = {
    "png": r"_\d+_(?:input|gt)\.png$",
    "segment": r"\.mat$",
    "dicom": r"\.(?:dcm|nii(?:\.gz)?|nrrd|xml)$",
    "nifti": r"\.(?:dcm|nii(?:\.gz)?|nrrd|xml)$",
    "npz": r"\.npz$",
}

# Layouts before the general formats they are made of: the first that recognises a source is taken.
# An importer, or where it is: a format is imported when it is asked for.
IMPORTERS: dict[str, Importer | str] = {
    "acdc": "mvo_jax.data.importers.acdc:ACDC",
    "mnms": "mvo_jax.data.importers.acdc:MNMS",
    "mnms2": "mvo_jax.data.importers.acdc:MNMS2",
    "emidec": "mvo_jax.data.importers.emidec:EMIDEC",
    "sunnybrook": "mvo_jax.data.importers.sunnybrook:SUNNYBROOK",
    "shefpah": "mvo_jax.data.importers.shefpah:SHEFPAH",
    "png": "mvo_jax.data.importers.png_layout:PNG",
    "dicom": "mvo_jax.data.importers.dicom:DICOM",  # before NIfTI: masks of a cine are NIfTI files
    "nifti": "mvo_jax.data.importers.nifti:NIFTI",  # before Segment: SPM and FSL write .mat too
    "segment": "mvo_jax.data.importers.segment_mat:SEGMENT",
    "npz": "mvo_jax.data.importers.npz:NPZ",
}


def importer_of(name: str) -> Importer:
    """The importer of a format, by its key of ``IMPORTERS``."""
    found = IMPORTERS[name]
    return pkgutil.resolve_name(found) if isinstance(found, str) else found


def choose_importer(source: Path, name: str = "auto") -> Importer:
    """The importer of a folder or file: a key of ``IMPORTERS``, or ``auto`` by what is there.

    Raises:
        UserError: the source does not exist or is not recognised, or there is no such format.
    """
    if name not in ("auto", *IMPORTERS):
        remedy = f"formats are: auto, {', '.join(IMPORTERS)}"
        raise UserError(f"there is no format {name!r}", remedy)
    if not os.path.exists(source):  # nor where links go in a circle, or the name is too long
        raise fault(source, " does not exist", "give the folder of your images")
    if name != "auto":
        return importer_of(name)
    for importer in map(importer_of, IMPORTERS):
        if importer.recognise(source):
            _tell_of_others(source, importer)
            return importer
    remedy = f"say which with --format: {', '.join(IMPORTERS)}"
    if source.is_dir() and any(_ARCHIVE.search(path.name) for path in files_below(source)):
        remedy = f"unpack the archives in it, or {remedy}"
    says = f" is in no format that is recognised: it holds {what_is_there(source)}"
    raise fault(source, says, remedy)


def _tell_of_others(source: Path, taken: Importer) -> None:
    """Warn of images or drawings by their names that are not read; public layouts have others."""
    if source.is_file() or taken.name not in _OWN:
        return
    names = [name for name in ("png", "segment", "dicom", "npz") if name != taken.name]
    also = [name for name in names if importer_of(name).recognise(source)]
    if also:
        told = f"{printable(source)} is read as {taken.name}; it also holds files of the formats"
        log.warning(f"{told} {', '.join(also)}, which are not read (--format chooses)")
    own = re.compile("|".join(_OWN[name] for name in (taken.name, *also)), re.IGNORECASE)
    unread = [path for path in files_below(source) if not own.search(path.name)]
    for what, kind, remedy in (
        ("archives", _ARCHIVE, "unpack them"),
        ("files that look like images or drawings", _IMAGE, "export them in a form that is read"),
    ):
        found = [path for path in unread if kind.search(path.name)]
        # One of each folder: a patient's may hold nothing else.
        examples = list({path.parent: path for path in reversed(found)}.values())[::-1]
        if found:
            listed = ", ".join(printable(path.relative_to(source)) for path in examples[:3])
            told = f"{len(found)} {what} below {printable(source)} are not read: {listed}"
            log.warning(f"{told}{', ...' if len(found) > 3 else ''}; {remedy}")


def load_series(
    load: Callable[[Series, Options], list[CineSlice]], series: Series, options: Options
) -> list[CineSlice]:
    """Read a series, by its importer's ``load``, and add what the user's table says about it.

    Raises:
        UserError: it cannot be read; the message names the file.
    """
    path = series.path
    try:
        f"{series.name}{path}".encode()
    except UnicodeEncodeError as error:
        raise fault(path, ": the name is not UTF-8", "rename the file or folder") from error
    try:
        slices = load(series, options)
    except MemoryError as error:
        raise fault(path, " does not fit into memory", "use fewer --jobs") from error
    except OSError as error:
        says = f" cannot be read ({error.strerror or error})"
        raise fault(error.filename or path, says, "check the file and its permissions") from error
    if not slices:
        raise fault(path, " holds no short-axis cine", "leave it out of the source")
    return [_with_row(one, series, options) for one in slices]


def series_label(series: Series, slices: list[CineSlice], options: Options) -> int | None:
    """What the table says of a whole series or its patient; 1 means MVO in some slice."""
    row = options.table.row(series.name, *(s.patient_id for s in slices[:1]))
    return None if row is None else row.label


def _with_row(one: CineSlice, series: Series, options: Options) -> CineSlice:
    own = options.table.row(one.case_id)
    row = own or options.table.row(series.name, one.patient_id)
    changes = {name: getattr(row, name, None) for name in ("centre", "end_diastole", "patient_id")}
    changes["label"] = own and own.label
    return dataclasses.replace(one, **{k: v for k, v in changes.items() if v is not None})
