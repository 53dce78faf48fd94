"""Masks as NRRD, DICOM SEG and contours of cvi42 land where the same drawing as NIfTI lands.

Each file is written by the library of its format. Where a label belongs is worked out here, voxel
by voxel, from the affines.
"""

import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

from mvo_jax.data.cohort.prepare import read_rejected
from mvo_jax.data.importers.archive import unpack
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.importers.segments import meaning_of
from mvo_jax.data.importers.table import read_table
from mvo_jax.data.slices import CineSlice, Target
from mvo_jax.errors import UserError
from tests.data.importers import writers
from tests.data.importers.reading import change, prepared, read, refusal, save

hd = pytest.importorskip("highdicom")

FRAMES, SLICES, SIZE, PIXEL_MM, STEP_MM = 8, 3, 40, 1.7, 9.0
LGE_SIZE, LGE_MM = 48, 1.3
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURN = np.array(writers.SHORT_AXIS)
ORIGIN = np.array([12.5, -40.0, 33.0])  # of the cine, left-posterior-head
# Slightly aside and below the cine's slices, so that no voxel lies half between two.
LGE_ORIGIN = ORIGIN + TURN[:3] * 1.9 + TURN[3:] * 0.8 + np.cross(TURN[:3], TURN[3:]) * 1.1


def lps(origin: np.ndarray, pixel_mm: float) -> np.ndarray:
    """(column, row, slice) to LPS mm."""
    out = np.eye(4)
    normal = np.cross(TURN[:3], TURN[3:])
    out[:3, :3] = np.stack([TURN[:3] * pixel_mm, TURN[3:] * pixel_mm, normal * STEP_MM], axis=1)
    out[:3, 3] = origin
    return out


CINE_LPS, LGE_LPS = lps(ORIGIN, PIXEL_MM), lps(LGE_ORIGIN, LGE_MM)
AT = np.mgrid[:LGE_SIZE, :LGE_SIZE]
RADIUS = np.hypot(AT[0] - 20.0, AT[1] - 27.0)
DRAWN = np.zeros((SLICES, LGE_SIZE, LGE_SIZE), np.uint8)
DRAWN[:, (RADIUS > 8) & (RADIUS < 13)] = 3
DRAWN[1, 8:14, 20:28] = 1
DRAWN[1, 9:12, 23:26] = 2
DRAWN[2, 18:24, 36:39] = 2


# Slices that differ more than their phases.
CINE = np.random.default_rng(1).integers(0, 200, (SLICES, SIZE, SIZE))
CINE = CINE + np.random.default_rng(2).integers(0, 40, (FRAMES, 1, SIZE, SIZE))
CINE = CINE.astype(np.uint16)


def expected(drawn: np.ndarray = DRAWN) -> np.ndarray:
    """The drawing at the nearest voxel of each pixel of the cine, ``[Z, H, W]`` as stored."""
    out = np.zeros((SLICES, SIZE, SIZE), np.uint8)
    to_lge = np.linalg.inv(LGE_LPS)
    for z, row, column in np.ndindex(out.shape):
        x, y, k = np.floor((to_lge @ CINE_LPS @ [column, row, z, 1])[:3] + 0.5).astype(int)
        if 0 <= k < SLICES and 0 <= y < LGE_SIZE and 0 <= x < LGE_SIZE:
            out[z, row, column] = drawn[k, y, x]
    return out


def write_cine(source: Path, form: str) -> Path:
    """A patient ``A17``; the folder of images, or for NIfTI the source."""
    if form == "nifti":
        save(source / "A17_cine.nii.gz", CINE, TO_RAS @ CINE_LPS)
        return source
    writers.write_series(
        source / "A17", CINE, turn=TURN.tolist(), origin=ORIGIN.tolist(), step_mm=STEP_MM,
        pixel_mm=PIXEL_MM, FrameOfReferenceUID="1.2.4",
    )  # fmt: skip
    return source / "A17"


