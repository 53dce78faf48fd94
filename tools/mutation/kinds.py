"""Every kind of change and what must come of it, fixed before anything is read."""

from typing import NamedTuple

import numpy as np

from tools.mutation import changes as c
from tools.mutation import sources
from tools.mutation.changes import Change
from tools.mutation.sources import CINE, MASK, PIXEL_MM, SIZE

REFUSED, SAME, SEEN = "must refuse", "must not matter", "may change"


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


GREY = (CINE[:, 1] // 2).astype(np.uint16)
HOLED = CINE[:, 1].astype(np.float32).copy()
HOLED[2, 3, 4] = np.nan

MUTATIONS = [
    # DICOM
    Mutation("an image cut off", "dicom", REFUSED, c.in_bytes(".dcm", c.cut)),
    Mutation("an image lost", "dicom", REFUSED, c.without(".dcm")),
    *(
        Mutation(
            f"an image without {name}", "dicom", REFUSED, c.in_images(c.setting(**{name: [None]}))
        )
        for name in ("Rows", "Columns", "BitsAllocated", "PixelData", "ImagePositionPatient")
    ),
    Mutation(
        "no PixelSpacing", "dicom", REFUSED, c.in_images(c.setting(PixelSpacing=[None]), every=True)
    ),
    Mutation(
        "an image of another size",
        "dicom",
        REFUSED,
        c.in_images(c.setting(Rows=[10, 21, 40, 20000])),
    ),
    Mutation("an image moved", "dicom", REFUSED, c.in_images(c.moved)),
    Mutation("an image turned", "dicom", REFUSED, c.in_images(c.lie_flat)),
    Mutation(
        "an image of another patient",
        "dicom",
        REFUSED,
        c.in_images(c.setting(PatientID=["P2", "X"])),
    ),
    Mutation(
        "an image of another pixel",
        "dicom",
        REFUSED,
        c.in_images(c.setting(PixelSpacing=[[2.0, 2.0], [1.5, 1.0], [0.0, 0.0]])),
    ),
    Mutation("colour", "dicom", REFUSED, c.in_images(c.setting(SamplesPerPixel=[3]))),
    Mutation(
        "no cine by its type",
        "dicom",
        REFUSED,
        c.in_images(c.setting(ImageType=[["ORIGINAL", "PRIMARY", "P"], ["DERIVED", "PHASE"]])),
    ),
    Mutation(
        "directions that are none",
        "dicom",
        REFUSED,
        c.in_images(c.setting(ImageOrientationPatient=[[0] * 6, [1, 0, 0, 1, 0, 0]]), every=True),
    ),
    Mutation("tags that are not read", "dicom", SAME, c.in_images(c.unread_tags, every=True)),
    Mutation("tags that are not read, of one", "dicom", SAME, c.in_images(c.unread_tags)),
    Mutation("private tags", "dicom", SAME, c.in_images(c.private, every=True)),
    Mutation("other names", "dicom", SAME, c.renamed),
    Mutation("files beside", "dicom", SAME, c.beside),
    Mutation(
        "trigger times scaled",
        "dicom",
        SAME,
        c.in_images(
            lambda data, _: setattr(data, "TriggerTime", float(data.TriggerTime) / 2), every=True
        ),
    ),
    Mutation(
        "no TriggerTime", "dicom", SAME, c.in_images(c.setting(TriggerTime=[None]), every=True)
    ),
    Mutation(
        "PixelSpacing",
        "dicom",
        SEEN,
        c.in_images(
            c.setting(PixelSpacing=[[1.2, 1.2], [2.0, 2.0], [1.5, 1.8], [0.01, 1], [90, 90]]),
            every=True,
        ),
        ("step_row", "step_column"),
    ),
    Mutation(
        "RescaleSlope",
        "dicom",
        SEEN,
        c.in_images(c.setting(RescaleSlope=[0.5, 2, 7]), every=True),
        ("grey_high",),
    ),
    Mutation(
        "RescaleIntercept",
        "dicom",
        SEEN,
        c.in_images(c.setting(RescaleIntercept=[-50, 9, 1000]), every=True),
        ("grey_high",),
    ),
    Mutation(
        "PatientID",
        "dicom",
        SEEN,
        c.in_images(c.setting(PatientID=["Q", "ANON", "P 1"]), every=True),
        ("patient_id", "note"),
    ),
    Mutation(
        "MONOCHROME1",
        "dicom",
        SEEN,
        c.in_images(c.setting(PhotometricInterpretation=["MONOCHROME1"]), every=True),
        ("sha256",),
    ),
    *(
        Mutation(f"bytes of an image {what}", "dicom", SEEN, c.in_bytes(".dcm", how))
        for what, how in (
            ("changed", c.flip),
            ("of the header changed", c.flip_header),
            ("lost or doubled", c.splice),
        )
    ),
    # NIfTI
    Mutation("cut off", "nifti", REFUSED, c.in_bytes(".nii", c.cut)),
    Mutation(
        "a header that contradicts itself", "nifti", REFUSED, c.nifti_header("cine", c.bad_header)
    ),
    Mutation(
        "a mask's header that contradicts itself",
        "nifti",
        REFUSED,
        c.nifti_header("lge_mask", c.bad_header),
    ),
    Mutation("no orientation of one", "nifti", REFUSED, c.nifti_header("cine", c.no_orientation)),
    Mutation(
        "no orientation of the mask", "nifti", REFUSED, c.nifti_header("lge_mask", c.no_orientation)
    ),
    Mutation(
        "a data type that is none",
        "nifti",
        REFUSED,
        c.in_bytes(".nii", c.header_number(70, "h", 3, 99)),
    ),
    Mutation(
        "a size that is none",
        "nifti",
        REFUSED,
        c.in_bytes("cine.nii", c.header_number(42, "h", -5, 0, 30000)),
    ),
    Mutation(
        "a mask value without meaning",
        "nifti",
        REFUSED,
        c.replaced(
            "A_lge_mask.nii",
            lambda d: sources.nifti_bytes(
                c.mask_value(d.randint(4, 250)).T, sources.plane_affine()
            ),
        ),
    ),
    Mutation(
        "probabilities as a mask",
        "nifti",
        REFUSED,
        c.replaced(
            "A_lge_mask.nii",
            lambda d: sources.nifti_bytes(
                (MASK.T * d.uniform(0.1, 0.4)).astype(np.float32), sources.plane_affine()
            ),
        ),
    ),
    Mutation("fields that are not read", "nifti", SAME, c.nifti_header("cine", c.unread_fields)),
    Mutation("axes in another order", "nifti", SAME, c.other_axes),
    Mutation("compressed", "nifti", SAME, c.compressed),
    Mutation("files beside", "nifti", SAME, c.beside),
    Mutation(
        "a slope in the header",
        "nifti",
        SEEN,
        c.in_bytes("cine.nii", c.header_number(112, "f", 0.5, 3.0, 700.0)),
        ("grey_high",),
    ),
    Mutation(
        "drawings moved",
        "nifti",
        SEEN,
        c.replaced(
            "A_lge_mask.nii",
            lambda d: sources.nifti_bytes(
                np.roll(MASK, d.choice([-1, 1]), d.randint(0, 2)).T, sources.plane_affine()
            ),
        ),
        ("sha256",),
    ),
    *(
        Mutation(f"bytes {what}", "nifti", SEEN, c.in_bytes(".nii", how))
        for what, how in (
            ("changed", c.flip),
            ("of the header changed", c.flip_header),
            ("lost or doubled", c.splice),
        )
    ),
    # NRRD
    Mutation("cut off", "nrrd", REFUSED, c.in_bytes(".nrrd", c.cut)),
    Mutation(
        "no space",
        "nrrd",
        REFUSED,
        c.replaced("A_lge_mask.seg.nrrd", lambda d: sources.nrrd_bytes(space=None)),
    ),
    Mutation(
        "a name that says nothing",
        "nrrd",
        REFUSED,
        c.replaced(
            "A_lge_mask.seg.nrrd",
            lambda d: sources.nrrd_bytes(
                Segment1_Name=d.choice(["Segment_2", "lesion", "?", "LGE"])
            ),
        ),
    ),
    Mutation(
        "a value that no segment has",
        "nrrd",
        REFUSED,
        c.replaced(
            "A_lge_mask.seg.nrrd",
            lambda d: sources.nrrd_bytes(Segment1_LabelValue=str(d.randint(4, 99))),
        ),
    ),
    Mutation(
        "names in other words",
        "nrrd",
        SAME,
        c.replaced(
            "A_lge_mask.seg.nrrd",
            lambda d: sources.nrrd_bytes(
                Segment1_Name=d.choice(["No-reflow", "Microvascular Obstruction", "LV_MVO"]),
                encoding=d.choice(["raw", "gzip", "ascii"]),
            ),
        ),
    ),
    *(
        Mutation(f"bytes {what}", "nrrd", SEEN, c.in_bytes(".nrrd", how))
        for what, how in (
            ("changed", c.flip),
            ("of the header changed", c.flip_header),
            ("lost or doubled", c.splice),
        )
    ),
    # Segment
    Mutation("cut off", "mat", REFUSED, c.in_bytes(".mat", c.cut)),
    Mutation(
        "no size of a pixel",
        "mat",
        REFUSED,
        c.in_stack(0, ResolutionX=[None, np.nan, np.zeros((0, 0)), -1.0, 99.0]),
    ),
    Mutation(
        "no images", "mat", REFUSED, c.in_stack(0, IM=[None, np.zeros((0, 0)), np.ones((9, 9))])
    ),
    Mutation(
        "an orientation that is none",
        "mat",
        REFUSED,
        c.in_stack(0, ImageOrientation=[np.ones((1, 5)), np.zeros((1, 6)), np.ones((1, 6))]),
    ),
    Mutation(
        "a scar of another size",
        "mat",
        REFUSED,
        c.in_stack(1, Scar=[{"Result": np.ones((3, 3))}, {"Result": np.ones((SIZE, SIZE))}]),
    ),
    Mutation("other variables", "mat", SAME, c.other_mat),
    Mutation("files beside", "mat", SAME, c.beside),
    Mutation(
        "the size of a pixel",
        "mat",
        SEEN,
        c.in_stack(0, ResolutionX=[1.1, 2.0], ResolutionY=[1.1, 2.0]),
        ("step_row",),
    ),
    *(
        Mutation(f"bytes {what}", "mat", SEEN, c.in_bytes(".mat", how))
        for what, how in (("changed", c.flip), ("lost or doubled", c.splice))
    ),
    # PNG
    Mutation("a file cut off", "png", REFUSED, c.in_bytes(".png", c.cut)),
    Mutation("a frame lost", "png", REFUSED, c.frame_lost),
    Mutation(
        "a frame of another size",
        "png",
        REFUSED,
        c.a_frame(lambda d: np.zeros((d.choice([5, 19, 21]), SIZE), np.uint8)),
    ),
    Mutation("a frame in colour", "png", REFUSED, c.a_frame(c.colour)),
    Mutation(
        "a mask value without meaning",
        "png",
        REFUSED,
        c.replaced("A_00_gt.png", lambda d: sources.png_bytes(c.mask_value(d.randint(4, 254))[0])),
    ),
    Mutation("compressed otherwise", "png", SAME, c.png_again),
    Mutation("files beside", "png", SAME, c.beside),
    *(
        Mutation(f"bytes {what}", "png", SEEN, c.in_bytes(".png", how))
        for what, how in (("changed", c.flip), ("lost or doubled", c.splice))
    ),
    # NumPy
    Mutation("cut off", "npz", REFUSED, c.in_bytes(".npz", c.cut)),
    Mutation(
        "no cine",
        "npz",
        REFUSED,
        c.arrays(cine=[None, GREY[0], GREY[:3], np.zeros((9, 9)), HOLED, np.array(["x"] * 9)]),
    ),
    Mutation("an array of another name", "npz", REFUSED, c.arrays(masks=[MASK[1], GREY])),
    Mutation(
        "a size of a pixel that is none",
        "npz",
        REFUSED,
        c.arrays(pixel_mm=[0.0, -2.0, np.nan, 50.0, np.ones(7)]),
    ),
    Mutation(
        "a mask that does not fit",
        "npz",
        REFUSED,
        c.arrays(lge_mask=[MASK[1][:9], MASK, MASK[1] + 7, MASK[1] * 0.3]),
    ),
    Mutation("stored otherwise", "npz", SAME, c.same_arrays),
    Mutation("files beside", "npz", SAME, c.beside),
    Mutation(
        "the size of a pixel", "npz", SEEN, c.arrays(pixel_mm=[PIXEL_MM / 1.2, 2.0]), ("step_row",)
    ),
    Mutation("other greys", "npz", SEEN, c.arrays(cine=[GREY]), ("grey_high",)),
    *(
        Mutation(f"bytes {what}", "npz", SEEN, c.in_bytes(".npz", how))
        for what, how in (("changed", c.flip), ("lost or doubled", c.splice))
    ),
    # Tables
    Mutation(
        "a column that is none",
        "csv",
        REFUSED,
        c.in_table(lambda rows, d: rows[0].__setitem__(2, d.choice(["lable", "case_id", "x"]))),
    ),
    Mutation("a label that is none", "csv", REFUSED, c.in_cell("label", "2", "yes", "-1", "0.5")),
    Mutation("a label that the mask denies", "csv", REFUSED, c.in_cell("label", "1", row=1)),
    Mutation("a split that is none", "csv", REFUSED, c.in_cell("split", "tset", "0", "all")),
    Mutation(
        "a number that is none",
        "csv",
        REFUSED,
        c.in_cell("centre_row", "ten", "-3", "nan", "1e9", "inf"),
    ),
    Mutation("a centre outside", "csv", REFUSED, c.in_cell("centre_column", "21", "300")),
    Mutation("a frame outside", "csv", REFUSED, c.in_cell("end_diastole", "8", "99", "1.5")),
    Mutation("a key twice", "csv", REFUSED, c.in_cell("case_id", "A_s00", row=2)),
    Mutation("no key", "csv", REFUSED, c.in_cell("case_id", "")),
    Mutation("ragged", "csv", REFUSED, c.in_table(c.ragged)),
    Mutation(
        "no text",
        "csv",
        REFUSED,
        c.table_text(
            lambda content, d: d.choice(
                [b"", b"\xff\xfe\0", content[:9] + b"\xfc" + content[9:], content + b"\0"]
            )
        ),
    ),
    Mutation("other signs", "csv", SAME, c.table_text(c.other_signs)),
    Mutation("columns and rows moved", "csv", SAME, c.in_table(c.columns_moved)),
    Mutation("everything quoted", "csv", SAME, c.in_table(lambda rows, d: None, quoting=1)),
    Mutation("the centre", "csv", SEEN, c.in_cell("centre_row", "4", "7", "5.5"), ("start_row",)),
    Mutation("the patient", "csv", SEEN, c.in_cell("patient_id", "Q", "P8"), ("patient_id",)),
    *(
        Mutation(f"bytes {what}", "csv", SEEN, c.in_bytes(".csv", how))
        for what, how in (("changed", c.flip), ("lost or doubled", c.splice))
    ),
]
