"""ShefPAH-179: ``SA_64x64/DICOM/Subject_N/Phase_1..20.dcm`` and ``landmarks_64x64.csv``.

Its ``Group`` is another disease than MVO, pulmonary hypertension, so cases have no label; the
middle of the landmarks is the centre of the crop.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mvo_jax.data.importers.cine import Importer, Options, Series, square_pixel
from mvo_jax.data.importers.dicom_headers import read_headers
from mvo_jax.data.importers.dicom_pixels import read_pixels
from mvo_jax.data.importers.table import has_decimal_comma
from mvo_jax.data.importers.walk import fault
from mvo_jax.data.slices import CineSlice

_PHASE = re.compile(r"Phase_(\d+)\.dcm", re.IGNORECASE)
_SUBJECT = re.compile(r"Subject_(\d+)", re.IGNORECASE)


def _folder(source: Path) -> Path | None:
    folders = source / "DICOM", source / "SA_64x64" / "DICOM", source
    return next((p for p in folders if p.is_dir() and any(p.glob("Subject_*"))), None)


def recognise(source: Path) -> bool:
    """Folders ``Subject_N``, perhaps below ``SA_64x64/DICOM``."""
    return source.is_dir() and _folder(source) is not None


def find(source: Path, _: Options) -> Iterator[Series]:
    """One series a subject, in the order of their numbers."""
    folder = _folder(source)
    if folder is None:
        raise fault(source, " has no folders Subject_N", "give the folder of ShefPAH-179")
    centres = _read_landmarks(folder.parent / "landmarks_64x64.csv")
    for number, path in _numbered(folder, _SUBJECT):
        yield Series(path.name, path, path.name, {"centre": centres.get(number)})


def _numbered(folder: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    """What is there of a name with a number, in the order of the numbers."""
    return sorted((int(m[1]), p) for p in folder.iterdir() if (m := name.fullmatch(p.name)))


def _read_landmarks(path: Path) -> dict[int, tuple[float, float]]:
    """Number (of the first column) -> middle of the landmarks, pairs x, y, as (row, column)."""
    if not path.is_file():
        return {}
    out = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = ";" if ";" in file.readline() else ","
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            header = next(reader)
            skip = {i for i, name in enumerate(header) if i == 0 or name.strip().lower() == "group"}
            for cells in reader:
                for name, cell in zip(header, cells, strict=False):
                    if has_decimal_comma(cell):
                        says = f": line {reader.line_num} has {name.strip()} {cell!r}"
                        raise fault(path, says, "write its numbers with a decimal point")
                number = re.search(r"\d+", cells[0])
                values = [float(c) for i, c in enumerate(cells) if i not in skip and c.strip()]
                if number is None or len(values) < 2 or len(values) % 2:
                    raise ValueError(f"line {reader.line_num}")
                points = np.array(values).reshape(-1, 2)
                out[int(number[0])] = (float(points[:, 1].mean()), float(points[:, 0].mean()))
    except (ValueError, IndexError, StopIteration, UnicodeDecodeError, csv.Error) as error:
        remedy = "it has a subject, x and y of three landmarks, and Group"
        raise fault(path, f" cannot be read ({error})", remedy) from error
    return out


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the phases of a subject in the order of their numbers."""
    phases = _numbered(series.path, _PHASE)
    numbers = [n for n, _ in phases]
    if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise fault(series.path, f" has the phases {numbers}", "add the missing Phase_N.dcm")
    images = [image for _, path in phases for image in read_headers(path)]
    sizes = len({image.shape for image in images})
    if len(images) != len(phases) or sizes > 1:
        says = f": its {len(phases)} files hold {len(images)} images of {sizes} sizes"
        raise fault(series.path, says, "copy the folder again; every Phase_N.dcm is one image")
    (cine,) = read_pixels([images])
    spacing = square_pixel(options.pixel_mm) or images[0].spacing
    return [series.slice(0, 1, cine=cine, pixel_mm=spacing, centre=series.detail["centre"])]


SHEFPAH = Importer("shefpah", "ShefPAH-179, cine with landmarks, no LGE", recognise, find, load)