def write_lge(folder: Path, **tags: Any) -> list[pydicom.Dataset]:
    """LGE images as scanners write them."""
    pixels = np.random.default_rng(3).integers(0, 500, (1, SLICES, LGE_SIZE, LGE_SIZE), np.uint16)
    whole = {
        "SeriesInstanceUID": "1.2.77", "SeriesNumber": 9, "SeriesDescription": "LGE psir",
        "CardiacNumberOfImages": None, "TriggerTime": 600.0, "FrameOfReferenceUID": "1.2.4",
        "PatientName": "", "PatientBirthDate": "", "PatientSex": "", "StudyID": "", "StudyDate": "",
        "StudyTime": "", "AccessionNumber": "", "ReferringPhysicianName": "",
    }  # fmt: skip
    files = writers.write_series(
        folder, pixels, turn=TURN.tolist(), origin=LGE_ORIGIN.tolist(), step_mm=STEP_MM,
        pixel_mm=LGE_MM, name="lge", **(whole | tags),
    )  # fmt: skip
    return [pydicom.dcmread(path) for path in files]


def displayed(one: CineSlice) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Which slice it is, and how it was turned for display: its grey values say so."""
    both = ((z, turn) for z in range(SLICES) for turn in ALL_TURNS)
    return next((z, turn) for z, turn in both if np.array_equal(turn(CINE[0, z]), one.cine[0]))


def check_lands(slices: list[CineSlice], drawn: np.ndarray = DRAWN) -> None:
    """Against the cine, whichever way both are displayed."""
    for one in slices:
        assert one.lge_mask is not None
        z, turned = displayed(one)
        assert np.array_equal(one.lge_mask, turned(expected(drawn)[z]))
        assert one.has_mvo == bool((drawn[z] == 2).any())
    assert slices[0].unplaced == ()


ALL_TURNS = [
    lambda image, k=k, transposed=transposed: np.rot90(image.T if transposed else image, k)
    for k in range(4)
    for transposed in (False, True)
]


# NRRD
def nrrd_header(space: str, axes: Any = (0, 1, 2), affine: np.ndarray = LGE_LPS) -> dict[str, Any]:
    signs = {"left": (1, 1, 1), "right": (-1, -1, 1)}[space.split("-")[0]]
    moved = np.diag([*signs, 1]) @ affine
    directions = np.stack([moved[:3, axis] for axis in axes])
    place = {"space directions": directions, "space origin": moved[:3, 3]}
    return {"space": space, "kinds": ["domain"] * 3} | place


def save_nrrd(path: Path, space: str = "left-posterior-superior", units: str = "mm") -> None:
    nrrd.write(str(path), DRAWN.T, {**nrrd_header(space), "space units": [units] * 3})


@pytest.mark.parametrize("form", ["nifti", "dicom"])
@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
def test_nrrd_label_map(form, space, tmp_path):
    write_cine(tmp_path, form)
    save_nrrd(tmp_path / "A17_lge_mask.nrrd", space)
    check_lands(read(tmp_path))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
def test_nrrd_with_axes_in_another_order(encoding, tmp_path):
    write_cine(tmp_path, "nifti")
    order, flipped = (2, 0, 1), DRAWN.T[::-1]
    affine = LGE_LPS.copy()
    affine[:3, 3] += affine[:3, 0] * (LGE_SIZE - 1)
    affine[:3, 0] *= -1
    header = nrrd_header("left-posterior-superior", order, affine)
    path = tmp_path / "A17_lge_mask.nrrd"
    nrrd.write(str(path), flipped.transpose(order), {**header, "encoding": encoding})
    check_lands(read(tmp_path))


def segment(number: int, name: str, value: int, layer: int | None) -> dict[str, str]:
    out = {f"Segment{number}_ID": f"Segment_{number}", f"Segment{number}_Name": name}
    out[f"Segment{number}_LabelValue"] = str(value)
    return out if layer is None else out | {f"Segment{number}_Layer": str(layer)}


@pytest.mark.parametrize("form", ["nifti", "dicom"])
def test_segments_of_slicer_by_their_names(form, tmp_path):
    """Values in an order of their own; cropped to what is drawn, as Slicer does."""
    write_cine(tmp_path, form)
    values = np.array([0, 7, 1, 4], np.uint8)[DRAWN]
    corner = LGE_LPS.copy()
    corner[:3, 3] += LGE_LPS[:3, 0] * 14 + LGE_LPS[:3, 1] * 7
    header = nrrd_header("left-posterior-superior", affine=corner)
    header |= segment(0, "LV Myocardium", 4, 0) | segment(1, "MVO", 1, 0)
    header |= segment(2, "Infarct", 7, 0)
    nrrd.write(str(tmp_path / "A17_lge_mask.seg.nrrd"), values[:, 7:34, 14:41].T, header)
    check_lands(read(tmp_path))


@pytest.mark.parametrize("old", [False, True])
def test_segments_that_overlap_lie_in_layers(old, tmp_path):
    """The infarct holds the MVO, the myocardium both; before Slicer 4.11 layers are not named."""
    write_cine(tmp_path, "nifti")
    myocardium = DRAWN > 0
    layers = np.stack([myocardium, np.isin(DRAWN, (1, 2)), DRAWN == 2]).astype(np.uint8)
    header = nrrd_header("right-anterior-superior")
    header["kinds"] = ["list", "domain", "domain", "domain"]
    header["space directions"] = np.vstack([np.full((1, 3), np.nan), header["space directions"]])
    for i, name in enumerate(("myocardium", "scar", "no-reflow")):
        header |= segment(i, name, 1, None if old else i)
    nrrd.write(str(tmp_path / "A17_lge_mask.seg.nrrd"), layers.transpose(0, 3, 2, 1), header)
    check_lands(read(tmp_path))


def test_a_segment_without_a_meaning_is_refused_and_can_be_given_one(tmp_path):
    write_cine(tmp_path, "nifti")
    values = np.array([0, 2, 3, 1], np.uint8)[DRAWN]
    header = nrrd_header("left-posterior-superior")
    for i in range(3):
        header |= segment(i, f"Segment_{i + 1}", i + 1, 0)
    nrrd.write(str(tmp_path / "A17_lge_mask.seg.nrrd"), values.T, header)
    error = refusal(tmp_path)
    assert "1 'Segment_1'" in error.cause
    assert "--mask_values" in error.remedy
    check_lands(read(tmp_path, mask_values={1: 3, 2: 1, 3: 2}))


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("MVO", 2), ("no-reflow", 2), ("Microvascular obstruction (MVO)", 2), ("LV_NoReflow", 2),
        ("Infarct", 1), ("Scar tissue", 1), ("LGE scar", 1), ("Myocardial infarction", 1),
        ("left ventricular myocardium", 3), ("LV wall", 3), ("Normal myocardium", 3),
        ("LV blood pool", 0), ("Right ventricle", 0), ("RV_myocardium", 0),
        ("Left ventricle", None), ("LGE", None), ("lesion", None), ("Segment_1", None), ("", None),
        ("no scar", None), ("grey zone", None),
    ],
)  # fmt: skip
def test_names_of_segments(name, meaning):
    assert meaning_of(name) == meaning


def change_header(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "cannot be read as NRRD"),
        (lambda p: change_header(p, b"NRRD000", b"NOPE000"), "cannot be read as NRRD"),
        (lambda p: change_header(p, b"sizes: 48 48 3", b"sizes: 48 48 4"), "cannot be read"),
        (lambda p: change_header(p, b"sizes: 48 48 3", b"sizes: 48000 48000 3"), "claims"),
        (lambda p: change_header(p, b"sizes:", b"data file: /etc/passwd\nsizes:"), "another file"),
        (lambda p: change_header(p, b"left-posterior", b"up-down"), "the space 'up-down"),
        (lambda p: save_nrrd(p, units="px"), "the units"),
    ],
)
def test_bad_nrrd_is_refused(spoil, words, tmp_path):
    write_cine(tmp_path, "nifti")
    path = tmp_path / "A17_lge_mask.nrrd"
    save_nrrd(path)
    spoil(path)
    cause = refusal(tmp_path).cause
    assert words in cause
    assert "A17_lge_mask.nrrd" in cause


def test_nrrd_without_a_place_beside_an_oriented_cine_is_refused(tmp_path):
    write_cine(tmp_path, "nifti")
    nrrd.write(str(tmp_path / "A17_lge_mask.nrrd"), DRAWN.T, {"spacings": [1.3, 1.3, 9.0]})
    assert "states no orientation" in refusal(tmp_path).cause


# DICOM SEG
def save_seg(
    path: Path,
    images: list[pydicom.Dataset],
    drawn: Mapping[str, np.ndarray],
    kind: str = "BINARY",
) -> None:
    """By highdicom, in which images are ordered as given; empty frames are left out."""
    code = hd.sr.CodedConcept("T-D0050", "SRT", "Tissue")
    descriptions = [
        hd.seg.SegmentDescription(i + 1, name, code, code, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
        for i, name in enumerate(drawn)
    ]
    pixels = np.stack(list(drawn.values()), axis=-1)
    if kind != "FRACTIONAL":
        pixels = pixels.astype(np.uint8)
    if kind == "LABELMAP":
        pixels = (pixels * np.arange(1, len(drawn) + 1, dtype=np.uint8)).max(axis=-1)
    hd.seg.Segmentation(
        images, pixels, kind, descriptions,
        series_instance_uid="1.2.88", series_number=88, sop_instance_uid="1.2.88.1",
        instance_number=1, manufacturer="x", manufacturer_model_name="x", software_versions="1",
        device_serial_number="1",
    ).save_as(path)  # fmt: skip


def by_name() -> dict[str, np.ndarray]:
    return {"Myocardium": DRAWN == 3, "MVO": DRAWN == 2, "Infarct": DRAWN == 1}


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("place", ["beside", "folder", "nifti"])
def test_dicom_seg(kind, place, tmp_path):
    """Beside the folder by its name, in the folder by what it is, or beside a NIfTI cine."""
    source = tmp_path / "source"
    folder = write_cine(source, "nifti" if place == "nifti" else "dicom")
    images = write_lge(tmp_path / "lge" if place == "nifti" else folder)
    path = folder / "anything.dcm" if place == "folder" else source / "A17_lge_mask.dcm"
    save_seg(path, images[::-1], {name: m[::-1] for name, m in by_name().items()}, kind)
    slices = read(source)
    check_lands(slices)
    if place == "folder":
        counts = slices[0].images
        assert counts["late enhancement"] == SLICES
        assert counts["of segmentations"] > 0
        assert [one.drawn_on for one in slices] == [f"{k} of 3" for k in range(3)]


def test_seg_of_one_segment(tmp_path):
    """Which it is stands once for all frames."""
    images = write_lge(write_cine(tmp_path, "dicom"))
    save_seg(tmp_path / "A17" / "mvo.dcm", images, {"MVO": DRAWN == 2})
    assert [one.has_mvo for one in read(tmp_path)] == [(one == 2).any() for one in DRAWN]


def test_seg_with_overlap_and_slices_left_out(tmp_path):
    """The middle slice has no frame; the infarct holds the MVO."""
    folder = write_cine(tmp_path, "dicom")
    drawn = DRAWN.copy()
    drawn[1] = 0
    layers = {"scar": np.isin(drawn, (1, 2)), "MVO": drawn == 2, "LV myocardium": drawn > 0}
    save_seg(folder / "seg.dcm", write_lge(folder), layers)
    slices = read(tmp_path)
    check_lands(slices, drawn)
    assert [one.drawn_on for one in slices] == ["0 of 3", "", "2 of 3"]


def test_a_seg_named_by_a_table_and_another_frame_of_reference(tmp_path):
    source = tmp_path / "source"
    folder = write_cine(source, "dicom")
    save_seg(source / "7.dcm", write_lge(folder), by_name())
    table = tmp_path / "table.csv"
    table.write_text("case_id,mask\nA17,7.dcm\n")
    slices = read(source, table=read_table(table))
    check_lands(slices)
    assert "frame of reference" not in slices[0].note
    shutil.rmtree(source)
    folder = write_cine(source, "dicom")
    save_seg(folder / "7.dcm", write_lge(folder, FrameOfReferenceUID="1.2.5"), by_name())
    slices = read(source)
    check_lands(slices)
    assert "7.dcm has another frame of reference" in slices[0].note


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("names", "whose names do not say"),
        ("probabilities", "probabilities"),
        ("cut", "cannot be read as DICOM"),
        ("no position", "where its frames lie"),
        ("two", "2 drawings of the LGE"),
        ("patient", "2 patients"),
    ],
)
def test_a_seg_that_cannot_be_used_is_told_and_two_are_refused(what, words, tmp_path):
    folder = write_cine(tmp_path, "dicom")
    images, path = write_lge(folder), folder / "seg.dcm"
    layers = {"a": DRAWN == 3, "b": DRAWN == 2} if what == "names" else by_name()
    save_seg(path, images, layers)
    data = pydicom.dcmread(path)
    if what == "probabilities":
        save_seg(path, images, {"MVO": np.where(DRAWN == 2, 0.5, 0.0)}, "FRACTIONAL")
    elif what == "two":
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID("1.2.88.2")
        data.save_as(folder / "seg2.dcm")
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif what == "no position":
        for group in data.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence
        data.save_as(path)
    elif what == "patient":
        data.PatientID = "P2"
        data.save_as(path)
    if what in ("two", "patient"):
        assert words in refusal(tmp_path).cause
        return
    slices = read(tmp_path)
    assert [one.lge_mask for one in slices] == [None] * SLICES
    (lost,) = slices[0].unplaced
    assert words in lost.cause
    assert lost.source == str(path)


def of_the_cine(series: pydicom.Dataset) -> None:
    series.SeriesInstanceUID = "1.2.3"


@pytest.mark.parametrize("mvo", [False, True])
def test_a_seg_of_the_cine_says_nothing_about_mvo_unless_it_has_some(mvo, tmp_path):
    folder = write_cine(tmp_path, "dicom")
    layers = by_name() if mvo else {"LV myocardium": DRAWN > 0, "LV cavity": DRAWN == 0}
    save_seg(folder / "seg.dcm", write_lge(folder), layers)
    change([folder / "seg.dcm"], lambda data: of_the_cine(data.ReferencedSeriesSequence[0]))
    slices = read(tmp_path)
    if mvo:
        check_lands(slices)
        return
    assert [one.has_mvo for one in slices] == [None] * SLICES
    (lost,) = slices[0].unplaced
    assert "drawn on the cine" in lost.cause
    assert "A17_lge_mask.dcm" in lost.remedy


# cvi42
def workspace(images: Mapping[str, Mapping[str, np.ndarray]], scale: int = 4) -> str:
    """XML as cvi42 exports it: points in parts of a pixel, names with a number from the second."""
    out = ""
    for uid, contours in images.items():
        out += f'<Hash:item Hash:key="{uid}" Hash:count="2"><Hash:item Hash:key="Contours">'
        for name, points in contours.items():
            out += f'<Hash:item Hash:key="{name}"><Hash:item Hash:key="Points">'
            for row, column in points * scale:
                out += f"<List:item><Point:x>{column:.0f}</Point:x><Point:y>{row:.0f}</Point:y>"
                out += "</List:item>"
            out += "</Hash:item>"
            out += f'<Hash:item Hash:key="SubpixelResolution">{scale}</Hash:item></Hash:item>'
        out += "</Hash:item></Hash:item>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Hash:item Hash:count="1">'
        '<Hash:item Hash:key="StudyMapStates"><List:item><Hash:item Hash:key="ImageStates">'
        f"{out}</Hash:item></List:item></Hash:item></Hash:item>"
    )


def lge_contours(z: int) -> dict[str, np.ndarray]:
    """The myocardium as two contours and its MVO; a disc in place of the infarct's box."""
    regions = {"saendocardialContour": RADIUS <= 8, "saepicardialContour": RADIUS < 13}
    regions |= {} if z == 0 else {"noReflowAreaContour": DRAWN[z] == 2}
    return {name: writers.outline(region) for name, region in regions.items()}


