"""NIfTI: 4-D cine (X, Y, Z, T), or a 3-D file a phase, and LGE masks, by a table or their names."""

import dataclasses
import difflib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import Importer, Options, Series, check_size, printable
from mvo_jax.data.importers.cvi42 import is_workspace
from mvo_jax.data.importers.mask_files import SUFFIX, read_mask
from mvo_jax.data.importers.masks import to_slices
from mvo_jax.data.importers.volume import Volume, check_shape, read_cine, read_volume, same_grid
from mvo_jax.data.importers.walk import DRAWING_WORDS, fault, files_below
from mvo_jax.data.names import composed
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

log = logging.getLogger(__name__)

CINE_PATTERN = "**/{case}_cine.nii*"
PHASE_PATTERN = "**/{case}_cine*{phase}.nii*"  # one file a phase
MASK_PATTERN = "**/{case}_lge_mask.*"  # of the kinds in mask_files.py
_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_DRAWING = re.compile(DRAWING_WORDS, re.IGNORECASE)
# Before the number of a file that is joined with others of its case.
_SLICE_NUMBER = re.compile(r"(?<![a-z])(?:slices?|sl|s|z)[-_]?\d+(?=\.nii)", re.IGNORECASE)
# Forms of images that nothing here reads (cines least of all), named like a mask or a cine.
_UNREAD_FORM = re.compile(
    r"(.+)_(lge_mask|cine)\.((?:seg\.)?n(?:rrd|hdr)|mh[ad]|hdr|nii\.(?:bz2|xz|zst)|mgz|mnc|tiff?|png"
    r"|np[yz]|mat|xml)",
    re.IGNORECASE,
)
_TO_EXPORT = {
    True: ("a mask", "NIfTI, NRRD (header and data in one file) or DICOM SEG"),
    False: ("a cine", "NIfTI or DICOM"),
}


def _is_nifti(path: Path) -> bool:
    return _NIFTI.search(path.name) is not None


def _name_below(source: Path, path: Path) -> str:
    """A path below the source as patterns see it: composed, the suffix in small letters."""
    name = composed(path.relative_to(source).as_posix())
    return SUFFIX.sub(lambda found: found[0].lower(), name)


def recognise(source: Path) -> bool:
    """A NIfTI file, or a folder that holds one."""
    return any(map(_is_nifti, [source] if source.is_file() else files_below(source)))


def _pattern_to_regex(pattern: str) -> re.Pattern[str]:
    """``{case}`` and ``{patient}`` are names, ``{phase}`` a number, ``*`` and ``**`` a shell's."""
    if "{case}" not in pattern:
        cause = f"the pattern {pattern!r} has no {{case}}"
        raise UserError(cause, "write for example '{case}_cine.nii.gz'")
    out = ""
    for part in re.split(r"(\*\*/|\*|\{[^}]*\})", composed(pattern)):
        if part == "**/":
            out += "(?:.*/)?"
        elif part == "*":
            out += "[^/]*"
        elif part in ("{case}", "{patient}"):
            group = part[1:-1]
            out += f"(?P={group})" if f"(?P<{group}>" in out else f"(?P<{group}>[^/]+)"
        elif part == "{phase}" and "(?P<phase>" not in out:
            out += r"(?<!\d)(?P<phase>\d+)"
        elif part.startswith("{"):
            cause = f"the pattern {pattern!r} has {part}"
            raise UserError(cause, "placeholders are {case}, {patient} and once {phase}")
        else:
            out += re.escape(part)
    return re.compile(out)


