"""Every kind of change and what must come of it, fixed before anything is read."""

from typing import NamedTuple

import numpy as np

from tools.mutation import changes as c
from tools.mutation import sources
from tools.mutation.changes import Change
from tools.mutation.sources import CINE, MASK, PIXEL_MM, SIZE

REFUSED, SAME, SEEN = "must refuse", "must not matter", "may change"


class Mutation(NamedTuple):
    """A kind of change."""

    name: str  # for the report
    form: str  # key of ``SOURCES``
    group: str  # what must come of it
    change: Change
    # Of the manifest; one of them differs unless the source is refused. Empty: of ``SEEN`` any may,
    # or none. Of ``SAME`` nothing but them may.
    columns: tuple[str, ...] = ()


GREY = (CINE[:, 1] // 2).astype(np.uint16)
HOLED = CINE[:, 1].astype(np.float32).copy()
HOLED[2, 3, 4] = np.nan

Kind = Change | tuple[Change, tuple[str, ...]]  # with the columns, if any
Kinds = dict[str, Kind]  # by name


def _with_columns(kind: Kind) -> tuple[Change, tuple[str, ...]]:
    return (kind, ()) if callable(kind) else kind


def _spoilt(name: str, where: str, *, header: bool = True) -> Kinds:
    """Changes of the bytes of files whose names end so, anywhere and, if asked, in the header."""
    ways = {"changed": c.flip}
    if header:
        ways["of the header changed"] = c.flip_header
    ways["lost or doubled"] = c.splice
    return {f"{name} {what}": c.in_bytes(where, how) for what, how in ways.items()}


# form -> group -> kinds
_KINDS: dict[str, dict[str, Kinds]] = {
    "dicom": {
        REFUSED: {
            "an image cut off": c.in_bytes(".dcm", c.cut),
            "an image lost": c.without(".dcm"),
            **{
                f"an image without {name}": c.in_images(c.setting(**{name: [None]}))
                for name in (
                    "Rows",
                    "Columns",
                    "BitsAllocated",
                    "PixelData",
                    "ImagePositionPatient",
                )
            },
            "no PixelSpacing": c.in_images(c.setting(PixelSpacing=[None]), every=True),
            "an image of another size": c.in_images(c.setting(Rows=[10, 21, 40, 20000])),
            "an image moved": c.in_images(c.moved),
            "an image turned": c.in_images(c.lie_flat),
            "an image of another patient": c.in_images(c.setting(PatientID=["P2", "X"])),
            "an image of another pixel": c.in_images(
                c.setting(PixelSpacing=[[2.0, 2.0], [1.5, 1.0], [0.0, 0.0]])
            ),
            "colour": c.in_images(c.setting(SamplesPerPixel=[3])),
            "no cine by its type": c.in_images(
                c.setting(ImageType=[["ORIGINAL", "PRIMARY", "P"], ["DERIVED", "PHASE"]])
            ),
            "directions that are none": c.in_images(
                c.setting(ImageOrientationPatient=[[0] * 6, [1, 0, 0, 1, 0, 0]]), every=True
            ),
            "another name in one": c.in_images(c.setting(PatientName=["A^B", "Z"])),
        },
        SAME: {
            "tags that are not read": c.in_images(c.unread_tags, every=True),
            "tags that are not read, of one": c.in_images(c.unread_tags),
            "private tags": c.in_images(c.private, every=True),
            "other names": c.renamed,
            "files beside": c.beside,
            "trigger times scaled": c.in_images(
                lambda data, _: setattr(data, "TriggerTime", float(data.TriggerTime) / 2),
                every=True,
            ),
            "no TriggerTime": (c.in_images(c.setting(TriggerTime=[None]), every=True), ("note",)),
        },
        SEEN: {
            "PixelSpacing": (
                c.in_images(
                    c.setting(
                        PixelSpacing=[[1.2, 1.2], [2.0, 2.0], [1.5, 1.8], [0.01, 1], [90, 90]]
                    ),
                    every=True,
                ),
                ("step_row", "step_column"),
            ),
            "RescaleSlope": (
                c.in_images(c.setting(RescaleSlope=[0.5, 2, 7]), every=True),
                ("grey_high",),
            ),
            "RescaleIntercept": (
                c.in_images(c.setting(RescaleIntercept=[-50, 9, 1000]), every=True),
                ("grey_high",),
            ),
            "PatientID": (
                c.in_images(c.setting(PatientID=["Q", "ANON", "P 1"]), every=True),
                ("patient_id", "note"),
            ),
            "MONOCHROME1": (
                c.in_images(c.setting(PhotometricInterpretation=["MONOCHROME1"]), every=True),
                ("sha256",),
            ),
            **_spoilt("bytes of an image", ".dcm"),
        },
    },
    "nifti": {
        REFUSED: {
            "cut off": c.in_bytes(".nii", c.cut),
            "a header that contradicts itself": c.nifti_header("cine", c.bad_header),
            "a mask's header that contradicts itself": c.nifti_header("lge_mask", c.bad_header),
            "no orientation of one": c.nifti_header("cine", c.no_orientation),
            "no orientation of the mask": c.nifti_header("lge_mask", c.no_orientation),
            "a data type that is none": c.in_bytes(".nii", c.header_number(70, "h", 3, 99)),
            "a size that is none": c.in_bytes("cine.nii", c.header_number(42, "h", -5, 0, 30000)),
            "a mask value without meaning": c.replaced(
                "A_lge_mask.nii",
                lambda d: sources.nifti_bytes(
                    c.mask_value(d.randint(4, 250)).T, sources.plane_affine()
                ),
            ),
            "probabilities as a mask": c.replaced(
                "A_lge_mask.nii",
                lambda d: sources.nifti_bytes(
                    (MASK.T * d.uniform(0.1, 0.4)).astype(np.float32), sources.plane_affine()
                ),
            ),
        },
        SAME: {
            "fields that are not read": c.nifti_header("cine", c.unread_fields),
            "axes in another order": c.other_axes,
            "compressed": c.compressed,
            "files beside": c.beside,
        },
        SEEN: {
            "a slope in the header": (
                c.in_bytes("cine.nii", c.header_number(112, "f", 0.5, 3.0, 700.0)),
                ("grey_high",),
            ),
            "drawings moved": (
                c.replaced(
                    "A_lge_mask.nii",
                    lambda d: sources.nifti_bytes(
                        np.roll(MASK, d.choice([-1, 1]), d.randint(0, 2)).T, sources.plane_affine()
                    ),
                ),
                ("sha256",),
            ),
            **_spoilt("bytes", ".nii"),
        },
    },
    "nrrd": {
        REFUSED: {
            "cut off": c.in_bytes(".nrrd", c.cut),
            "no space": c.replaced("A_lge_mask.seg.nrrd", lambda d: sources.nrrd_bytes(space=None)),
            "a name that says nothing": c.replaced(
                "A_lge_mask.seg.nrrd",
                lambda d: sources.nrrd_bytes(
                    Segment1_Name=d.choice(["Segment_2", "lesion", "?", "LGE"])
                ),
            ),
            "a value that no segment has": c.replaced(
                "A_lge_mask.seg.nrrd",
                lambda d: sources.nrrd_bytes(Segment1_LabelValue=str(d.randint(4, 99))),
            ),
        },
        SAME: {
            "names in other words": c.replaced(
                "A_lge_mask.seg.nrrd",
                lambda d: sources.nrrd_bytes(
                    Segment1_Name=d.choice(["No-reflow", "Microvascular Obstruction", "LV_MVO"]),
                    encoding=d.choice(["raw", "gzip", "ascii"]),
                ),
            ),
        },
        SEEN: {
            **_spoilt("bytes", ".nrrd"),
        },
    },
    "mat": {
        REFUSED: {
            "cut off": c.in_bytes(".mat", c.cut),
            "no size of a pixel": c.in_stack(
                0, ResolutionX=[None, np.nan, np.zeros((0, 0)), -1.0, 99.0]
            ),
            "no images": c.in_stack(0, IM=[None, np.zeros((0, 0)), np.ones((9, 9))]),
            "an orientation that is none": c.in_stack(
                0, ImageOrientation=[np.ones((1, 5)), np.zeros((1, 6)), np.ones((1, 6))]
            ),
            "a scar of another size": c.in_stack(
                1, Scar=[{"Result": np.ones((3, 3))}, {"Result": np.ones((SIZE, SIZE))}]
            ),
        },
        SAME: {
            "other variables": c.other_mat,
            "files beside": c.beside,
        },
        SEEN: {
            "the size of a pixel": (
                c.in_stack(0, ResolutionX=[1.1, 2.0], ResolutionY=[1.1, 2.0]),
                ("step_row",),
            ),
            **_spoilt("bytes", ".mat", header=False),
        },
    },
    "png": {
        REFUSED: {
            "a file cut off": c.in_bytes(".png", c.cut),
            "a frame lost": c.frame_lost,
            "a frame of another size": c.a_frame(
                lambda d: np.zeros((d.choice([5, 19, 21]), SIZE), np.uint8)
            ),
            "a frame in colour": c.a_frame(c.colour),
            "a mask value without meaning": c.replaced(
                "A_00_gt.png", lambda d: sources.png_bytes(c.mask_value(d.randint(4, 254))[0])
            ),
        },
        SAME: {
            "compressed otherwise": c.png_again,
            "files beside": c.beside,
        },
        SEEN: {
            **_spoilt("bytes", ".png", header=False),
        },
    },
    "npz": {
        REFUSED: {
            "cut off": c.in_bytes(".npz", c.cut),
            "no cine": c.arrays(
                cine=[None, GREY[0], GREY[:3], np.zeros((9, 9)), HOLED, np.array(["x"] * 9)]
            ),
            "an array of another name": c.arrays(masks=[MASK[1], GREY]),
            "a size of a pixel that is none": c.arrays(
                pixel_mm=[0.0, -2.0, np.nan, 50.0, np.ones(7)]
            ),
            "a mask that does not fit": c.arrays(
                lge_mask=[MASK[1][:9], MASK, MASK[1] + 7, MASK[1] * 0.3]
            ),
        },
        SAME: {
            "stored otherwise": c.same_arrays,
            "files beside": c.beside,
        },
        SEEN: {
            "the size of a pixel": (c.arrays(pixel_mm=[PIXEL_MM / 1.2, 2.0]), ("step_row",)),
            "other greys": (c.arrays(cine=[GREY]), ("grey_high",)),
            **_spoilt("bytes", ".npz", header=False),
        },
    },
    "csv": {
        REFUSED: {
            "a column that is none": c.in_table(
                lambda rows, d: rows[0].__setitem__(2, d.choice(["lable", "case_id", "x"]))
            ),
            "a label that is none": c.in_cell("label", "2", "yes", "-1", "0.5"),
            "a label that the mask denies": c.in_cell("label", "1", row=1),
            "a split that is none": c.in_cell("split", "tset", "0", "all"),
            "a number that is none": c.in_cell("centre_row", "ten", "-3", "nan", "1e9", "inf"),
            "a centre outside": c.in_cell("centre_column", "21", "300"),
            "a frame outside": c.in_cell("end_diastole", "8", "99", "1.5"),
            "a key twice": c.in_cell("case_id", "A_s00", row=2),
            "no key": c.in_cell("case_id", ""),
            "ragged": c.in_table(c.ragged),
            "no text": c.table_text(
                lambda content, d: d.choice(
                    [b"", b"\xff\xfe\0", content[:9] + b"\xfc" + content[9:], content + b"\0"]
                )
            ),
        },
        SAME: {
            "other signs": c.table_text(c.other_signs),
            "columns and rows moved": c.in_table(c.columns_moved),
            "everything quoted": c.in_table(lambda rows, d: None, quoting=1),
        },
        SEEN: {
            "the centre": (c.in_cell("centre_row", "4", "7", "5.5"), ("start_row",)),
            "the patient": (c.in_cell("patient_id", "Q", "P8"), ("patient_id",)),
            **_spoilt("bytes", ".csv", header=False),
        },
    },
}
MUTATIONS = [
    Mutation(name, form, group, *_with_columns(kind))
    for form, groups in _KINDS.items()
    for group, kinds in groups.items()
    for name, kind in kinds.items()
]