RING = np.where((RADIUS > 8) & (RADIUS < 13), 3, 0).astype(np.uint8)
ON_LGE = np.stack([np.where(DRAWN[z] == 2, 2, RING) for z in range(SLICES)]).astype(np.uint8)


@pytest.mark.parametrize("name", ["A17.cvi42wsx", "A17/work.cvi42wsx", "A17/deep/export.xml"])
def test_contours_of_cvi42_on_lge_and_on_the_cine(name, tmp_path):
    folder = write_cine(tmp_path, "dicom")
    images = write_lge(folder)
    drawn = {str(image.SOPInstanceUID): lge_contours(z) for z, image in enumerate(images)}
    first = pydicom.dcmread(folder / "i01_005.dcm")  # slice 1, phase 5
    at = np.mgrid[:SIZE, :SIZE]
    region = np.hypot(at[0] - 14.0, at[1] - 22.0)
    radii = {"saendocardialContour": 7, "saepicardialContour": 10, "larvendocardialContour": 3}
    drawn[str(first.SOPInstanceUID)] = {
        name: writers.outline(region < radius) for name, radius in radii.items()
    }
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(workspace(drawn))
    slices = read(tmp_path)
    check_lands(slices, ON_LGE)
    assert [sorted(one.anatomy) for one in slices] == [[], [5], []]
    anatomy = np.where(region < 7, 1, np.where(region < 10, 2, 0))
    assert np.array_equal(slices[1].anatomy[5], displayed(slices[1])[1](anatomy))
    assert "larvendocardialContour (1)" in slices[0].note