def find(source: Path, options: Options) -> Iterator[Series]:
    """Cine files by the table's column ``cine``, by a pattern, or a single file."""
    patterns = [options.cine_pattern] if options.cine_pattern else [CINE_PATTERN, PHASE_PATTERN]
    expressions = [_pattern_to_regex(pattern) for pattern in patterns]
    if source.is_file():  # named as it would be in its folder
        match = expressions[0].fullmatch(_name_below(source.parent, source))
        yield Series(match["case"] if match else _NIFTI.sub("", source.name), source)
        return
    rows = [row for row in options.table.rows.values() if row.cine is not None]
    if rows:
        for row in rows:
            path, *mask = (below(source, name, options.table.path) for name in row.files)
            detail: dict[str, Any] = {"mask": mask[0]} if mask else {}
            name = row.case_id or _NIFTI.sub("", path.name)
            yield Series(name, path, row.patient_id, detail)
        named = named_in_table(source, options)
        others = [p for p in files_below(source) if _is_nifti(p) and p not in named]
        _warn_unread(source, others, "not named in the table")
        return
    masks = find_masks(source, options)
    found = _matching(source, expressions, set(masks.values()))
    cases = {match["case"] for match in found.values()}
    several = Counter(one["case"] for one in found.values() if "phase" not in one.groupdict())
    # The phases of a case together; whole cines, first of all, each by itself.
    groups: dict[tuple[bool, str, str | None, Path | None], list[tuple[int, Path]]] = {}
    for path, match in found.items():
        phase, patient = map(match.groupdict().get, ("phase", "patient"))
        key = phase is not None, match["case"], patient, None if phase else path
        groups.setdefault(key, []).append((int(phase or 0), path))
    for (in_phases, case, patient, _), numbered in sorted(groups.items(), key=lambda i: i[0][0]):
        files = [path for _, path in sorted(numbered)]
        shown, row = printable(files[0]), options.table.row(case, patient)
        detail = {"mask": masks[case]} if case in masks else {}
        if row is not None and row.mask is not None:
            detail = {"mask": below(source, row.mask, options.table.path)}
        if in_phases:
            detail |= {"phases": sorted(numbered), "files": files}
            word = None if options.cine_pattern else _SLICE_NUMBER.search(files[0].name)
            if word is not None:
                cause = f"{shown} is named like a slice ({word[0]}), not like a phase"
                remedy = "stack the slices of a case in one file, or give --cine_pattern with"
                detail["refused"] = cause, f"{remedy} {{phase}}"
            if several[case]:
                cause = f"{shown}: {printable(case)!r} is there whole and phase by phase"
                detail["refused"] = cause, "leave one of the two in the source"
        elif several[case] > 1 and (case in masks or options.table.row(case) is not None):
            cause = f"{shown} is one of {several[case]} cines of case {printable(case)!r}: which of"
            remedy = "give each a name of its own, or pair them in a table (cine and mask)"
            cause += " them the mask or the table means is not sure"
            detail = {"refused": (cause, remedy)}
        yield Series(case, files[0], patient, detail)
    if not cases:
        names = [printable(p.relative_to(source)) for p in files_below(source) if _is_nifti(p)]
        cause = f"no cine below {printable(source)} is named like {patterns[0]}; there are "
        remedy = "give --cine_pattern and --mask_pattern, or a --table with columns cine and mask"
        raise UserError(cause + (", ".join(names[:3]) or "none"), remedy)
    paired = {path for case, path in masks.items() if case in cases}
    yield from without_cine(source, options, found.keys() | paired, cases)


def _matching(
    source: Path, expressions: list[re.Pattern[str]], read: Collection[Path]
) -> dict[Path, re.Match[str]]:
    """Files below a folder that are not read and whose names match, each by the first that does."""
    return {
        path: match
        for path in files_below(source)
        if path not in read and (match := _first_match(expressions, _name_below(source, path)))
    }


def _first_match(expressions: list[re.Pattern[str]], name: str) -> re.Match[str] | None:
    return next((match for one in expressions if (match := one.fullmatch(name))), None)


