"""Ways to spoil a source: each gets its files and draws, and alters the files."""

import gzip
import io
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tools.mutation import sources
from tools.mutation.sources import CINE, FRAMES, MASK, SIZE, TABLE, Files

Change = Callable[[Files, random.Random], None]
Alter = Callable[[Any, random.Random], Any]


def _with_arguments(function: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    """``f(what, draws, *arguments)`` as ``f(*arguments)``, which alters what it is given."""
    return lambda *given, **named: lambda what, draws: function(what, draws, *given, **named)


def _some_dicom(files: Files, draws: random.Random) -> str:
    return draws.choice(sorted(name for name in files if name.endswith(".dcm")))


@_with_arguments
def in_images(
    files: Files, draws: random.Random, change: Alter, *, every: bool = False, **how: Any
) -> None:
    """A change of data sets: of one image, or of all alike."""
    from pydicom import dcmread

    names = [n for n in sorted(files) if n.endswith(".dcm")]
    state = draws.getstate()
    for name in names if every else [_some_dicom(files, draws)]:
        if every:
            draws.setstate(state)
        data = dcmread(io.BytesIO(files[name]))
        change(data, draws)
        files[name] = sources.dicom_bytes(data, **how)


@_with_arguments
def setting(data: Any, draws: random.Random, **tags: Any) -> None:
    """Sets tags; a list of values is drawn from, None takes the tag out."""
    for name, values in tags.items():
        value = draws.choice(values)
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)


@_with_arguments
def in_bytes(files: Files, draws: random.Random, where: str, change: Alter) -> None:
    """A change of the bytes of a file whose name ends so."""
    name = draws.choice(sorted(n for n in files if n.endswith(where)))
    files[name] = bytes(change(bytearray(files[name]), draws))


def cut(content: bytearray, draws: random.Random) -> bytes:
    """The file up to a place somewhere before its end; nothing at all now and then."""
    return bytes(content[: draws.choice([0, draws.randrange(len(content))])])


def flip(content: bytearray, draws: random.Random) -> bytes:
    """One to eight bytes anywhere become others."""
    for _ in range(draws.randint(1, 8)):
        content[draws.randrange(len(content))] = draws.randrange(256)
    return bytes(content)


def splice(content: bytearray, draws: random.Random) -> bytes:
    """A piece is lost, doubled, or becomes zeros."""
    start = draws.randrange(len(content))
    end = min(len(content), start + draws.randint(1, 400))
    piece = content[start:end]
    content[start:end] = draws.choice([b"", piece + piece, bytes(len(piece))])
    return bytes(content)


def flip_header(content: bytearray, draws: random.Random) -> bytes:
    """One to four bytes among the first 400 become others: where numbers and sizes are."""
    for _ in range(draws.randint(1, 4)):
        content[draws.randrange(min(400, len(content)))] = draws.randrange(256)
    return bytes(content)


@_with_arguments
def replaced(
    files: Files, draws: random.Random, name: str, make: Callable[[random.Random], bytes]
) -> None:
    """A file made anew."""
    files[name] = make(draws)


@_with_arguments
def without(files: Files, draws: random.Random, where: str) -> None:
    """A file whose name ends so is lost."""
    del files[draws.choice(sorted(n for n in files if n.endswith(where)))]


def moved(data: Any, draws: random.Random) -> None:
    """An image lies elsewhere."""
    by = draws.uniform(1.5, 6.0)
    data.ImagePositionPatient = [float(v) + by for v in data.ImagePositionPatient]


def lie_flat(data: Any, draws: random.Random) -> None:
    """An image lies in a plane of the body."""
    data.ImageOrientationPatient = draws.choice(
        [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]]
    )


def renamed(files: Files, draws: random.Random) -> None:
    """Other names, depths and so another order."""
    for name in [n for n in sorted(files) if n.endswith(".dcm")]:
        deep = draws.choice(["", "x/", "x/y/"])
        files[f"A/{deep}{draws.getrandbits(60):x}{draws.choice(['', '.dcm', '.IMA'])}"] = files.pop(
            name
        )


def beside(files: Files, draws: random.Random) -> None:
    """Files that are no images."""
    name, content = draws.choice(
        [("README.txt", b"x"), (".DS_Store", b"\0" * 99), ("Thumbs.db", b"y" * 600),
         ("notes/list.csv", b"a,b\n"), ("report.pdf", b"%PDF-1.4\n"), (".hidden.nii", b"z")]
    )  # fmt: skip
    files[draws.choice(["", "A/" if any(n.startswith("A/") for n in files) else ""]) + name] = (
        content
    )