def test_repeated_contours_of_one_name(tmp_path):
    folder = write_cine(tmp_path, "dicom")
    uid = str(write_lge(folder)[1].SOPInstanceUID)
    two = np.zeros((LGE_SIZE, LGE_SIZE), bool), np.zeros((LGE_SIZE, LGE_SIZE), bool)
    two[0][9:13, 24:29], two[1][27:31, 25:30] = True, True
    contours = {
        "noReflowAreaContour": writers.outline(two[0]),
        "noReflowAreaContour0001": writers.outline(two[1]),
    }
    (tmp_path / "A17.cvi42wsx").write_text(workspace({uid: contours}))
    drawn = np.zeros_like(DRAWN)
    drawn[1][two[0] | two[1]] = 2
    check_lands(read(tmp_path), drawn)


def test_a_contour_that_may_be_mvo_is_no_sign_of_none(tmp_path):
    folder = write_cine(tmp_path, "dicom")
    uids = [str(image.SOPInstanceUID) for image in write_lge(folder)]
    drawn = {uid: lge_contours(z) for z, uid in enumerate(uids)}
    contours = list(drawn.values())[2]
    contours["saNoReflowOverride"] = contours.pop("noReflowAreaContour")
    (tmp_path / "A17.cvi42wsx").write_text(workspace(drawn))
    slices = read(tmp_path)
    assert [one.drawn_on for one in slices] == ["0 of 3", "1 of 3", ""]
    masks = [one.lge_mask for one in slices]
    assert [mask is not None and bool(mask.any()) for mask in masks] == [True, True, False]
    (lost,) = slices[0].unplaced
    assert "saNoReflowOverride may be MVO and is not read" in lost.cause


