"""What is done to a source, and what must then be: refused, not matter, or be seen in the manifest.

The outcome of a change is fixed here, before anything is read. A change gets the files of a sound
source and draws, and alters the files.
"""

import gzip
import io
import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tools.mutation import sources
from tools.mutation.sources import CINE, FRAMES, MASK, PIXEL_MM, SIZE, TABLE, Files

REFUSED, SAME, SEEN = "must refuse", "must not matter", "may change"
Change = Callable[[Files, random.Random], None]


class Mutation(NamedTuple):
    """A kind of change.

    Attributes:
        name: for the report.
        form: key of ``SOURCES``.
        group: what must come of it.
        change: alters the files.
        columns: of the manifest; of ``SEEN``, one of them differs unless the source is refused.
            Empty: any may, or none.
    """

    name: str
    form: str
    group: str
    change: Change
    columns: tuple[str, ...] = ()


def _some_dicom(files: Files, draws: random.Random) -> str:
    return draws.choice(sorted(name for name in files if name.endswith(".dcm")))


def _dicom(
    change: Callable[[Any, random.Random], None], *, every: bool = False, **how: Any
) -> Change:
    """A change of data sets: of one image, or of all alike."""

    def run(files: Files, draws: random.Random) -> None:
        from pydicom import dcmread

        names = [n for n in sorted(files) if n.endswith(".dcm")]
        state = draws.getstate()
        for name in names if every else [_some_dicom(files, draws)]:
            if every:
                draws.setstate(state)
            data = dcmread(io.BytesIO(files[name]))
            change(data, draws)
            files[name] = sources.dicom_bytes(data, **how)

    return run


def _sets(**tags: Any) -> Callable[[Any, random.Random], None]:
    """Sets tags; a list of values is drawn from, None takes the tag out."""

    def run(data: Any, draws: random.Random) -> None:
        for name, values in tags.items():
            value = draws.choice(values)
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)

    return run


def _bytes(where: str, change: Callable[[bytearray, random.Random], bytes]) -> Change:
    """A change of the bytes of a file whose name ends so."""

    def run(files: Files, draws: random.Random) -> None:
        name = draws.choice(sorted(n for n in files if n.endswith(where)))
        files[name] = bytes(change(bytearray(files[name]), draws))

    return run


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


def _replaces(name: str, make: Callable[[random.Random], bytes]) -> Change:
    def run(files: Files, draws: random.Random) -> None:
        files[name] = make(draws)

    return run


def _loses(where: str) -> Change:
    def run(files: Files, draws: random.Random) -> None:
        del files[draws.choice(sorted(n for n in files if n.endswith(where)))]

    return run


def _moves(data: Any, draws: random.Random) -> None:
    by = draws.uniform(1.5, 6.0)
    data.ImagePositionPatient = [float(v) + by for v in data.ImagePositionPatient]


def _lie_flat(data: Any, draws: random.Random) -> None:
    data.ImageOrientationPatient = draws.choice(
        [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]]
    )


def _renamed(files: Files, draws: random.Random) -> None:
    """Other names, depths and so another order."""
    for name in [n for n in sorted(files) if n.endswith(".dcm")]:
        deep = draws.choice(["", "x/", "x/y/"])
        files[f"A/{deep}{draws.getrandbits(60):x}{draws.choice(['', '.dcm', '.IMA'])}"] = files.pop(
            name
        )


def _beside(files: Files, draws: random.Random) -> None:
    """Files that are no images."""
    name, content = draws.choice(
        [("README.txt", b"x"), (".DS_Store", b"\0" * 99), ("Thumbs.db", b"y" * 600),
         ("notes/list.csv", b"a,b\n"), ("report.pdf", b"%PDF-1.4\n"), (".hidden.nii", b"z")]
    )  # fmt: skip
    files[draws.choice(["", "A/" if any(n.startswith("A/") for n in files) else ""]) + name] = (
        content
    )