def unread_tags(data: Any, draws: random.Random) -> None:
    """Tags that are not read."""
    for name, vr in draws.sample(_UNREAD, draws.randint(1, 5)):
        values = {
            "LO": f"x{draws.getrandbits(30)}", "DA": "20010203", "TM": "101112", "DS": "3.5",
            "IS": "7", "AS": "050Y", "UI": f"1.2.{draws.getrandbits(30)}", "LT": "long " * 50,
        }  # fmt: skip
        setattr(data, name, values[vr])


_UNREAD = [
    ("InstitutionName", "LO"), ("StationName", "LO"), ("StudyDate", "DA"),
    ("StudyTime", "TM"), ("Manufacturer", "LO"), ("ManufacturerModelName", "LO"),
    ("OperatorsName", "LO"), ("PatientAge", "AS"), ("PatientWeight", "DS"), ("StudyID", "LO"),
    ("RepetitionTime", "DS"), ("FlipAngle", "DS"), ("SAR", "DS"), ("ImageComments", "LT"),
    ("AccessionNumber", "LO"), ("WindowCenter", "DS"), ("WindowWidth", "DS"),
    ("EchoTrainLength", "IS"), ("AcquisitionDate", "DA"), ("ContentDate", "DA"),
]  # fmt: skip


def private(data: Any, draws: random.Random) -> None:
    """A private block of some maker."""
    block = data.private_block(0x0029, "SOMEBODY", create=True)
    block.add_new(draws.randrange(1, 200), "OB", draws.randbytes(2 * draws.randint(1, 400)))


@_with_arguments
def nifti_header(files: Files, draws: random.Random, which: str, change: Alter) -> None:
    """One of the two files with another header."""
    array = CINE if which == "cine" else MASK
    files[f"A_{which}.nii"] = sources.nifti_bytes(
        array.T, sources.plane_affine(), lambda header: change(header, draws)
    )


def unread_fields(header: Any, draws: random.Random) -> None:
    """Fields of the header that nothing depends on."""
    for name in draws.sample(["descrip", "aux_file", "intent_name", "db_name"], 2):
        header[name] = draws.choice(["x", "SPM", "made by hand"])
    for name in draws.sample(["cal_max", "cal_min", "slice_duration", "toffset", "glmax"], 2):
        header[name] = draws.randint(1, 900)


def other_axes(files: Files, draws: random.Random) -> None:
    """The same volumes with their axes in another order and direction."""
    order = draws.sample(range(3), 3)
    flips = [axis for axis in range(3) if draws.random() < 0.5]
    for name, array in (("A_cine.nii", CINE), ("A_lge_mask.nii", MASK)):
        stored, affine = array.T, sources.plane_affine()
        for axis in flips:
            stored = np.flip(stored, axis)
            affine[:3, 3] += affine[:3, axis] * (stored.shape[axis] - 1)
            affine[:3, axis] *= -1
        stored = stored.transpose(*order, *range(3, stored.ndim))
        files[name] = sources.nifti_bytes(np.ascontiguousarray(stored), affine[:, [*order, 3]])


def compressed(files: Files, draws: random.Random) -> None:
    """All files as .nii.gz."""
    for name in [n for n in files if n.endswith(".nii")]:
        files[f"{name}.gz"] = gzip.compress(files.pop(name), draws.randint(0, 9))


def bad_header(header: Any, draws: random.Random) -> None:
    """A header that contradicts itself."""
    kind = draws.choice(["pixdim", "qform", "no volume"])
    if kind == "pixdim":
        header["pixdim"][1:3] = 0.9, 0.9
    elif kind == "qform":
        header.set_qform(header.get_sform() @ np.diag([-1, 1, 1, 1]), code=1)
    else:
        header["srow_x"] = header["srow_y"] = header["srow_z"] = 0


def no_orientation(header: Any, draws: random.Random) -> None:
    """Of one of the two files: no orientation, or the identity."""
    if draws.random() < 0.5:
        header["sform_code"] = header["qform_code"] = 0
    else:
        header.set_sform(np.eye(4), code=1)
        header.set_qform(np.eye(4), code=0)
        header["pixdim"][1:4] = 1


@_with_arguments
def header_number(
    content: bytearray, draws: random.Random, offset: int, form: str, *values: float
) -> bytes:
    """A number of the header of an uncompressed NIfTI file."""
    struct.pack_into(f"<{form}", content, offset, draws.choice(values))
    return bytes(content)


def mask_value(value: int) -> np.ndarray:
    """The mask with a pixel of another value."""
    out = MASK.copy()
    out[0, 3, 3] = value
    return out