@pytest.mark.parametrize("where", ["nowhere", "cine"])
def test_mvo_without_its_image_is_a_row_of_the_rejected(where, tmp_path):
    source = tmp_path / "source"
    folder = write_cine(source, "dicom")
    images = write_lge(folder)
    lost = {"noReflowAreaContour": writers.outline(DRAWN[1] == 2)}
    of_cine = str(pydicom.dcmread(folder / "i00_000.dcm").SOPInstanceUID)
    uid = of_cine if where == "cine" else "1.2.3.4.5"
    drawn = {str(images[1].SOPInstanceUID): lge_contours(1), uid: lost}
    (source / "A17.cvi42wsx").write_text(workspace(drawn))
    prepared(source, tmp_path / "out", Target(FRAMES, 32, PIXEL_MM))
    (row,) = read_rejected(tmp_path / "out")
    assert row["source"] == "A17.cvi42wsx"
    assert ("a cine image" if where == "cine" else "not in the folder") in row["cause"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<Hash:item Hash:key='ImageStates'>", "cannot be read as workspace"),
        ("<x Hash:key='nothing'/>", "has no ImageStates"),
        ("<!DOCTYPE x [<!ENTITY a 'aaaa'>]><x Hash:key='&a;'/>", "declares a document type"),
        ("<!DOCTYPE x SYSTEM 'file:///etc/passwd'><x Hash:key='a'/>", "declares a document type"),
        (workspace({"1.2": {"laxContour": np.zeros((4, 2))}}), "no contour that is known"),
        (workspace({"1.2": {"noReflowAreaContour": np.eye(2).repeat(2, 0)}}, 0), "Resolution is 0"),
    ],
)
def test_bad_workspaces_are_refused(content, words, tmp_path):
    write_cine(tmp_path, "dicom")
    (tmp_path / "A17.cvi42wsx").write_text(content)
    assert words in refusal(tmp_path).cause