def _texts(data: Any, draws: random.Random) -> None:
    """Tags that are not read."""
    for name, vr in draws.sample(_UNREAD, draws.randint(1, 5)):
        values = {
            "LO": f"x{draws.getrandbits(30)}", "DA": "20010203", "TM": "101112", "DS": "3.5",
            "IS": "7", "AS": "050Y", "UI": f"1.2.{draws.getrandbits(30)}", "LT": "long " * 50,
        }  # fmt: skip
        setattr(data, name, values[vr])


_UNREAD = [
    ("PatientName", "LO"), ("InstitutionName", "LO"), ("StationName", "LO"), ("StudyDate", "DA"),
    ("StudyTime", "TM"), ("Manufacturer", "LO"), ("ManufacturerModelName", "LO"),
    ("OperatorsName", "LO"), ("PatientAge", "AS"), ("PatientWeight", "DS"), ("StudyID", "LO"),
    ("RepetitionTime", "DS"), ("FlipAngle", "DS"), ("SAR", "DS"), ("ImageComments", "LT"),
    ("AccessionNumber", "LO"), ("WindowCenter", "DS"), ("WindowWidth", "DS"),
    ("EchoTrainLength", "IS"), ("AcquisitionDate", "DA"), ("ContentDate", "DA"),
]  # fmt: skip


def _private(data: Any, draws: random.Random) -> None:
    block = data.private_block(0x0029, "SOMEBODY", create=True)
    block.add_new(draws.randrange(1, 200), "OB", draws.randbytes(2 * draws.randint(1, 400)))


def _nifti_header(which: str, change: Callable[[Any, random.Random], None]) -> Change:
    def run(files: Files, draws: random.Random) -> None:
        array = CINE if which == "cine" else MASK
        files[f"A_{which}.nii"] = sources.nifti_bytes(
            array.T, sources.plane_affine(), lambda header: change(header, draws)
        )

    return run


def _unread_fields(header: Any, draws: random.Random) -> None:
    for name in draws.sample(["descrip", "aux_file", "intent_name", "db_name"], 2):
        header[name] = draws.choice(["x", "SPM", "made by hand"])
    for name in draws.sample(["cal_max", "cal_min", "slice_duration", "toffset", "glmax"], 2):
        header[name] = draws.randint(1, 900)


def _other_axes(files: Files, draws: random.Random) -> None:
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


def _compressed(files: Files, draws: random.Random) -> None:
    for name in [n for n in files if n.endswith(".nii")]:
        files[f"{name}.gz"] = gzip.compress(files.pop(name), draws.randint(0, 9))


def _bad_header(header: Any, draws: random.Random) -> None:
    """A header that contradicts itself."""
    draws.choice([_other_pixdim, _other_qform, _no_volume])(header)


def _other_pixdim(header: Any) -> None:
    header["pixdim"][1:3] = 0.9, 0.9


def _other_qform(header: Any) -> None:
    header.set_qform(header.get_sform() @ np.diag([-1, 1, 1, 1]), code=1)


def _no_volume(header: Any) -> None:
    header["srow_x"] = header["srow_y"] = header["srow_z"] = 0


def _default(header: Any, draws: random.Random) -> None:
    """Of one of the two files: no orientation, or the identity."""
    if draws.random() < 0.5:
        header["sform_code"] = header["qform_code"] = 0
    else:
        header.set_sform(np.eye(4), code=1)
        header.set_qform(np.eye(4), code=0)
        header["pixdim"][1:4] = 1


def _raw(offset: int, form: str, *values: float) -> Callable[[bytearray, random.Random], bytes]:
    """A number of the header of an uncompressed NIfTI file."""

    def run(content: bytearray, draws: random.Random) -> bytes:
        struct.pack_into(f"<{form}", content, offset, draws.choice(values))
        return bytes(content)

    return run


def _mask_value(value: int) -> np.ndarray:
    out = MASK.copy()
    out[0, 3, 3] = value
    return out


def _spoil(stack: int, **fields: Any) -> Change:
    """A field of a stack of ``setstruct``: other values to draw from, None takes it out."""

    def run(files: Files, draws: random.Random) -> None:
        content = sources.stacks()
        for name, values in fields.items():
            value = draws.choice(values)
            if value is None:
                del content[stack][name]
            else:
                content[stack][name] = value
        files["A.mat"] = sources.mat_bytes(content)

    return run


