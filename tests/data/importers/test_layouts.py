"""Public data sets and kinds of DICOM, written here as they lie on disk, sound and with faults."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.dicom_headers import read_headers
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.slices import CineSlice
from tests.data.importers import reading, writers

FRAMES, SLICES, ROWS, COLUMNS = 12, 3, 40, 48
PIXEL_MM = 1.5
ED, ES = 2, 7  # 0-based
_AT = np.hypot(*(np.mgrid[:ROWS, :COLUMNS] - np.array([18, 26]).reshape(2, 1, 1)))
CINE = np.random.default_rng(0).integers(0, 900, (FRAMES, SLICES, ROWS, COLUMNS)).astype(np.int16)


def anatomy(radius: float) -> np.ndarray:
    """1 LV cavity, 2 myocardium, 3 RV, uint8 [Z, H, W]; the last slice is not drawn."""
    one = np.where(radius > _AT, 1, np.where(radius + 4 > _AT, 2, 0))
    one[10:26, 4 : 20 - int(radius)] = 3
    return np.stack([one, one, np.zeros_like(one)]).astype(np.uint8)


LARGE, SMALL = anatomy(8), anatomy(5)
ACDC_VALUES = np.array([0, 3, 2, 1], np.uint8)  # RV and LV exchanged


save = partial(reading.save, affine=writers.affine(PIXEL_MM))


def read(source: Path, expected: str, **options: Any) -> list[list[CineSlice]]:
    importer = choose_importer(source)
    assert importer.name == expected
    given = Options(**options)
    return [load_series(importer.load, one, given) for one in importer.find(source, given)]


def refused(source: Path, *words: str, **options: Any) -> None:
    cause = reading.refusal(source, **options).cause
    assert all(word in cause for word in words)


def check_anatomy(slices: list[CineSlice], frames: dict[int, np.ndarray]) -> None:
    """Cavity and myocardium in the project's values, the right ventricle left out."""
    for z, one in enumerate(slices):
        drawn = {t: mask[z] for t, mask in frames.items() if (mask[z] % 3).any()}
        assert set(one.anatomy) == set(drawn)
        for t, mask in drawn.items():
            assert np.array_equal(one.anatomy[t], np.where(mask == 3, 0, mask))


def test_a_single_file_is_named_as_in_its_folder(tmp_path):
    save(tmp_path / "A17_cine.nii.gz", CINE)
    save(tmp_path / "other.nii.gz", CINE)
    for file, name in (("A17_cine.nii.gz", "A17"), ("other.nii.gz", "other")):
        ((first, *_),) = read(tmp_path / file, "nifti")
        assert first.case_id.startswith(name)
        assert "cine" not in first.case_id


# ACDC
def acdc(source: Path, *, values: np.ndarray = ACDC_VALUES, info: str | None = None) -> Path:
    folder = source / "training" / "patient007"
    save(folder / "patient007_4d.nii.gz", CINE)
    for frame, mask in ((ED, LARGE), (ES, SMALL)):
        save(folder / f"patient007_frame{frame + 1:02d}_gt.nii.gz", values[mask])
        save(folder / f"patient007_frame{frame + 1:02d}.nii.gz", CINE[frame])
    text = f"ED: {ED + 1}\nES: {ES + 1}\nGroup: MINF\nHeight: 184.0\nNbFrame: {FRAMES}\n"
    if info != "":
        (folder / "Info.cfg").write_text(text if info is None else info)
    return folder


def test_acdc(tmp_path):
    acdc(tmp_path)
    (slices,) = read(tmp_path, "acdc")
    assert [one.case_id for one in slices] == [f"patient007_s{z:02d}" for z in range(3)]
    reading.check_cine(slices, CINE)
    assert {one.end_diastole for one in slices} == {ED}  # frames count from 1 in the file
    assert {(one.patient_id, one.pixel_mm) for one in slices} == {("patient007", (1.5, 1.5))}
    assert [one.position_mm for one in slices] == [0.0, 8.0, 16.0]
    assert all(one.lge_mask is None and one.has_mvo is None for one in slices)
    check_anatomy(slices, {ED: LARGE, ES: SMALL})


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("", "Info.cfg cannot be read"),
        ("ED: 0\nES: 3\n", "ED is '0'"),
        ("ED: 1\nES: 99\n", "ES is '99' of 12"),
        ("ED: one\nES: 3\n", "ED is 'one'"),
        ("Group: NOR\n", "ED is None"),
    ],
)
def test_acdc_without_its_frame_numbers(tmp_path, info, words):
    acdc(tmp_path, info=info)
    refused(tmp_path, "Info.cfg", words)