def without_cine(
    source: Path, options: Options, used: Collection[Path], cases: Collection[str]
) -> Iterator[Series]:
    """Drawings, and images named like a cine, that nothing goes with: each a case to be refused.

    Other NIfTI files, as LGE images, are counted in a warning. ``used`` are files that are read,
    ``cases`` the names of the cines.
    """
    wanted = options.mask_pattern or MASK_PATTERN
    known = {*used, *named_in_table(source, options)}
    cine = _pattern_to_regex(CINE_PATTERN)
    loose = [re.compile(p.pattern, re.IGNORECASE) for p in (_pattern_to_regex(wanted), cine)]
    files = list(files_below(source))
    names = (_name_below(source, path) for path in files)
    in_other_letters = {found["case"] for name in names if (found := loose[1].fullmatch(name))}
    by_small = {case.lower(): case for case in sorted({*cases, *in_other_letters})}
    others = []
    for path in files:
        if path in known or not (SUFFIX.search(path.name) or is_workspace(path)):
            continue
        name, stem = _name_below(source, path), _NIFTI.sub("", path.name)
        match = None if cine.fullmatch(name) else _first_match(loose, name)
        if match is None and not _is_named_drawing(path):
            if _is_nifti(path):
                others.append(path)
            continue
        if match is not None and match.re is loose[1]:
            says = "a cine in other letters"
            remedy = f"rename it like {options.cine_pattern or CINE_PATTERN}, or use a table"
        else:
            guess = match["case"] if match else stem
            like = difflib.get_close_matches(guess.lower(), by_small, 1, 0.0)
            case = f", where case may be {printable(by_small[like[0]])!r}" if like else ""
            says = "a drawing and belongs to no cine"
            remedy = f"rename it like {wanted.removeprefix('**/')}{case}, one file a case, "
            remedy += "pair them in a table (columns cine and mask), or take it out of the source"
        yield _named_like(says, remedy, source, path, SUFFIX.sub("", stem))
    _warn_unread(source, others, "neither cine nor mask by their names")
    yield from _in_other_forms(source, known, cases)


def _named_like(says: str, remedy: str, source: Path, path: Path, stem: str) -> Series:
    """A file that nothing goes with, as a case that is refused."""
    name = "_".join(path.relative_to(source).with_name(stem).parts)
    cause = f"{printable(path)} is named like {says}"
    return Series(name, path, detail={"refused": (cause, remedy)})


def cines_by_name(source: Path, read: Collection[Path]) -> dict[Path, str]:
    """NIfTI files that are named like a cine or one of its phases and not read, with its case."""
    expressions = [_pattern_to_regex(pattern) for pattern in (CINE_PATTERN, PHASE_PATTERN)]
    return {path: match["case"] for path, match in _matching(source, expressions, read).items()}


def _in_other_forms(
    source: Path, known: Collection[Path], cases: Collection[str]
) -> Iterator[Series]:
    """Masks and cines by their names, in forms that are not read, where no other file is read."""
    mask = _pattern_to_regex(MASK_PATTERN)
    names = (_name_below(source, path) for path in known)
    masked = {found["case"] for name in names if (found := mask.fullmatch(name))}
    for path in files_below(source):
        found = _UNREAD_FORM.fullmatch(composed(path.name))
        if found is None or path in known or is_workspace(path):
            continue
        is_mask = found[2].lower() == "lge_mask"
        is_read = is_mask and SUFFIX.search(path.name)
        if is_read or found[1] in (masked if is_mask else cases):
            continue
        what, forms = _TO_EXPORT[is_mask]
        remedy = f"export it as {forms}, or take it out of the source"
        says = f"{what}, in a form that is not read"
        yield _named_like(says, remedy, source, path, path.name.partition(".")[0])


def _is_named_drawing(path: Path) -> bool:
    """Whether a name says that this is a drawing; that of a DICOM file may be anything."""
    if path.suffix.lower() in (".dcm", ".xml", ".cvi42wsx", ".cvi42ws"):
        return is_workspace(path)
    return _DRAWING.search(SUFFIX.sub("", path.name)) is not None or ".seg." in path.name


