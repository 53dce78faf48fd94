"""NIfTI: 4-D cine (X, Y, Z, T) and 3-D LGE masks, paired by a table or by their names."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from mvo_jax.data.importers.cine import Importer, Options, Series, map_mask, printable
from mvo_jax.data.importers.volume import Volume, read_cine, read_volume, to_slices
from mvo_jax.data.importers.walk import files_below
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

CINE_PATTERN = "**/{case}_cine.nii*"
MASK_PATTERN = "**/{case}_lge_mask.nii*"
SUFFIXES = (".nii", ".nii.gz")


def is_nifti(path: Path) -> bool:
    """Whether a file is named like a NIfTI image."""
    return path.name.endswith(SUFFIXES)


def stem(path: Path) -> str:
    """Name of a NIfTI file without its suffixes."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def recognise(source: Path) -> bool:
    """A NIfTI file, or a folder that holds one."""
    if source.is_file():
        return is_nifti(source)
    return any(is_nifti(path) for path in files_below(source))


def pattern_to_regex(pattern: str) -> re.Pattern[str]:
    """A path pattern: ``{case}`` and ``{patient}`` are names, ``*`` and ``**`` as in the shell.

    Raises:
        UserError: no ``{case}``, or a placeholder that does not exist.
    """
    if "{case}" not in pattern:
        raise UserError(
            f"the pattern {pattern!r} has no {{case}}", "write for example '{case}_cine.nii.gz'"
        )
    out, seen = "", set()
    for part in re.split(r"(\*\*/|\*|\{[^}]*\})", pattern):
        if part == "**/":
            out += "(?:.*/)?"
        elif part == "*":
            out += "[^/]*"
        elif part in ("{case}", "{patient}"):
            group = part[1:-1]
            out += f"(?P={group})" if group in seen else f"(?P<{group}>[^/]+)"
            seen.add(group)
        elif part.startswith("{"):
            raise UserError(
                f"the pattern {pattern!r} has {part}", "placeholders are {case} and {patient}"
            )
        else:
            out += re.escape(part)
    return re.compile(out)


def find(source: Path, options: Options) -> Iterator[Series]:
    """Cine files by the table's column ``cine``, by a pattern, or a single file."""
    cine = pattern_to_regex(options.cine_pattern or CINE_PATTERN)
    if source.is_file():  # named as it would be in its folder
        match = cine.fullmatch(source.name)
        yield Series(name=match["case"] if match else stem(source), path=source)
        return
    rows = [row for row in options.table.rows.values() if row.cine is not None]
    if rows:
        for row in rows:
            assert row.cine is not None
            path = below(source, row.cine, options.table.path)
            detail = (
                {} if row.mask is None else {"mask": below(source, row.mask, options.table.path)}
            )
            yield Series(row.case_id or stem(path), path, row.patient_id, detail)
        return
    masks = find_masks(source, options)
    taken = set(masks.values())
    found = False
    for path in files_below(source):
        match = cine.fullmatch(path.relative_to(source).as_posix())
        if match and path not in taken:
            found = True
            case = match["case"]
            detail = {"mask": masks[case]} if case in masks else {}
            yield Series(case, path, match.groupdict().get("patient"), detail)
    if not found:
        names = [printable(p.relative_to(source)) for p in files_below(source) if is_nifti(p)]
        raise UserError(
            f"no cine below {printable(source)} is named like "
            f"{options.cine_pattern or CINE_PATTERN}; there are {', '.join(names[:3]) or 'none'}",
            "give --cine_pattern and --mask_pattern, or a --table with columns cine and mask",
        )


def find_masks(source: Path, options: Options) -> dict[str, Path]:
    """Case -> mask file, by the mask pattern.

    Raises:
        UserError: two masks of one case.
    """
    pattern = pattern_to_regex(options.mask_pattern or MASK_PATTERN)
    masks: dict[str, Path] = {}
    for path in files_below(source):
        match = pattern.fullmatch(path.relative_to(source).as_posix())
        if match is None:
            continue
        case = match["case"]
        if case in masks:
            raise UserError(
                f"{printable(path)} and {printable(masks[case])} are both masks of {case!r}",
                "make the name in --mask_pattern unique, or pair them in a table",
            )
        masks[case] = path
    return masks


def below(source: Path, name: str, table: Path | None) -> Path:
    """A path that a table names, which must stay below the source.

    Raises:
        UserError: it is absolute or leads out with ``..``.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(
            f"{table}: the path {name!r} leads out of {printable(source)}",
            "give paths relative to the source folder",
        )
    return source / name


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read a cine and its mask."""
    cine = read_cine(series.path)
    mask = read_mask(series.detail["mask"], options) if "mask" in series.detail else None
    return to_slices(series, cine, mask)


def read_mask(path: Path, options: Options) -> Volume:
    """A 3-D mask in the project's values."""
    volume = read_volume(path, axes=3)
    return dataclasses.replace(volume, data=map_mask(path, volume.data, options.mask_values))


NIFTI = Importer("nifti", "NIfTI 4-D cine with 3-D LGE masks", recognise, find, load)