# Names
@pytest.mark.parametrize(
    "name",
    ["B02_lge_mask.nrrd", "scar.seg.nrrd", "B02_lge_mask.dcm", "B02.cvi42wsx", "B02.cvi42ws"],
)
@pytest.mark.parametrize("form", ["nifti", "dicom"])
def test_drawings_of_every_kind_without_a_cine_are_rows_of_the_rejected(name, form, tmp_path):
    source = tmp_path / "source"
    write_cine(source, form)
    path = source / name
    if name.endswith("nrrd"):
        save_nrrd(path)
    elif name.endswith("dcm"):
        save_seg(path, write_lge(tmp_path / "lge"), by_name())
    else:
        path.write_text(workspace({"1.2": lge_contours(1)}))
    importer = choose_importer(source)
    assert importer.name == form
    found = [one for one in importer.find(source, Options()) if one.name != "A17"]
    assert [one.path for one in found] == [path]
    with pytest.raises(UserError, match="belongs to no cine"):
        load_series(importer.load, found[0], Options())


def test_masks_by_a_table_and_in_an_archive(tmp_path):
    write_cine(tmp_path / "source", "nifti")
    save_nrrd(tmp_path / "source" / "other.nrrd")
    table = tmp_path / "table.csv"
    table.write_text("case_id,mask\nA17,other.nrrd\n")
    check_lands(read(tmp_path / "source", table=read_table(table)))
    archive = tmp_path / "source.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in (tmp_path / "source").iterdir():
            out.write(path, path.name)
    folder = unpack(archive, tmp_path / "unpacked")
    check_lands(read(folder, table=read_table(table)))