def named_in_table(source: Path, options: Options) -> set[Path]:
    """Files that the table names."""
    rows = options.table.rows.values()
    return {below(source, name, options.table.path) for row in rows for name in row.files}


def _warn_unread(source: Path, unread: list[Path], what: str) -> None:
    if unread:
        names = ", ".join(printable(path.relative_to(source)) for path in unread[:3])
        told = f"{len(unread)} NIfTI files below {printable(source)} are {what} and were not read"
        log.warning(f"{told}: {names}{', ...' if len(unread) > 3 else ''}")


def find_masks(source: Path, options: Options) -> dict[str, Path]:
    """Case -> mask file, by the mask pattern.

    Raises:
        UserError: two masks of one case.
    """
    pattern = _pattern_to_regex(options.mask_pattern or MASK_PATTERN)
    masks: dict[str, Path] = {}
    for path, match in _matching(source, [pattern], ()).items():
        if options.mask_pattern or SUFFIX.search(path.name):
            other = masks.setdefault(match["case"], path)
            if other != path:
                says = f" and {printable(other)} are both masks of {match['case']!r}"
                remedy = "make the name in --mask_pattern unique, or pair them in a table"
                raise fault(path, says, remedy)
    return masks


def below(source: Path, name: str, table: Path | None) -> Path:
    """A path that a table names, which must stay below the source; Windows' too.

    Raises:
        UserError: it is absolute or leads out with ``..``.
    """
    if "\\" in name and not (source / name).exists():
        name = name.replace("\\", "/")
    if Path(name).is_absolute() or ".." in Path(name).parts or re.match(r"[A-Za-z]:", name):
        cause = f"{table}: the path {name!r} leads out of {printable(source)}"
        raise UserError(cause, "give paths relative to the source folder")
    forms = (source / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((path for path in (source / name, *forms) if os.path.exists(path)), source / name)


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read a cine and its mask."""
    if "refused" in series.detail:
        raise UserError(*series.detail["refused"])
    phases = series.detail.get("phases")
    cine = read_cine(series.path) if phases is None else _read_phases(series.name, phases)
    mask = read_mask(series.detail["mask"], options) if "mask" in series.detail else None
    return to_slices(series, cine, mask)


def _read_phases(name: str, phases: list[tuple[int, Path]]) -> Volume:
    """A cine of one file a phase, in the order of their numbers (counts or trigger times)."""
    try:
        first = read_volume(phases[0][1], axes=3)
    except UserError as error:
        own = f"by its number it is taken for one phase of case {name} (--cine_pattern chooses)"
        raise UserError(error.cause, f"{error.remedy}; {own}") from error
    steps = np.diff([number for number, _ in phases])
    if len(steps) and not steps.all():
        at = int(np.argmin(steps))
        says = f" and {printable(phases[at + 1][1])} are the same phase of case {name}"
        raise fault(phases[at][1], says, "give each case a name of its own")
    # Trigger times are rounded; a lost phase is a step twice as long.
    if len(steps) and steps.max() > 1.5 * steps.min():
        says = f": case {name} lacks phases after {phases[int(np.argmax(steps))][0]}"
        raise fault(first.path, says, "add one file for every phase of the beat")
    check_size(first.path, first.data.size * len(phases), first.data.dtype.itemsize)
    volumes = [first, *(read_volume(path, axes=3) for _, path in phases[1:])]
    for volume in volumes:
        check_shape(volume, first, "the first phase")
        if not same_grid(volume, first):
            says = f" lies elsewhere than {printable(first.path)}"
            raise fault(volume.path, says, "all phases of a case have one grid")
    data = np.concatenate([one.data for one in volumes])
    notes = *first.notes, f"{len(volumes)} files are joined as phases in the order of their numbers"
    return dataclasses.replace(first, data=data, notes=notes)


NIFTI = Importer("nifti", "NIfTI 4-D cine with 3-D LGE masks", recognise, find, load)