def _other_mat(files: Files, draws: random.Random) -> None:
    """Other variables, other fields, not compressed."""
    content = sources.stacks()
    for stack in content:
        for k in range(draws.randint(0, 3)):
            stack[f"Unread{k}"] = draws.choice([np.ones((2, 2)), "text", np.zeros((0, 0))])
    more = {f"other{k}": np.arange(draws.randint(1, 50)) for k in range(draws.randint(0, 3))}
    files["A.mat"] = sources.mat_bytes(content, compress=draws.random() < 0.5, **more)


def _arrays(**fields: Any) -> Change:
    """Arrays of the ``.npz``: values to draw from, None takes one out."""

    def run(files: Files, draws: random.Random) -> None:
        content = sources.npz_arrays()
        for name, values in fields.items():
            value = draws.choice(values)
            if value is None:
                del content[name]
            else:
                content[name] = value
        files["A.npz"] = sources.npz_bytes(content, compress=draws.random() < 0.5)

    return run


def _same_arrays(files: Files, draws: random.Random) -> None:
    content = sources.npz_arrays()
    content["cine"] = content["cine"].astype(draws.choice([np.uint16, np.int32, np.float64]))
    names = list(content)
    draws.shuffle(names)
    arrays = {name: content[name] for name in names}
    files["A.npz"] = sources.npz_bytes(arrays, compress=draws.random() < 0.5)


def _png_again(files: Files, draws: random.Random) -> None:
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


def _frame(make: Callable[[random.Random], Any]) -> Change:
    def run(files: Files, draws: random.Random) -> None:
        files[f"A_{draws.randrange(FRAMES):02d}_input.png"] = sources.png_bytes(make(draws))

    return run


def _colour(draws: random.Random) -> np.ndarray:
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    out[..., draws.randrange(3)] = 200
    return out


def _table(change: Callable[[list[list[str]], random.Random], None], **how: Any) -> Change:
    def run(files: Files, draws: random.Random) -> None:
        rows = [list(row) for row in TABLE]
        change(rows, draws)
        files["table.csv"] = sources.csv_bytes(rows, **how)

    return run


def _cell(column: str, *values: str, row: int | None = None) -> Change:
    def change(rows: list[list[str]], draws: random.Random) -> None:
        rows[row or draws.choice([1, 2])][TABLE[0].index(column)] = draws.choice(values)

    return _table(change)


def _columns_moved(rows: list[list[str]], draws: random.Random) -> None:
    order = draws.sample(range(len(rows[0])), len(rows[0]))
    rows[:] = [[row[i] for i in order] for row in rows]
    if draws.random() < 0.5:
        rows[1:] = rows[:0:-1]


def _table_text(make: Callable[[bytes, random.Random], bytes]) -> Change:
    def run(files: Files, draws: random.Random) -> None:
        files["table.csv"] = make(sources.csv_bytes(), draws)

    return run


def _other_signs(content: bytes, draws: random.Random) -> bytes:
    text = content.decode()
    text = text.replace(",", draws.choice([",", ";", "\t"]))
    text = text.replace("\r\n", draws.choice(["\r\n", "\n"]))
    text += draws.choice(["", "\r\n", "\n\n"])
    return draws.choice([b"", b"\xef\xbb\xbf"]) + text.encode()


def _ragged(rows: list[list[str]], draws: random.Random) -> None:
    draws.choice([lambda: rows[1].pop(), lambda: rows[2].append("x")])()