def _draw_into(
    content: dict[str, Any], fields: dict[str, Sequence[Any]], draws: random.Random
) -> None:
    """Each field becomes one of its values; None takes it out."""
    for name, values in fields.items():
        if (value := draws.choice(values)) is None:
            del content[name]
        else:
            content[name] = value


@_with_arguments
def in_stack(files: Files, draws: random.Random, stack: int, **fields: Any) -> None:
    """A field of a stack of ``setstruct``: other values to draw from, None takes it out."""
    content = sources.stacks()
    _draw_into(content[stack], fields, draws)
    files["A.mat"] = sources.mat_bytes(content)


def other_mat(files: Files, draws: random.Random) -> None:
    """Other variables, other fields, not compressed."""
    content = sources.stacks()
    for stack in content:
        for k in range(draws.randint(0, 3)):
            stack[f"Unread{k}"] = draws.choice([np.ones((2, 2)), "text", np.zeros((0, 0))])
    more = {f"other{k}": np.arange(draws.randint(1, 50)) for k in range(draws.randint(0, 3))}
    files["A.mat"] = sources.mat_bytes(content, compress=draws.random() < 0.5, **more)


@_with_arguments
def arrays(files: Files, draws: random.Random, **fields: Any) -> None:
    """Arrays of the ``.npz``: values to draw from, None takes one out."""
    content = sources.npz_arrays()
    _draw_into(content, fields, draws)
    files["A.npz"] = sources.npz_bytes(content, compress=draws.random() < 0.5)


def same_arrays(files: Files, draws: random.Random) -> None:
    """The same arrays in another order, type and compression."""
    content = sources.npz_arrays()
    content["cine"] = content["cine"].astype(draws.choice([np.uint16, np.int32, np.float64]))
    names = list(content)
    draws.shuffle(names)
    arrays = {name: content[name] for name in names}
    files["A.npz"] = sources.npz_bytes(arrays, compress=draws.random() < 0.5)


def png_again(files: Files, draws: random.Random) -> None:
    """Another compression, and texts beside the pixels."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    for name, content in files.items():
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            texts = PngInfo()
            texts.add_text("Comment", f"x{draws.getrandbits(20)}")
            level = draws.randint(0, 9)
            files[name] = sources.png_bytes(image, compress_level=level, pnginfo=texts)


@_with_arguments
def a_frame(files: Files, draws: random.Random, make: Callable[[random.Random], Any]) -> None:
    """A frame made anew."""
    files[f"A_{draws.randrange(FRAMES):02d}_input.png"] = sources.png_bytes(make(draws))


def frame_lost(files: Files, draws: random.Random) -> None:
    """One within the beat, so that its number is missing."""
    del files[f"A_{draws.randrange(1, FRAMES - 1):02d}_input.png"]


def colour(draws: random.Random) -> np.ndarray:
    """An image in one colour."""
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    out[..., draws.randrange(3)] = 200
    return out


@_with_arguments
def in_table(files: Files, draws: random.Random, change: Alter, **how: Any) -> None:
    """Other rows of the table."""
    rows = [list(row) for row in TABLE]
    change(rows, draws)
    files["table.csv"] = sources.csv_bytes(rows, **how)


def in_cell(column: str, *values: str, row: int | None = None) -> Change:
    """Another value in a column, in any row or in one."""

    def change(rows: list[list[str]], draws: random.Random) -> None:
        rows[row or draws.choice([1, 2])][TABLE[0].index(column)] = draws.choice(values)

    return in_table(change)


def columns_moved(rows: list[list[str]], draws: random.Random) -> None:
    """The columns in another order, and perhaps the rows."""
    order = draws.sample(range(len(rows[0])), len(rows[0]))
    rows[:] = [[row[i] for i in order] for row in rows]
    if draws.random() < 0.5:
        rows[1:] = rows[:0:-1]


@_with_arguments
def table_text(files: Files, draws: random.Random, make: Alter) -> None:
    """Other bytes of the table."""
    files["table.csv"] = make(sources.csv_bytes(), draws)


def other_signs(content: bytes, draws: random.Random) -> bytes:
    """Another separator, line end or byte-order mark."""
    text = content.decode()
    text = text.replace(",", draws.choice([",", ";", "\t"]))
    text = text.replace("\r\n", draws.choice(["\r\n", "\n"]))
    text += draws.choice(["", "\r\n", "\n\n"])
    return draws.choice([b"", b"\xef\xbb\xbf"]) + text.encode()


def ragged(rows: list[list[str]], draws: random.Random) -> None:
    """A row with a cell too few or too many."""
    draws.choice([lambda: rows[1].pop(), lambda: rows[2].append("x")])()