def test_acdc_with_the_labels_of_mnms_and_other_masks(tmp_path):
    acdc(tmp_path, values=np.arange(4, dtype=np.uint8))
    refused(tmp_path, "patient007_4d.nii.gz", "LV cavity is not inside the myocardium")
    folder = acdc(tmp_path)
    save(folder / f"patient007_frame{ED + 1:02d}_gt.nii.gz", LARGE[:, :20])
    refused(tmp_path, "frame03_gt", "another shape")
    save(folder / f"patient007_frame{ED + 1:02d}_gt.nii.gz", LARGE + 9)
    refused(tmp_path, "frame03_gt", "anatomy has values")


# M&Ms and M&Ms-2
def mnms(source: Path, masks: np.ndarray) -> None:
    folder = source / "Training" / "Labeled" / "A0S9V9"
    save(folder / "A0S9V9_sa.nii.gz", CINE)
    save(folder / "A0S9V9_sa_gt.nii.gz", masks)


def test_mnms(tmp_path):
    masks = np.zeros(CINE.shape, np.uint8)
    masks[ED], masks[ES] = LARGE, SMALL
    mnms(tmp_path, masks)
    (slices,) = read(tmp_path, "mnms")
    assert slices[0].patient_id == "A0S9V9"
    assert {one.end_diastole for one in slices} == {ED}
    check_anatomy(slices, {ED: LARGE, ES: SMALL})


def test_mnms_of_which_nothing_is_drawn_or_otherwise(tmp_path):
    masks = np.zeros(CINE.shape, np.uint8)
    mnms(tmp_path, masks)
    (slices,) = read(tmp_path, "mnms")
    assert all(one.anatomy == {} and one.end_diastole is None for one in slices)
    mnms(tmp_path, masks[1:])
    refused(tmp_path, "A0S9V9_sa_gt.nii.gz", "another shape")
    masks[ED] = ACDC_VALUES[LARGE]
    mnms(tmp_path, masks)
    refused(tmp_path, "A0S9V9_sa.nii.gz", "not inside the myocardium")


def test_mnms2(tmp_path):
    folder = tmp_path / "dataset" / "001"
    save(folder / "001_SA_CINE.nii.gz", CINE)
    save(folder / "001_LA_CINE.nii.gz", CINE[:, :1])
    for phase, frame, mask in (("ED", ED, LARGE), ("ES", ES, SMALL)):
        save(folder / f"001_SA_{phase}.nii.gz", CINE[frame])
        save(folder / f"001_SA_{phase}_gt.nii.gz", mask)
    (slices,) = read(tmp_path, "mnms2")
    assert len(slices) == 3  # the long axis is left alone
    assert {one.end_diastole for one in slices} == {ED}
    check_anatomy(slices, {ED: LARGE, ES: SMALL})
    save(folder / "001_SA_ED_gt.nii.gz", LARGE[:2])
    refused(tmp_path, "001_SA_ED_gt.nii.gz", "another shape")


# EMIDEC
def test_emidec(tmp_path):
    values = np.zeros((SLICES, ROWS, COLUMNS))
    values[:, 10:30, 10:30], values[:, 14:26, 14:26] = 2.0, 1.0
    values[:2, 10:13, 10:20], values[0, 11, 12:15] = 3.0, 4.0
    for name, mask in (("Case_P007", values), ("Case_N012", np.where(values > 2, 2.0, values))):
        save(tmp_path / name / "Images" / f"{name}.nii.gz", CINE[0].astype(np.float64))
        save(tmp_path / name / "Contours" / f"{name}.nii.gz", mask + 1e-6)  # stored as floats
    save(tmp_path / "Case_P099" / "Images" / "Case_P099.nii.gz", CINE[1])
    refused(tmp_path, "no cine")
    healthy, infarcted, unlabelled = read(tmp_path, "emidec", still_images=True)
    assert [one.has_mvo for one in infarcted] == [True, False, False]
    assert [one.has_mvo for one in healthy] == [False] * 3
    assert [one.has_mvo for one in unlabelled] == [None] * 3
    mapped = np.array([0, 0, 3, 1, 2], np.uint8)[values.astype(int)]
    assert {one.cine.shape for one in infarcted} == {(1, ROWS, COLUMNS)}
    reading.check_masks(infarcted, mapped)
    save(tmp_path / "Case_P007" / "Contours" / "Case_P007.nii.gz", values + 3)
    refused(tmp_path, "Case_P007.nii.gz", "LGE mask has values", still_images=True)