GREY = (CINE[:, 1] // 2).astype(np.uint16)
HOLED = CINE[:, 1].astype(np.float32).copy()
HOLED[2, 3, 4] = np.nan

MUTATIONS = [
    # DICOM
    Mutation("an image cut off", "dicom", REFUSED, _bytes(".dcm", cut)),
    Mutation("an image lost", "dicom", REFUSED, _loses(".dcm")),
    *(
        Mutation(f"an image without {name}", "dicom", REFUSED, _dicom(_sets(**{name: [None]})))
        for name in ("Rows", "Columns", "BitsAllocated", "PixelData", "ImagePositionPatient")
    ),
    Mutation("no PixelSpacing", "dicom", REFUSED, _dicom(_sets(PixelSpacing=[None]), every=True)),
    Mutation("an image of another size", "dicom", REFUSED, _dicom(_sets(Rows=[10, 21, 40, 20000]))),
    Mutation("an image moved", "dicom", REFUSED, _dicom(_moves)),
    Mutation("an image turned", "dicom", REFUSED, _dicom(_lie_flat)),
    Mutation("an image of another patient", "dicom", REFUSED, _dicom(_sets(PatientID=["P2", "X"]))),
    Mutation("an image of another pixel", "dicom", REFUSED,
             _dicom(_sets(PixelSpacing=[[2.0, 2.0], [1.5, 1.0], [0.0, 0.0]]))),
    Mutation("colour", "dicom", REFUSED, _dicom(_sets(SamplesPerPixel=[3]))),
    Mutation("no cine by its type", "dicom", REFUSED,
             _dicom(_sets(ImageType=[["ORIGINAL", "PRIMARY", "P"], ["DERIVED", "PHASE"]]))),
    Mutation("directions that are none", "dicom", REFUSED,
             _dicom(_sets(ImageOrientationPatient=[[0] * 6, [1, 0, 0, 1, 0, 0]]), every=True)),
    Mutation("tags that are not read", "dicom", SAME, _dicom(_texts, every=True)),
    Mutation("tags that are not read, of one", "dicom", SAME, _dicom(_texts)),
    Mutation("private tags", "dicom", SAME, _dicom(_private, every=True)),
    Mutation("other names", "dicom", SAME, _renamed),
    Mutation("files beside", "dicom", SAME, _beside),
    Mutation("trigger times scaled", "dicom", SAME,
             _dicom(lambda data, _: setattr(data, "TriggerTime", float(data.TriggerTime) / 2),
                    every=True)),
    Mutation("no TriggerTime", "dicom", SAME, _dicom(_sets(TriggerTime=[None]), every=True)),
    Mutation("PixelSpacing", "dicom", SEEN,
             _dicom(_sets(PixelSpacing=[[1.2, 1.2], [2.0, 2.0], [1.5, 1.8], [0.01, 1], [90, 90]]),
                    every=True), ("step_row", "step_column")),
    Mutation("RescaleSlope", "dicom", SEEN, _dicom(_sets(RescaleSlope=[0.5, 2, 7]), every=True),
             ("grey_high",)),
    Mutation("RescaleIntercept", "dicom", SEEN, _dicom(_sets(RescaleIntercept=[-50, 9, 1000]),
                                                       every=True), ("grey_high",)),
    Mutation("PatientID", "dicom", SEEN, _dicom(_sets(PatientID=["Q", "ANON", "P 1"]), every=True),
             ("patient_id", "note")),
    Mutation("MONOCHROME1", "dicom", SEEN,
             _dicom(_sets(PhotometricInterpretation=["MONOCHROME1"]), every=True), ("sha256",)),
    *(Mutation(f"bytes of an image {what}", "dicom", SEEN, _bytes(".dcm", how))
      for what, how in (("changed", flip), ("of the header changed", flip_header),
                        ("lost or doubled", splice))),
    # NIfTI
    Mutation("cut off", "nifti", REFUSED, _bytes(".nii", cut)),
    Mutation("a header that contradicts itself", "nifti", REFUSED,
             _nifti_header("cine", _bad_header)),
    Mutation("a mask's header that contradicts itself", "nifti", REFUSED,
             _nifti_header("lge_mask", _bad_header)),
    Mutation("no orientation of one", "nifti", REFUSED, _nifti_header("cine", _default)),
    Mutation("no orientation of the mask", "nifti", REFUSED, _nifti_header("lge_mask", _default)),
    Mutation("a data type that is none", "nifti", REFUSED, _bytes(".nii", _raw(70, "h", 3, 99))),
    Mutation("a size that is none", "nifti", REFUSED,
             _bytes("cine.nii", _raw(42, "h", -5, 0, 30000))),
    Mutation("a mask value without meaning", "nifti", REFUSED,
             _replaces("A_lge_mask.nii", lambda d: sources.nifti_bytes(
                 _mask_value(d.randint(4, 250)).T, sources.plane_affine()))),
    Mutation("probabilities as a mask", "nifti", REFUSED,
             _replaces("A_lge_mask.nii", lambda d: sources.nifti_bytes(
                 (MASK.T * d.uniform(0.1, 0.4)).astype(np.float32), sources.plane_affine()))),
    Mutation("fields that are not read", "nifti", SAME, _nifti_header("cine", _unread_fields)),
    Mutation("axes in another order", "nifti", SAME, _other_axes),
    Mutation("compressed", "nifti", SAME, _compressed),
    Mutation("files beside", "nifti", SAME, _beside),
    Mutation("a slope in the header", "nifti", SEEN,
             _bytes("cine.nii", _raw(112, "f", 0.5, 3.0, 700.0)), ("grey_high",)),
    Mutation("drawings moved", "nifti", SEEN, _replaces("A_lge_mask.nii", lambda d:
             sources.nifti_bytes(np.roll(MASK, d.choice([-1, 1]), d.randint(0, 2)).T,
                                 sources.plane_affine())), ("sha256",)),
    *(Mutation(f"bytes {what}", "nifti", SEEN, _bytes(".nii", how))
      for what, how in (("changed", flip), ("of the header changed", flip_header),
                        ("lost or doubled", splice))),
    # NRRD
    Mutation("cut off", "nrrd", REFUSED, _bytes(".nrrd", cut)),
    Mutation("no space", "nrrd", REFUSED,
             _replaces("A_lge_mask.seg.nrrd", lambda d: sources.nrrd_bytes(space=None))),
    Mutation("a name that says nothing", "nrrd", REFUSED, _replaces(
        "A_lge_mask.seg.nrrd", lambda d: sources.nrrd_bytes(
            Segment1_Name=d.choice(["Segment_2", "lesion", "?", "LGE"])))),
    Mutation("a value that no segment has", "nrrd", REFUSED, _replaces(
        "A_lge_mask.seg.nrrd", lambda d: sources.nrrd_bytes(
            Segment1_LabelValue=str(d.randint(4, 99))))),
    Mutation("names in other words", "nrrd", SAME, _replaces(
        "A_lge_mask.seg.nrrd", lambda d: sources.nrrd_bytes(
            Segment1_Name=d.choice(["No-reflow", "Microvascular Obstruction", "LV_MVO"]),
            encoding=d.choice(["raw", "gzip", "ascii"])))),
    *(Mutation(f"bytes {what}", "nrrd", SEEN, _bytes(".nrrd", how))
      for what, how in (("changed", flip), ("of the header changed", flip_header),
                        ("lost or doubled", splice))),
    # Segment
    Mutation("cut off", "mat", REFUSED, _bytes(".mat", cut)),
    Mutation("no size of a pixel", "mat", REFUSED,
             _spoil(0, ResolutionX=[None, np.nan, np.zeros((0, 0)), -1.0, 99.0])),
    Mutation("no images", "mat", REFUSED, _spoil(0, IM=[None, np.zeros((0, 0)), np.ones((9, 9))])),
    Mutation("an orientation that is none", "mat", REFUSED,
             _spoil(0, ImageOrientation=[np.ones((1, 5)), np.zeros((1, 6)), np.ones((1, 6))])),
    Mutation("a scar of another size", "mat", REFUSED,
             _spoil(1, Scar=[{"Result": np.ones((3, 3))}, {"Result": np.ones((SIZE, SIZE))}])),
    Mutation("other variables", "mat", SAME, _other_mat),
    Mutation("files beside", "mat", SAME, _beside),
    Mutation("the size of a pixel", "mat", SEEN,
             _spoil(0, ResolutionX=[1.1, 2.0], ResolutionY=[1.1, 2.0]), ("step_row",)),
    *(Mutation(f"bytes {what}", "mat", SEEN, _bytes(".mat", how))
      for what, how in (("changed", flip), ("lost or doubled", splice))),
    # PNG
    Mutation("a file cut off", "png", REFUSED, _bytes(".png", cut)),
    Mutation("a frame lost", "png", REFUSED, lambda files, draws: files.pop(
        f"A_{draws.randrange(1, FRAMES - 1):02d}_input.png") and None),
    Mutation("a frame of another size", "png", REFUSED,
             _frame(lambda d: np.zeros((d.choice([5, 19, 21]), SIZE), np.uint8))),
    Mutation("a frame in colour", "png", REFUSED, _frame(_colour)),
    Mutation("a mask value without meaning", "png", REFUSED, _replaces(
        "A_00_gt.png", lambda d: sources.png_bytes(_mask_value(d.randint(4, 254))[0]))),
    Mutation("compressed otherwise", "png", SAME, _png_again),
    Mutation("files beside", "png", SAME, _beside),
    *(Mutation(f"bytes {what}", "png", SEEN, _bytes(".png", how))
      for what, how in (("changed", flip), ("lost or doubled", splice))),
    # NumPy
    Mutation("cut off", "npz", REFUSED, _bytes(".npz", cut)),
    Mutation("no cine", "npz", REFUSED, _arrays(
        cine=[None, GREY[0], GREY[:3], np.zeros((9, 9)), HOLED, np.array(["x"] * 9)])),
    Mutation("an array of another name", "npz", REFUSED, _arrays(masks=[MASK[1], GREY])),
    Mutation("a size of a pixel that is none", "npz", REFUSED,
             _arrays(pixel_mm=[0.0, -2.0, np.nan, 50.0, np.ones(7)])),
    Mutation("a mask that does not fit", "npz", REFUSED, _arrays(
        lge_mask=[MASK[1][:9], MASK, MASK[1] + 7, MASK[1] * 0.3])),
    Mutation("stored otherwise", "npz", SAME, _same_arrays),
    Mutation("files beside", "npz", SAME, _beside),
    Mutation("the size of a pixel", "npz", SEEN, _arrays(pixel_mm=[PIXEL_MM / 1.2, 2.0]),
             ("step_row",)),
    Mutation("other greys", "npz", SEEN, _arrays(cine=[GREY]), ("grey_high",)),
    *(Mutation(f"bytes {what}", "npz", SEEN, _bytes(".npz", how))
      for what, how in (("changed", flip), ("lost or doubled", splice))),
    # Tables
    Mutation("a column that is none", "csv", REFUSED, _table(
        lambda rows, d: rows[0].__setitem__(2, d.choice(["lable", "case_id", "x"])))),
    Mutation("a label that is none", "csv", REFUSED, _cell("label", "2", "yes", "-1", "0.5")),
    Mutation("a label that the mask denies", "csv", REFUSED, _cell("label", "1", row=1)),
    Mutation("a split that is none", "csv", REFUSED, _cell("split", "tset", "0", "all")),
    Mutation("a number that is none", "csv", REFUSED,
             _cell("centre_row", "ten", "-3", "nan", "1e9", "inf")),
    Mutation("a centre outside", "csv", REFUSED, _cell("centre_column", "21", "300")),
    Mutation("a frame outside", "csv", REFUSED, _cell("end_diastole", "8", "99", "1.5")),
    Mutation("a key twice", "csv", REFUSED, _cell("case_id", "A_s00", row=2)),
    Mutation("no key", "csv", REFUSED, _cell("case_id", "")),
    Mutation("ragged", "csv", REFUSED, _table(_ragged)),
    Mutation("no text", "csv", REFUSED, _table_text(
        lambda content, d: d.choice([b"", b"\xff\xfe\0", content[:9] + b"\xfc" + content[9:],
                                     content + b"\0"]))),
    Mutation("other signs", "csv", SAME, _table_text(_other_signs)),
    Mutation("columns and rows moved", "csv", SAME, _table(_columns_moved)),
    Mutation("everything quoted", "csv", SAME, _table(lambda rows, d: None, quoting=1)),
    Mutation("the centre", "csv", SEEN, _cell("centre_row", "4", "7", "5.5"), ("start_row",)),
    Mutation("the patient", "csv", SEEN, _cell("patient_id", "Q", "P8"), ("patient_id",)),
    *(Mutation(f"bytes {what}", "csv", SEEN, _bytes(".csv", how))
      for what, how in (("changed", flip), ("lost or doubled", splice))),
]  # fmt: skip
