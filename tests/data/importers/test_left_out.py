"""What is missing, merged or not read is told or refused, whoever wrote the headers."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import UID

from tests.data.importers import writers
from tests.data.importers.reading import check_cine, note, read, refusal, save

FRAMES = 12
# Three slices of different places that move a little.
STILL = [np.random.default_rng(z).integers(1, 200, (1, 24, 20)) for z in range(3)]
CINE = np.stack(STILL, axis=1) + 3 * np.abs(np.arange(FRAMES) - 6)[:, None, None, None]
CINE = CINE.astype(np.uint16)
GREYS = CINE[:, 0].astype(np.uint8)
NO_TIME: dict[str, Any] = {"TriggerTime": None, "CardiacNumberOfImages": None}


@pytest.mark.parametrize("lost", [[5], [4, 5, 6], [2, 8]])
def test_a_phase_that_is_missing_by_the_clock(lost, tmp_path):
    def clock(t: int, z: int) -> str:
        return f"1000{z:02d}.{40_000 * t:06d}"

    paths = writers.write_series(tmp_path / "A17", CINE, **NO_TIME, AcquisitionTime=clock)
    assert len(read(tmp_path)) == 3
    for t in lost:
        paths[t].unlink()  # of the first slice
    first, *others = read(tmp_path)
    assert first.refusal is not None
    assert f"between {40 * lost[0] - 40} and" in first.refusal[0]
    assert "ms after the first, by AcquisitionTime" in first.refusal[0]
    assert [one.refusal for one in others] == [None, None]


def enhanced(folder: Path, order: Any, **about: Any) -> None:
    """One slice whose frames are stored in an order that only DimensionIndexValues tell."""
    path = writers.write_enhanced(folder, "A17", CINE[order, :1]) / "multi.dcm"
    image = pydicom.dcmread(path)
    for t, group in zip(order, image.PerFrameFunctionalGroupsSequence, strict=True):
        del group.CardiacSynchronizationSequence
        del group.FrameContentSequence[0].TemporalPositionIndex
        group.FrameContentSequence[0].DimensionIndexValues = [1, 1, int(t) + 1]
    for name, value in about.items():
        setattr(image, name, value)
    image.save_as(path)


def test_frames_that_only_their_dimensions_put_in_order(tmp_path):
    pointers = [pydicom.Dataset() for _ in range(3)]
    for one, pointer in zip(pointers, (0x00209056, 0x00209057, 0x00209128), strict=True):
        one.DimensionIndexPointer = pointer  # stack, place in it, time
    order = np.random.default_rng(5).permutation(FRAMES)
    enhanced(tmp_path, order, DimensionIndexSequence=pydicom.Sequence(pointers))
    check_cine(read(tmp_path), CINE[:, :1])
    enhanced(tmp_path, np.arange(FRAMES))
    assert "nothing but the order of the frames puts the phases" in note(tmp_path)


def test_contours_for_radiotherapy_are_told(tmp_path):
    writers.write_series(tmp_path / "A17", CINE)
    drawn = writers.dicom_header("P1", 2, 2, Modality="RTSTRUCT", StudyInstanceUID="1.2")
    of = UID("1.2.840.10008.5.1.4.1.1.481.3")
    drawn.SOPClassUID = drawn.file_meta.MediaStorageSOPClassUID = of
    del drawn.Rows, drawn.Columns
    drawn.save_as(tmp_path / "A17" / "rt.dcm", enforce_file_format=True)
    first = read(tmp_path)[0]
    assert "rt.dcm left out, contours (RTSTRUCT)" in first.note
    assert first.images["contours that are not read"] == 1


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("dicom", "B2/i00.dcm.gz"), ("dicom", "B2/0_0.jpg"), ("dicom", "A17/mvo.mha"),
        ("dicom", "A17/labels.tif"), ("dicom", "A17_mask.npy"), ("dicom", "A17_contours.json"),
        ("png", "img_dir/B2_00_input.jpg"), ("png", "img_dir/B2_frame0.png"),
        ("png", "ann_dir/A17_00_gt.tif"), ("png", "A17_gt.png"), ("png", "B2.nii.gz"),
        ("npz", "C3.npy"), ("nifti", "B2.mha"), ("nifti", "B2/b.jpeg"),
    ],
)  # fmt: skip
def test_images_and_drawings_in_other_forms_are_named(layout, name, tmp_path, caplog):
    if layout == "dicom":
        writers.write_series(tmp_path / "A17", CINE)
    else:
        write = {"png": writers.write_png, "npz": writers.write_npz, "nifti": writers.write_nifti}
        write[layout](tmp_path, "A17", GREYS, None)
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "README.txt").write_text("of all")
    assert read(tmp_path)
    assert not caplog.messages
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert read(tmp_path)
    (told,) = caplog.messages
    assert told.startswith("1 files that look like images or drawings below")
    assert f"are not read: {name};" in told


def test_what_is_drawn_beside_the_images_is_counted(tmp_path):
    mask = np.zeros((3, 24, 20), np.uint8)
    mask[:, 8:12, 6:16], mask[1, 9, 14] = 1, 2
    writers.write_nifti(tmp_path, "A17", CINE, mask)
    assert "cut off" not in note(tmp_path)
    writers.write_nifti(tmp_path, "A17", CINE[..., :12], None)
    said = "A17_lge_mask.nii.gz: 48 of 120 drawn pixels, 1 of MVO, lie beside the images"
    assert said in note(tmp_path)


def test_mvo_within_a_sector_of_muscle_is_no_cavity(tmp_path):
    mask = np.zeros((3, 24, 20), np.uint8)
    mask[:, 4:20, 6:14], mask[1, 10:13, 9:11] = 3, 2
    writers.write_nifti(tmp_path, "A17", CINE, mask)
    assert [one.has_mvo for one in read(tmp_path)] == [False, True, False]


def test_a_gap_between_slices_is_told(tmp_path):
    paths = writers.write_series(tmp_path / "A17", CINE[:, [0, 1, 2, 0]])
    (tmp_path / "A17" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")  # lists files, holds none
    assert "apart" not in note(tmp_path)
    for path in paths[FRAMES : 2 * FRAMES]:
        path.unlink()
    assert "the slices at 0.0 mm and 16.0 mm lie 16.0 mm apart, others 8.0" in note(tmp_path)


def test_a_cine_that_is_there_whole_and_phase_by_phase(tmp_path):
    writers.write_nifti(tmp_path, "A17", GREYS, None)
    assert len(read(tmp_path)) == 1
    for t, phase in enumerate(GREYS):
        save(tmp_path / f"A17_cine_t{t:02d}.nii.gz", phase[None, None])
    assert "'A17' is there whole and phase by phase" in refusal(tmp_path).cause


def test_slices_in_files_of_their_own_are_no_phases(tmp_path):
    for z in range(12):
        save(tmp_path / f"A17_cine_slice{z:02d}.nii.gz", CINE[:8, :1])
    assert "is named like a slice (slice00), not like a phase" in refusal(tmp_path).cause
    for path in sorted(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("slice", "t")))
    remedy = refusal(tmp_path).remedy  # 4-D files with a number
    assert "by its number it is taken for one phase of case A17" in remedy


def test_phases_that_are_joined_are_told(tmp_path):
    for t in range(FRAMES):
        save(tmp_path / f"A17_cine_{t}.nii.gz", CINE[t : t + 1])
    slices = read(tmp_path)
    check_cine(slices, CINE)
    assert "12 files are joined as phases in the order of their numbers" in slices[0].note


@pytest.mark.parametrize("patient", ["", "ANON", "P1"])
def test_folders_below_one_whose_patients_are_not_named(patient, tmp_path):
    tags = {"PatientID": patient, "PatientName": "", "StudyInstanceUID": "1.2.3"}
    for name, place in (("A17", 0), ("A18", 32)):
        tags |= {"SliceLocation": None, "SeriesInstanceUID": f"1.2.{place + 4}"}
        writers.write_series(tmp_path / "Site1" / name, CINE, origin=(0, 0, place), **tags)
    told = "images of 2 folders (A17, A18) are taken for" in note(tmp_path)
    assert told == (patient != "P1")


@pytest.mark.parametrize("kind", ["permuted", "black is 3"])
def test_a_palette_of_colours_is_told_and_its_background_checked(kind, tmp_path):
    mask = np.zeros((24, 20), np.uint8)
    mask[8:14, 6:16], mask[9, 8:10], mask[10, 9] = 3, 2, 1
    stored = (3 - mask) if kind == "black is 3" else mask
    writers.write_png(tmp_path, "A17", GREYS, stored)
    (path,) = tmp_path.rglob("*_gt.png")
    image = Image.fromarray(stored)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path)
    if kind == "black is 3":
        assert "the edge of its images is myocardium" in refusal(tmp_path).cause
    else:
        said = "the numbers of its palette are its labels (0 #000000, 1 #ff0000, 2"
        assert said in note(tmp_path)


@pytest.mark.parametrize("degrees", [15.0, 40.0])
def test_a_mask_whose_signs_are_those_of_dicom_is_refused(degrees, tmp_path):
    turn = np.radians(degrees)
    c, s = np.cos(turn), np.sin(turn)
    tilted = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = tilted @ np.diag([2.0, 2.0, 8.0]), (5, 7, 9)
    mask = np.zeros((3, 24, 20), np.uint8)
    mask[:, 8:12, 6:16] = 1
    save(tmp_path / "A17_cine.nii.gz", CINE, affine)
    save(tmp_path / "A17_lge_mask.nii.gz", mask, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    words = "an orientation of DICOM or NRRD (LPS) written as that of NIfTI"
    assert words in refusal(tmp_path).cause
    save(tmp_path / "A17_lge_mask.nii.gz", mask, affine)
    assert len(read(tmp_path)) == 3


@pytest.mark.parametrize("content", [b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", b"MATLAB 5.0"])
def test_a_matrix_beside_nifti_makes_it_no_segment(content, tmp_path):
    writers.write_nifti(tmp_path, "A17", CINE, None)
    (tmp_path / "A17_lge2cine.mat").write_bytes(content)
    assert len(read(tmp_path)) == 3