# ShefPAH-179
def shefpah(source: Path, subjects: int = 2) -> Path:
    folder = source / "SA_64x64" / "DICOM"
    for n in range(1, subjects + 1):
        for t in range(FRAMES):
            image = writers.dicom_header(f"S{n}", ROWS, COLUMNS, PixelSpacing=[1.5, 1.5])
            writers.set_pixels(image, CINE[t, n].astype(np.uint16))
            (folder / f"Subject_{n}").mkdir(parents=True, exist_ok=True)
            path = folder / f"Subject_{n}" / f"Phase_{t + 1}.dcm"
            image.save_as(path, enforce_file_format=True)
    return folder


def test_shefpah(tmp_path):
    folder = shefpah(tmp_path)
    landmarks = folder.parent / "landmarks_64x64.csv"
    landmarks.write_text("\ufeffSubject,x1,y1,x2,y2,x3,y3,Group\nSubject_2,20,10,30,16,25,13,1\n")
    first, second = read(tmp_path, "shefpah")
    assert [s[0].case_id for s in (first, second)] == ["Subject_1", "Subject_2"]
    # Phase_10 comes after Phase_9, not after Phase_1.
    assert np.array_equal(first[0].cine, CINE[:, 1])
    assert first[0].centre is None
    assert second[0].centre == (13.0, 25.0)
    assert first[0].label is None  # Group is another disease
    landmarks.write_text("Subject,x1,y1\nSubject_2,20\n")
    refused(tmp_path, "landmarks_64x64.csv", "line 2")
    landmarks.unlink()
    reading.change([folder / "Subject_1" / "Phase_4.dcm"], Columns=ROWS, Rows=COLUMNS)
    refused(tmp_path, "Subject_1", "12 images of 2 sizes")
    (folder / "Subject_1" / "Phase_4.dcm").unlink()
    refused(tmp_path, "Subject_1", "phases [1, 2, 3, 5")


# Kinds of DICOM
def test_classic_dicom_in_any_order(tmp_path):
    """Slices by position, phases by trigger time, whatever files and instances are called."""
    writers.write_dicom(tmp_path, "anna", CINE.astype(np.uint16), None, pixel_mm=1.5, step_mm=8.0)
    (slices,) = read(tmp_path, "dicom")
    reading.check_cine(slices, CINE)
    assert [one.position_mm for one in slices] == [0.0, 8.0, 16.0]


def test_enhanced_dicom(tmp_path):
    writers.write_enhanced(tmp_path, "anna", CINE.astype(np.uint16), pixel_mm=1.5)
    (slices,) = read(tmp_path, "dicom")
    # The positions run downwards, so the last slice of the file is the first of the stack.
    reading.check_cine(slices, CINE[:, ::-1])
    assert [one.position_mm for one in slices] == [-16.0, -8.0, 0.0]
    assert slices[0].pixel_mm == (1.5, 1.5)


def test_old_multiframe_dicom(tmp_path):
    writers.write_old_multiframe(tmp_path, "anna", CINE[:, 0].astype(np.uint16))
    (slices,) = read(tmp_path, "dicom", pixel_mm=1.5)
    assert np.array_equal(slices[0].cine, CINE[:, 0])
    assert slices[0].pixel_mm == (1.5, 1.5)


def test_patients_by_header_or_folder(tmp_path):
    out = writers.write_dicom(tmp_path, "scan 1", CINE[:, 0].astype(np.uint16), None)
    reading.change(out.iterdir(), PatientID=" P17 ")
    assert read(tmp_path, "dicom")[0][0].patient_id == "P17"
    assert read(tmp_path, "dicom", patient_from="folder")[0][0].patient_id == "scan 1"


def test_one_file_alone_and_loose_files(tmp_path):
    writers.write_old_multiframe(tmp_path, "anna", CINE[:, 0].astype(np.uint16))
    reading.check_cine(reading.read(tmp_path / "anna" / "old.dcm"), CINE[:, :1])
    folder = writers.write_dicom(tmp_path / "other", "berta", CINE.astype(np.uint16), None)
    (slices,) = read(folder, "dicom")
    assert len(slices) == 3
    assert slices[0].case_id == "berta_s00"


def test_a_directory_file_is_no_image(tmp_path):
    out = writers.write_dicom(tmp_path, "anna", CINE[:, 0].astype(np.uint16), None)
    image: Any = pydicom.dcmread(min(out.iterdir()))
    image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    del image.SOPClassUID, image.Rows, image.Columns, image.PixelData
    image.save_as(out / "DICOMDIR")
    assert list(read_headers(out / "DICOMDIR")) == []
    assert np.array_equal(read(tmp_path, "dicom")[0][0].cine, CINE[:, 0])
