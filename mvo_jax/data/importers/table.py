"""A user's CSV about the cases: labels, splits, patients, files, crop centres."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path

from mvo_jax.data.names import composed
from mvo_jax.errors import UserError

COLUMNS = {
    "case_id": "name of the case (or of its series); the key of a row",
    "patient_id": "the patient; the key where there is no case_id",
    "label": "1 MVO, 0 none, empty unknown",
    "split": "train, validation or test",
    "cine": "path of the cine, relative to the source (NIfTI)",
    "mask": "path of the LGE mask, relative to the source (NIfTI)",
    "centre_row": "row of the crop's centre, pixels of the source",
    "centre_column": "column of the crop's centre, pixels of the source",
    "end_diastole": "frame of end-diastole, counted from 0",
}
SPLITS = ("train", "validation", "test")
_MAX_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says about a case; None where it is silent."""

    line: int
    case_id: str | None = None
    patient_id: str | None = None
    label: int | None = None
    split: str | None = None
    cine: str | None = None
    mask: str | None = None
    centre: tuple[float, float] | None = None
    end_diastole: int | None = None

    @property
    def files(self) -> list[str]:
        """Cine and mask, where they are named."""
        return [name for name in (self.cine, self.mask) if name is not None]


@dataclasses.dataclass(frozen=True)
class Table:
    """A file, and its rows by ``case_id``, or if it has not that column by ``patient_id``."""

    path: Path | None = None  # None for the empty table
    # The names as ``composed`` gives them.
    rows: Mapping[str, Row] = dataclasses.field(default_factory=dict)

    def row(self, *keys: str | None) -> Row | None:
        """The row of the first of several names that has one."""
        names = (composed(key) for key in keys if key is not None)
        return next((self.rows[name] for name in names if name in self.rows), None)


def read_table(path: Path) -> Table:
    """Read a table; comma, semicolon or tab, with or without byte-order mark, any line ends.

    Raises:
        UserError: unreadable, unknown or missing columns, a value out of range, a key twice.
    """

    def bad(cause: str, remedy: str) -> UserError:
        return UserError(f"{path}: {cause}", remedy)

    columns = f"columns are: {', '.join(COLUMNS)}"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise bad("is larger than any table of cases", "give a CSV with one row a case")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise bad(f"cannot be read ({error.strerror})", "give the path of a CSV file") from error
    except UnicodeDecodeError as error:
        raise bad("is not UTF-8 text", "save it as CSV in UTF-8") from error
    if "\0" in text:
        raise bad("is not text", "save it as CSV in UTF-8")
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [name.strip().lower() for name in next(reader, [])]
    if not header:
        raise bad("is empty", columns)
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or len(set(header)) != len(header):
        raise bad(f"has unknown or repeated columns {unknown or header}", columns)
    key = next((name for name in ("case_id", "patient_id", "cine") if name in header), None)
    if key is None:
        raise bad("has neither case_id nor patient_id nor cine", columns)
    rows: dict[str, Row] = {}
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"line {reader.line_num}"
            if len(cells) != len(header):
                remedy = columns
                if delimiter == "," and len(cells) > len(header):
                    remedy += "; numbers are written with a decimal point, not a comma"
                raise bad(f"{where} has {len(cells)} cells for {len(header)} columns", remedy)
            texts = {name: cell.strip() or None for name, cell in zip(header, cells, strict=True)}
            row = _row(texts, reader.line_num, bad)
            name = getattr(row, key)
            if name is None:
                raise bad(f"{where} has no {key}", f"fill in {key} in every row")
            if (name := composed(name)) in rows:
                says = f"{where} repeats {key} {name!r} of line {rows[name].line}"
                raise bad(says, "keep one row a case")
            rows[name] = row
    except csv.Error as error:
        raise bad(f"is no CSV ({error})", columns) from error
    if not rows:
        raise bad("has a header and no rows", "add one row a case")
    return Table(path, rows)


def has_decimal_comma(text: str) -> bool:
    """Whether a cell is a number as some languages write it: 1,25."""
    return re.fullmatch(r"\s*[-+]?\d+,\d+\s*", text) is not None


def _row(cells: Mapping[str, str | None], line: int, bad) -> Row:
    label, split = cells.get("label"), cells.get("split")
    if label not in (None, "0", "1"):
        raise bad(f"line {line} has label {label!r}", "labels are 0, 1 or empty (unknown)")
    if split not in (None, *SPLITS):
        raise bad(f"line {line} has split {split!r}", f"splits are {', '.join(SPLITS)} or empty")

    def number(name: str) -> float | None:
        value = cells.get(name)
        if value is None:
            return None
        try:
            result = float(value)
        except ValueError:
            result = math.nan
        if not 0 <= result < 1e6:
            remedy = "give a number of 0 or more, or nothing"
            if has_decimal_comma(value):
                remedy = f"write {name} of line {line} with a decimal point"
            raise bad(f"line {line} has {name} {value!r}", remedy)
        return result

    row, column, frame = number("centre_row"), number("centre_column"), number("end_diastole")
    if (row is None) != (column is None):
        raise bad(f"line {line} gives half a centre", "fill in centre_row and centre_column")
    if frame is not None and frame != int(frame):
        raise bad(f"line {line} has end_diastole {frame}", "give a whole frame number from 0")
    return Row(
        line=line,
        label=None if label is None else int(label),
        split=split,
        centre=None if row is None or column is None else (row, column),
        end_diastole=None if frame is None else int(frame),
        **{name: cells.get(name) for name in ("case_id", "patient_id", "cine", "mask")},
    )
